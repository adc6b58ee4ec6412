"""An arena: problems, methods with search spaces, and the cells that rank them at equal cost.

Grammar of a file with ``kind = "arena"``::

    title, description     text
    [budgets.NAME]         trials (settings a method is given on a problem, the first its own),
                           tuning_seeds, seeds (of the finals; none may be a tuning seed),
                           problems (ids; left out: all), stretch (runs may cost so many caps),
                           charge_looks (true: looks count as cost)
    [[problems]]           id, label, track ("A": lam in the inner loss, "B": an initialisation or
                           representation, "C": few bounded scalars), task, set.task.*,
                           fixed (score without outer learning), bound (the best that can be had),
                           cap (what a run may cost, in inner gradients), looks (evaluations on the
                           way, at equal costs), prices (of one of each count),
                           smoothness (L, the largest eigenvalue of the inner Hessian at the start),
                           retrain = { steps, lr, solver } (a second readout: theta trained anew at
                           the lam found, the same way for all), valid_episodes, test_episodes,
                           select ("best_selection", the default: states and trials are chosen on
                           examples that the outer loss does not see; or "best_valid"),
                           quick (true on at most four: those of ``metabench rank --quick``)
    [[methods]]            id, label, method, solver, tracks, problems (ids; left out: all of its
                           tracks), set.{task,method,solver,budget}.*,
                           space."GROUP.NAME" = { low, high, log, whole, per_smoothness } or
                           { choices = [...] }

A method is tried on every problem of its tracks with ``trials`` settings on the tuning seeds. The
first are the settings of the file, "as shipped"; the others are drawn from its space by a scrambled
Halton sequence that is the same for all methods: trials do not change with who else takes part, and
a method under another name has the same trials, so that no name is luckier than another. With
``per_smoothness`` a value is divided by the problem's L: a step size of 2 is then the largest that
is stable on a quadratic. The best trial on the split "selection" plays the finals, on seeds that
nothing was tuned on. All of it are cells like any others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError, with_config

from metabench.core import toml
from metabench.core.catalogue import arena_names, suite_folder
from metabench.core.cell import Cell, Resolved, resolve
from metabench.core.costs import PRICED
from metabench.core.errors import SettingError, SuiteError, UnknownName
from metabench.core.registry import tasks
from metabench.core.settings import strictly
from metabench.core.text import listed
from metabench.suites import mistakes
from metabench.suites.arena.space import Range, drawn
from metabench.suites.schema import Groups, Settings, strict
from metabench.suites.suite import SuiteCell, merge

TRACKS = {
    "A": "lam in the inner loss",
    "B": "lam an initialisation or a representation",
    "C": "lam few bounded scalars",
}
AS_SHIPPED = " as shipped"
"""After a method's id: its row in the finals with the settings of the file."""
MOST_QUICK = 4
"""Problems that are quick: so many cells take a quarter of an hour."""


@with_config(strict)
@dataclass(frozen=True)
class Retraining:
    """How theta is trained anew at the lam that a method has found."""

    steps: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    solver: str = "sgd"


@with_config(strict)
@dataclass(frozen=True)
class ArenaProblem:
    """A problem, what can be had on it, and what a run on it may cost."""

    id: str
    track: Literal["A", "B", "C"]
    task: str
    fixed: FiniteFloat
    bound: FiniteFloat
    cap: Annotated[float, Field(gt=0)]
    prices: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    """Of one of each count; nobody plays where one is missing (:meth:`unpriced`)."""
    smoothness: Annotated[float, Field(gt=0)] = 1.0
    label: str = ""
    looks: Annotated[int, Field(ge=1)] = 20
    valid_episodes: Annotated[int, Field(ge=1)] = 1
    test_episodes: Annotated[int, Field(ge=1)] = 1
    select: Literal["best_valid", "best_selection"] = "best_selection"
    """Left out, states and trials are chosen on examples that the outer loss does not see."""
    retrain: Retraining | None = None
    """The second readout; None: there is only the theta that the method ends with."""
    quick: bool = False
    """Whether it is one of the few that a new method is first tried on."""
    set: Groups = field(default_factory=dict)

    @property
    def target(self) -> float:
        """Four fifths of the way from no learning to the bound."""
        return self.fixed + 0.8 * (self.bound - self.fixed)

    def score(self, value: float) -> float:
        """0 without learning, 1 at the bound."""
        return (value - self.fixed) / (self.bound - self.fixed)

    def unpriced(self, offers: Collection[str]) -> list[str]:
        """The counts without a price that a method can take of a task that offers this, whichever
        methods play: what a run has cost could not be said."""
        taken = {"inner_gradients", "function_evaluations"}
        if "outer_gradient" in offers:
            taken.add("outer_gradients")
        if "second_order" in offers and "field" not in offers:
            taken |= {"hvps", "mixed_products"}
        return [name for name in PRICED if name in taken and name not in self.prices]

    def limits(self, rules: ArenaBudget) -> Settings:
        """The budget of a run on it under these rules; looks are equally many under all."""
        cap, anew = self.cap * rules.stretch, self.retrain
        return {
            "cost": cap,
            "eval_every_cost": cap / self.looks,
            "prices": self.prices,
            "valid_episodes": self.valid_episodes,
            "test_episodes": self.test_episodes,
            "select": self.select,
            **({"charge_looks": True} if rules.charge_looks else {}),
            **({f"retrain_{k}": v for k, v in asdict(anew).items()} if anew else {}),
        }


