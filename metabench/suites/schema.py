"""The parts of a suite file: its columns, rows, budgets, and what papers report.

The grammar is told in :mod:`metabench.suites.loading`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, with_config

from metabench.core.costs import Counts
from metabench.core.settings import fields

Settings = dict[str, Any]
Groups = dict[Literal["task", "method", "solver", "budget"], Settings]
BUDGETS = ("smoke", "laptop", "paper")
GROUPS = ("task", "method", "solver", "budget")
PLOTS = ("learning", "cost", "trajectories", "ranking", "profile", "frontier")
"""Every kind of plot."""
DERIVATIVES = ("inner_gradients", "outer_gradients", "hvps", "mixed_products")
"""The costs whose sum is the cost "derivatives"."""
COSTS = (
    *fields(Counts), "derivatives", "seconds", "evaluation_seconds",
    "peak_memory_bytes", "peak_device_memory_bytes", "peak_tensor_bytes",
)  # fmt: skip
"""Every cost that a plot can show."""
LABELS = {
    "repo": "read in the official repository",
    "text": "read in a full text of the paper",
    "2nd": "read in another public document that quotes the paper",
    "rerun": "a third party's re-run, not the authors' number",
    "memory": "recalled, not verified: not to be relied on before somebody has looked it up",
    "derived": "mathematics done for this suite",
}
"""How solid a published number is."""
NOT_THE_PAPERS = frozenset({"rerun", "derived"})
"""The labels of numbers that no paper has."""
HOW = {
    "published": "as published",
    "default": "the method's defaults",
    "own": "set by hand, no trial recorded",
}
"""How settings were chosen without a recorded trial, in words."""
strict = ConfigDict(extra="forbid")
"""A name that the grammar does not have is an error."""


@with_config(strict)
@dataclass(frozen=True)
class Column:
    """One column of the table: a task with settings, and what differs by budget."""

    id: str
    task: str
    label: str = ""
    problem: str = ""
    """Columns with the same one are looks at one problem: a single block of rankings. Empty: the
    column is a problem of its own."""
    bound: FiniteFloat | None = None
    """The best value that can be had, in the table's unit: 1 on normalised scales."""
    set: Groups = field(default_factory=dict)
    budgets: dict[str, Groups] = field(default_factory=dict)


@with_config(strict)
@dataclass(frozen=True)
class Tuned:
    """Settings that trials chose: on what, how many trials, on which seeds."""

    tuned: Annotated[str, Field(min_length=1)]
    """What was compared: the metric, its split and its columns; which settings, where not all."""
    trials: Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1)]
    """Settings tried. Text where one number does not say it: "4 to 9 a column"."""
    seeds: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[str, Field(min_length=1)]
    )
    """Text, without a digit, where the numbers are not known: "not recorded"."""


How = Literal["published", "default", "own"] | Tuned
"""A key of ``HOW``, or the trials."""


@with_config(strict)
@dataclass(frozen=True)
class Row:
    """One row: a method with settings, and what differs by column or budget."""

    id: str
    method: str
    chosen: How | dict[str, How]
    """How the settings were chosen, those of the task that the row sets among them; by budget
    where it differs."""
    label: str = ""
    series: str = ""
    """Label of the line that this row is a point of where results are drawn against cost."""
    solver: str | None = None
    """None: the method's own default, mostly "sgd"."""
    set: Groups = field(default_factory=dict)
    columns: dict[str, Groups] = field(default_factory=dict)
    budgets: dict[str, Groups] = field(default_factory=dict)
    cells: dict[str, dict[str, Groups]] = field(default_factory=dict)
    """Budget to column to settings: what differs by both."""
    skip: list[str] = field(default_factory=list)
    skip_reason: str = ""
    reference: str = ""
    """Where the method and these settings come from."""

    def how(self, budget: str) -> How:
        """How the settings under a budget were chosen; "own" for one that ``chosen`` leaves out."""
        return self.chosen.get(budget, "own") if isinstance(self.chosen, dict) else self.chosen


@with_config(strict)
@dataclass(frozen=True)
class PaperRow:
    """A published row without a run of ours."""

    id: str
    label: str


@with_config(strict)
@dataclass(frozen=True)
class Published:
    """One published number, in the table's unit, with its spread, its meaning and its source."""

    row: str
    column: str
    value: FiniteFloat
    source: str
    label: str
    """How solid it is: a key of ``LABELS``."""
    pm: FiniteFloat | None = None
    pm_meaning: str = ""

    @property
    def verified(self) -> bool:
        """Whether somebody has looked it up: tables leave the others out."""
        return self.label.strip("[]") != "memory"


@with_config(strict)
@dataclass(frozen=True)
class Reach:
    """A level of a validation metric, and the cost until a run's learning curve first has it.

    The level is ``level`` itself, or within this part of the best value that any row has in the
    same column and seed (``within``; as in data profiles: More, Wild, SIAM J. Optimization 20,
    2009, with the gap relative to the best value).
    """

    metric: str
    goal: Literal["max", "min"] | None = None
    """What is better; None: as for the table's metric, which ``metric`` then has to be."""
    cost: str = "inner_gradients"
    level: FiniteFloat | None = None
    within: Annotated[FiniteFloat, Field(gt=0)] | None = None


@with_config(strict)
@dataclass(frozen=True)
class PaperClaim:
    """Each of ``better`` is better than ``than``, or no worse: by the table's metric, or by the
    cost to reach the suite's level."""

    better: Annotated[list[str], Field(min_length=1)]
    than: str
    source: Annotated[str, Field(min_length=1)]
    by: Literal["metric", "reach"] = "metric"
    or_equal: bool = False
    within: Annotated[float, Field(gt=0, lt=1)] | None = None
    """No more than this part of what ``than`` has apart, whichever is better."""
    columns: list[str] = field(default_factory=list)
    """Empty: all."""


@with_config(strict)
@dataclass(frozen=True)
class SuiteBudget:
    """Seeds and limits of one budget; ``limits`` are fields of
    :class:`metabench.core.cell.Budget`."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    limits: Settings = field(default_factory=dict)
    set: Groups = field(default_factory=dict)
