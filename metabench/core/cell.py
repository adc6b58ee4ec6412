"""The cell: plain data that says one run completely, and its content address."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from metabench.core import settings
from metabench.core.capabilities import lacks_examples
from metabench.core.costs import PRICED, cost_of
from metabench.core.declaration import Declaration, declare
from metabench.core.errors import SettingError, UnknownName
from metabench.core.readouts import check_test_after
from metabench.core.registry import methods, solvers, tasks

CONTRACT = 1
"""Version of the contract: part of every key, raised when a change alters what a cell measures."""

Count = Annotated[int, Field(ge=1)]
FINGERPRINT = "fingerprint"
"""The setting of a task that is made of live objects, and says which ones."""


@dataclass(frozen=True)
class Budget:
    """How long a cell runs and how it is judged; at least one limit must be set.

    Limits (whichever is reached first ends the run): ``outer_steps``; ``inner_gradients``,
    ``outer_gradients``, ``hvps``, ``mixed_products``, ``function_evaluations``, ``trainings``
    (counts); ``cost`` (all counts together, in inner gradients at ``prices``); ``seconds``
    (training time: the only limit that makes a run depend on the machine).
    """

    outer_steps: Annotated[int, Field(ge=0)] | None = None
    inner_gradients: Count | None = None
    outer_gradients: Count | None = None
    hvps: Count | None = None
    mixed_products: Count | None = None
    function_evaluations: Count | None = None
    trainings: Count | None = None
    cost: Annotated[float, Field(gt=0)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    eval_every: Count = 100
    """Outer steps between two evaluations on the validation split."""
    eval_every_cost: Annotated[float, Field(gt=0)] | None = None
    """In place of ``eval_every``: an evaluation wherever another so much cost is spent, so that
    methods with cheap and with dear steps are looked at equally often."""
    prices: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """What one of each count costs on the problem, in inner gradients (``metabench calibrate``)."""
    charge_looks: Literal[True] | None = None
    """Count what an evaluation on the way takes as cost, too: the adaptation of its episodes, and
    one function evaluation for each. What the last one took is kept back for the one that ends the
    run; one that goes beyond a limit all the same is not taken. The final evaluations are free."""
    valid_episodes: Count = 100
    test_episodes: Count = 600
    select: Literal["best_valid", "last", "best_selection"] = "best_valid"
    """Which state is tested: the best on the validation split, the last, or the best on the split
    "selection", of examples that the outer loss does not see, on as many episodes as validation;
    for tasks that have it."""
    retrain_steps: Count | None = None
    """Inner steps of a second readout: theta trained anew at the lam that is tested, in the same
    way for every method and not counted; its metrics stand under "test@retrained"."""
    retrain_lr: Annotated[float, Field(gt=0)] | None = None
    """The step size of that training."""
    retrain_solver: str | None = None
    """Its inner solver; None: plain gradient descent ("sgd")."""
    test_after: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Evaluate the state that is tested after each of these numbers of inner steps, too, on the
    same test episodes and not counted; the metrics stand under "test@5_steps". Which state that is
    does not depend on it: validation takes the method's own ``test_steps``."""
    measure_memory: Literal[True] | None = None
    """Repeat the first outer step at the end, uncounted, for the cost ``peak_tensor_bytes``: the
    most bytes of tensors that it holds at once (:mod:`metabench.hypergradients.tensor_memory`)."""

    LIMITS = (
        "outer_steps",
        "inner_gradients",
        "outer_gradients",
        "hvps",
        "mixed_products",
        "function_evaluations",
        "trainings",
        "cost",
        "seconds",
    )

    def __post_init__(self) -> None:
        after = self.test_after or ()
        if twice := [n for n in after if after.count(n) > 1]:
            raise ValueError(f"test_after has {twice[0]} twice")
        if (self.retrain_steps is None) != (self.retrain_lr is None):
            raise ValueError("retrain_steps and retrain_lr go together")
        if self.retrain_solver is not None:
            if self.retrain_steps is None:
                raise ValueError("retrain_solver needs retrain_steps and retrain_lr")
            solver: Any = solvers.get(self.retrain_solver)
            if solver.noisy:
                raise ValueError(f"retrain_solver {self.retrain_solver!r} adds noise to its steps")
        if (self.cost is not None or self.eval_every_cost is not None) and not self.prices:
            raise ValueError("a cost needs prices: what one of each count costs on the problem")
        if self.charge_looks and "function_evaluations" not in (self.prices or {}):
            raise ValueError(
                "charge_looks needs the price of function_evaluations, which evaluations take"
            )
        unknown = [name for name in self.prices or {} if name not in PRICED]
        if unknown:
            raise ValueError(f"prices of {unknown[0]!r}: there are those of {', '.join(PRICED)}")

    def spent(self, used: Mapping[str, float], *, but: Iterable[str] = ()) -> list[float]:
        """The part of each limit that ``used`` takes: counts, "outer_steps", "seconds"; of the
        limits named in ``but`` nothing is said. Raises Unpriced, as :meth:`cost_of`."""
        found = dict(used)
        if self.cost is not None:
            found["cost"] = self.cost_of(used)
        limits = {n: getattr(self, n) for n in self.LIMITS if n not in but}
        return [found[n] / most if most else 1.0 for n, most in limits.items() if most is not None]

    def cost_of(self, counts: Mapping[str, float]) -> float:
        """Counts in inner gradients at the budget's prices. Raises Unpriced where one that is not 0
        has none: it is neither free nor all that the budget has."""
        return cost_of(counts, self.prices or {})