@with_config(strict)
@dataclass(frozen=True)
class ArenaMethod:
    """A method as shipped, and what its settings may be."""

    id: str
    method: str
    tracks: Annotated[list[Literal["A", "B", "C"]], Field(min_length=1)]
    label: str = ""
    solver: str | None = None
    problems: list[str] = field(default_factory=list)
    """Where it takes part; left out: on all problems of its tracks."""
    set: Groups = field(default_factory=dict)
    space: dict[str, Range] = field(default_factory=dict)
    """"GROUP.NAME" to its range."""

    def drawn(self, trials: int) -> list[list[float]]:
        """Points of the unit cube for trials 1, 2, ..., by a scrambled Halton sequence; the same
        for any number of trials, and for any method with as many settings in its space."""
        return drawn(len(self.space), trials)

    def settings(self, u: Sequence[float], problem: ArenaProblem) -> dict[str, Settings]:
        """The groups of settings at a point of the unit cube on a problem."""
        out: dict[str, Settings] = {}
        for (name, range_), at in zip(self.space.items(), u, strict=True):
            group, _, setting = name.partition(".")
            out.setdefault(group, {})[setting] = range_.at(at, problem.smoothness)
        return out


@with_config(strict)
@dataclass(frozen=True)
class ArenaBudget:
    """How many trials on which seeds, and who plays where."""

    trials: Annotated[int, Field(ge=1)]
    tuning_seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    problems: list[str] = field(default_factory=list)
    stretch: Annotated[float, Field(gt=0)] = 1.0
    """Times a problem's cap that a run may cost: beyond 1 to see what a problem has to give."""
    charge_looks: bool = True
    """Whether looks at the split that chooses states are paid for out of the cap."""


Chosen = Mapping[tuple[str, str], int]
"""Method and problem to the number of the trial that plays the finals; 0 is as shipped."""
At = tuple[str, str, int, float, bool]
"""Method, problem, trial, and what a run's settings have of the rules: ``stretch``,
``charge_looks``."""


@with_config(strict)
@dataclass(frozen=True)
class Arena:
    """Problems and methods, and the cells of trials and finals."""

    kind: Literal["arena"]
    name: str
    title: str
    problems: Annotated[list[ArenaProblem], Field(min_length=1)]
    methods: Annotated[list[ArenaMethod], Field(min_length=1)]
    budgets: Annotated[dict[str, ArenaBudget], Field(min_length=1)]
    description: str = ""

    @cached_property
    def _points(self) -> dict[str, list[list[float]]]:
        most = max(b.trials for b in self.budgets.values()) - 1
        return {m.id: m.drawn(most) if most else [] for m in self.methods}

    @cached_property
    def resolved(self) -> dict[At, Resolved]:
        """What settings resolve to: asked for by who reads scores and again by who plans, they are
        checked once, or recalled (:mod:`metabench.suites.arena.recalled`)."""
        return {}

    @cached_property
    def metrics(self) -> dict[str, str]:
        """Problem to the metric that it is scored by."""
        known: Any = {p.id: tasks.get(p.task) for p in self.problems}
        return {name: task.metric for name, task in known.items()}

    @cached_property
    def _cells(self) -> dict[tuple[At, tuple[int, ...]], list[Cell]]:
        return {}

    def budget(self, name: str) -> ArenaBudget:
        """Raises UnknownName."""
        if name not in self.budgets:
            raise UnknownName(f"budget of arena {self.name!r} called", name, self.budgets)
        return self.budgets[name]

    def pairs(self, budget: str) -> Iterator[tuple[ArenaMethod, ArenaProblem]]:
        """Every method on every problem of its tracks."""
        wanted = self.budget(budget).problems
        for method in self.methods:
            for problem in self.problems:
                asked = all(problem.id in ids for ids in (wanted, method.problems) if ids)
                if asked and problem.track in method.tracks:
                    yield method, problem

    def trials(self, budget: str) -> list[SuiteCell]:
        """The cells of all trials, trial by trial so that early ones say something of every pair;
        ``row`` is "METHOD#TRIAL". A method without a space has one trial."""
        rules = self.budget(budget)
        return [
            cell
            for trial in range(rules.trials)
            for method, problem in self.pairs(budget)
            if trial == 0 or method.space
            for cell in self.cells(method, problem, trial, rules, rules.tuning_seeds, f"#{trial}")
        ]

    def finals(self, budget: str, chosen: Chosen) -> list[SuiteCell]:
        """The cells of the finals: of each method the trial that ``chosen`` says (``row`` its id)
        and its settings as shipped ("METHOD as shipped"). A pair without a trial, where the method
        cannot run on the problem, has none."""
        rules = self.budget(budget)
        out = []
        for method, problem in self.pairs(budget):
            if (method.id, problem.id) not in chosen:
                continue
            trial = chosen[method.id, problem.id]
            out += self.cells(method, problem, trial, rules, rules.seeds, "")
            out += self.cells(method, problem, 0, rules, rules.seeds, AS_SHIPPED)
        return out

    def cells(
        self,
        method: ArenaMethod,
        problem: ArenaProblem,
        trial: int,
        rules: ArenaBudget,
        seeds: Iterable[int],
        suffix: str,
    ) -> list[SuiteCell]:
        """One trial of a method on a problem under these rules, a cell a seed; ``row`` is the
        method's id and ``suffix``. Raises SuiteError for a problem whose prices lack a count."""
        at = method.id, problem.id, trial, rules.stretch, rules.charge_looks
        found = self.resolved.get(at)
        if found is None:
            found = self.resolved[at] = self._resolve(method, problem, trial, rules)
        same = at, tuple(seeds)
        cells = self._cells.get(same)
        if cells is None:
            cells = self._cells[same] = found.cells(same[1])
        row = f"{method.id}{suffix}"
        return [SuiteCell(row, problem.id, cell, None, found) for cell in cells]

    def _resolve(
        self, method: ArenaMethod, problem: ArenaProblem, trial: int, rules: ArenaBudget
    ) -> Resolved:
        self._check_prices(problem, ())
        own = method.settings(self._points[method.id][trial - 1], problem) if trial else {}
        groups = merge([problem.set, {"budget": problem.limits(rules)}, method.set, own])
        try:
            found = resolve(problem.task, method.method, method.solver, groups)
        except (UnknownName, SettingError) as error:
            error.add_note(
                f"arena {self.name}, method {method.id}, problem {problem.id}, trial {trial}"
            )
            raise
        self._check_prices(problem, found.parts[0].offers)
        return found

    def _check_prices(self, problem: ArenaProblem, offers: Collection[str]) -> None:
        if lacks := problem.unpriced(offers):
            raise SuiteError(
                f"arena {self.name}, problem {problem.id}: prices lack {listed(lacks)}, and what "
                "has no price cannot be charged; to measure prices: metabench calibrate FILE"
            )


def load(name: str | Path) -> Arena:
    """A built-in arena by name, or any arena by the path of its file. Raises UnknownName for a name
    that is neither, SuiteError for a file that is no arena."""
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in arena_names():
            raise UnknownName("arena", str(name), arena_names(), "or give the path of a .toml file")
        path = suite_folder() / f"{name}.toml"
    try:
        data = {"name": path.stem, **toml.read(path)}
    except ValueError as error:
        raise SuiteError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}") from None
    try:
        arena = strictly(TypeAdapter(Arena), data)
    except ValidationError as error:
        raise SuiteError(f"{path}: {mistakes.told(error, data, Arena)}") from None
    for broken in _broken(arena):
        raise SuiteError(f"{path}: {broken}")
    return arena


def _broken(arena: Arena) -> Iterator[str]:
    for kind, ids in (
        ("problem", [p.id for p in arena.problems]),
        ("method", [m.id for m in arena.methods]),
    ):
        for name in ids:
            if ids.count(name) > 1:
                yield f"two {kind}s are called {name!r}"
            if not name or {"#", "/"} & {*name}:
                yield f"a {kind} cannot be called {name!r}"
    quick = [p.id for p in arena.problems if p.quick]
    if len(quick) > MOST_QUICK:
        yield f"{len(quick)} problems are quick, at most {MOST_QUICK} may be: {', '.join(quick)}"
    for problem in arena.problems:
        if problem.fixed == problem.bound:
            yield f"problem {problem.id}: fixed and bound are both {problem.bound:g}"
    for method in arena.methods:
        for name in method.space:
            if name.partition(".")[0] not in ("task", "method", "solver") or "." not in name:
                yield f"method {method.id}: space {name!r} is not task., method. or solver.NAME"
    known = [p.id for p in arena.problems]
    for method in arena.methods:
        for problem_id in method.problems:
            if problem_id not in known:
                yield f"method {method.id}: {UnknownName('problem', problem_id, known)}"
    for name, budget in arena.budgets.items():
        if both := {*budget.tuning_seeds} & {*budget.seeds}:
            yield f"budgets.{name}: seed {min(both)} is tuned on and plays in the finals"
        for problem_id in budget.problems:
            if problem_id not in known:
                yield f"budgets.{name}: {UnknownName('problem', problem_id, known)}"