@dataclass(frozen=True)
class Cell:
    """(task, method, inner solver, seed, budget), every setting resolved: what one run is.

    Built with :func:`make_cell`; equal cells have equal keys on every machine.
    """

    task: str
    method: str
    solver: str
    seed: int
    task_settings: dict[str, Any] = field(default_factory=dict)
    method_settings: dict[str, Any] = field(default_factory=dict)
    solver_settings: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    contract: int = CONTRACT

    @cached_property
    def key(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits."""
        # asdict would copy every setting first, which thousands of cells feel.
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return hashlib.sha256(canonical(data).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return f"{self.task} x {self.method} seed {self.seed} [{self.key[:10]}]"


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces; raises ValueError for NaN and infinities."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def place_names(places: Iterable[tuple[str, str, Cell]]) -> dict[str, str]:
    """Key of a cell to what people call it: the rows and columns of its suite that it stands in,
    as ``--only`` takes them, its seed and the beginning of its key."""
    found: dict[str, tuple[Cell, list[str]]] = {}
    for row, column, cell in places:
        found.setdefault(cell.key, (cell, []))[1].append(f"{row}/{column}")
    return {
        key: f"{', '.join(dict.fromkeys(at))} seed {cell.seed} [{key[:10]}]"
        for key, (cell, at) in found.items()
    }


Parts = tuple[Any, Any, Any, Budget]
"""The task, method, solver and budget objects that a cell names."""


def make_cell(
    task: str,
    method: str,
    *,
    solver: str | None = None,
    seed: int = 0,
    set: Mapping[str, Mapping[str, Any]] | None = None,
) -> Cell:
    """The cell for these names, with ``set = {"task": {...}, "method": ..., "solver": ...,
    "budget": ...}`` over the defaults; without ``solver`` the method's own default.

    Raises UnknownName or SettingError (names, values) before anything is run.
    """
    return make_cells(task, method, [seed], solver=solver, set=set)[0][0]


def make_cells(
    task: str,
    method: str,
    seeds: Iterable[int],
    *,
    solver: str | None = None,
    set: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Cell], Parts]:
    """A cell for each seed, and the objects that all of them name: settings are checked once.

    The cells share their dicts of settings. Arguments and errors as of :func:`make_cell`.
    """
    seeds = [_whole(seed) for seed in seeds]
    found = resolve(task, method, solver, set)
    return found.cells(seeds), found.parts


@dataclass(frozen=True)
class Resolved:
    """Names and settings with nothing left open: the cells that differ in their seeds alone."""

    task: str
    method: str
    solver: str
    task_settings: dict[str, Any]
    method_settings: dict[str, Any]
    solver_settings: dict[str, Any]
    budget: dict[str, Any]
    made: Parts | None = field(default=None, compare=False, repr=False)
    """``parts``, where they have been made."""
    said: Declaration | None = field(default=None, compare=False, repr=False)
    """``declaration``, where it is known."""

    def cells(self, seeds: Iterable[int]) -> list[Cell]:
        """One for each seed. Raises SettingError for what is no whole number."""
        own = (self.task_settings, self.method_settings, self.solver_settings, self.budget)
        cells = [Cell(self.task, self.method, self.solver, _whole(seed), *own) for seed in seeds]
        if cells:
            before, after = _around_the_seed(cells[0])
            for cell in cells:
                text = f"{before}{cell.seed}{after}"
                vars(cell)["key"] = hashlib.sha256(text.encode()).hexdigest()
        return cells

    @cached_property
    def parts(self) -> Parts:
        """The objects that the cells name."""
        return self.made or instances(self.cells([0])[0])

    @cached_property
    def declaration(self) -> Declaration:
        """What they declare."""
        return self.said or declare(*self.parts)


def _around_the_seed(cell: Cell) -> tuple[str, str]:
    """What stands before and after the seed in the JSON that the key is the hash of: it is long,
    and the same for all seeds."""
    data = {f.name: getattr(cell, f.name) for f in fields(cell)}
    before, after = (
        canonical({k: v for k, v in data.items() if (k < "seed") == first and k != "seed"})
        for first in (True, False)
    )
    return f'{before[:-1]},"seed":', f",{after[1:]}"


def of_cell(cell: Cell) -> Resolved:
    """What a cell is, but for its seed."""
    own = (cell.task_settings, cell.method_settings, cell.solver_settings, cell.budget)
    return Resolved(cell.task, cell.method, cell.solver, *own)


def resolve(
    task: str,
    method: str,
    solver: str | None = None,
    set: Mapping[str, Mapping[str, Any]] | None = None,
) -> Resolved:
    """Settings over defaults, checked. Arguments and errors as of :func:`make_cell`."""
    given = dict(set or {})
    chosen: Any = methods.get(method)
    solver = solver or str(chosen.default_solver)
    parts: Parts = (
        settings.build(tasks.get(task), given.pop("task", {}), f"task {task}"),
        settings.build(methods.get(method), given.pop("method", {}), f"method {method}"),
        settings.build(solvers.get(solver), given.pop("solver", {}), f"solver {solver}"),
        settings.build(Budget, given.pop("budget", {}), "budget"),
    )
    if given:
        known = ("task", "method", "solver", "budget")
        raise UnknownName("group of settings", next(iter(given)), known)
    if all(getattr(parts[-1], limit) is None for limit in Budget.LIMITS):
        raise SettingError(f"budget: set at least one of {', '.join(Budget.LIMITS)}")
    _check_select(*parts)
    _check_retraining(parts[0], parts[-1])
    check_test_after(parts[0], parts[1], parts[-1])
    for_task, for_method, for_solver, limits = map(settings.values, parts)
    limits = {k: v for k, v in limits.items() if v is not None}
    return Resolved(task, method, solver, for_task, for_method, for_solver, limits, parts)


def _check_select(task: Any, method: Any, solver: Any, budget: Budget) -> None:
    """Raise SettingError where the state is to be chosen on a split that the task lacks."""
    why = task.lacks_selection if budget.select == "best_selection" else None
    if why:
        raise SettingError(
            f"budget: setting select cannot be 'best_selection' for task {task.registered_name}, "
            f"which has no split 'selection': {why}; write select = 'best_valid' or 'last'"
        )


def _check_retraining(task: Any, budget: Budget) -> None:
    """Raise SettingError where theta is to be trained anew by a solver that the task has nothing
    for, or where its learner takes none: it would be found out after the whole run."""
    if budget.retrain_steps is not None and "own_step" in task.offers:
        raise SettingError(
            f"budget: setting retrain_lr is nothing for task {task.registered_name}, whose learner "
            "takes steps of its own: leave retrain_steps and retrain_lr out"
        )
    name = budget.retrain_solver
    why = None if name is None else lacks_examples(task, solvers.get(name))
    if why:
        raise SettingError(
            f"budget: setting retrain_solver cannot be {name!r} for task {task.registered_name}: "
            f"{why}"
        )


def _whole(seed: Any) -> int:
    # True is 1 to Python, but another seed in a key.
    if not isinstance(seed, bool):
        with suppress(TypeError):
            return operator.index(seed)
    raise SettingError(f"seed cannot be {seed!r}: write a whole number")


def instances(cell: Cell) -> Parts:
    """The task, method, solver and budget objects that the cell names, validated again."""
    if cell.task not in tasks and FINGERPRINT in cell.task_settings:
        raise UnknownName(
            "task",
            cell.task,
            tasks.names(),
            "a problem of problem_from is known where the code that makes it has run: put that "
            "into a file of its own and load it with --plugin FILE",
        )
    return (
        settings.build(tasks.get(cell.task), cell.task_settings, f"task {cell.task}"),
        settings.build(methods.get(cell.method), cell.method_settings, f"method {cell.method}"),
        settings.build(solvers.get(cell.solver), cell.solver_settings, f"solver {cell.solver}"),
        settings.build(Budget, cell.budget, "budget"),
    )
