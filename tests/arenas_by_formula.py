"""A played arena without a run: cells as they are planned, records by formula."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

from metabench.api.arena import tournament
from metabench.core.cell import Cell
from metabench.core.costs import COUNT_NAMES
from metabench.core.registry import tasks
from metabench.store.record import Curve, Estimate, Record
from metabench.store.store import Store
from metabench.suites.arena.definition import ArenaProblem
from metabench.suites.planning import NEVER_RUN, Planned

PRICES = (
    "{ inner_gradients = 1.0, outer_gradients = 0.5, hvps = 0.9, mixed_products = 0.9, "
    "function_evaluations = 0.5 }"
)
PROBLEMS = {  # id: label, track, task, settings, fixed, bound, select
    "dim2": ("Quadratic, 2", "A", "quadratic", "dim = 2", 4.0, 0.0, "best_valid"),
    "dim5": ("Quadratic, 5", "A", "quadratic", "dim = 5", 10.0, 0.5, "best_valid"),
    "ridge6": ("Ridge, 6", "A", "ridge", "features = 6", 1.25, 0.4, "best_selection"),
    "two": ("Two minima", "C", "pbgd_toy", "", 1.5, -1.0, "best_valid"),
}
METHODS = {  # id: label, method
    "bilevel": ("Unrolling", "bilevel"),
    "onestep": ("One step", "one_step"),
    "implicit": ("Implicit", "ift"),
    "soba": ("SOBA", "soba"),  # applies to "two" alone, which carries theta
}
RETRAINED = ("dim5", "ridge6")
"""Problems with the second readout."""
QUALITY = {"bilevel": 0.8, "one_step": 0.6, "ift": 0.95, "soba": 0.7, "pbgd": 0.9}
LOOKS = 6
LOST = ("ift", "dim5", (1,))
"""Method, problem and seeds of the runs that end without numbers."""


def text(
    methods: Mapping[str, tuple[str, str]] = METHODS,
    title: str = "A synthetic arena",
    caps: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> str:
    """The file of an arena; ``caps`` and ``labels`` instead of its own, by problem."""
    out = [
        f'kind = "arena"\ntitle = {title!r}\n',
        "[budgets.smoke]\ntrials = 3\ntuning_seeds = [100, 101]\nseeds = [0, 1, 2]\n",
    ]
    for name, (label, track, task, given, fixed, bound, select) in PROBLEMS.items():
        out.append(
            f'[[problems]]\nid = "{name}"\nlabel = {(labels or {}).get(name, label)!r}\n'
            f'track = "{track}"\ntask = "{task}"\nset.task = {{ {given} }}\nfixed = {fixed}\n'
            f"bound = {bound}\ncap = {(caps or {}).get(name, 60.0)}\nlooks = {LOOKS}\n"
            f'select = "{select}"\nprices = {PRICES}\n'
            f"{'retrain = { steps = 5, lr = 0.1 }' * (name in RETRAINED)}\n"
        )
    for name, (label, method) in methods.items():
        out.append(
            f'[[methods]]\nid = "{name}"\nlabel = {label!r}\nmethod = "{method}"\n'
            f'tracks = ["A", "C"]\n'
            'space."method.outer_lr" = { low = 0.01, high = 1.0, log = true }\n'
        )
    return "\n".join(out)


def play(path: Path, store: Store, budget: str = "smoke") -> tournament.Plan:
    """Give every cell of an arena's trials and finals the record of :func:`record_of`."""
    for _ in ("trials", "finals"):
        plan = tournament.plan(path, budget=budget, store=store)
        problems = {p.id: p for p in plan.arena.problems}
        for p in (*plan.trials, *plan.finals):
            if p.record is None and p.state not in NEVER_RUN:
                store.write(*record_of(p, problems[p.column]))
    return tournament.plan(path, budget=budget, store=store)


def record_of(planned: Planned, problem: ArenaProblem) -> tuple[Record, Curve]:
    """A run whose score follows from method, step size and seed, but for those that are ``LOST``;
    Unrolling's second readout is lost on "ridge6" with seed 2."""
    cell = planned.cell
    if (cell.method, problem.id) == LOST[:2] and cell.seed in LOST[2]:
        return _lost(cell), {}
    draw = random.Random(cell.key)
    off = abs(math.log10(cell.method_settings["outer_lr"] / 0.2))
    score = QUALITY[cell.method] - 0.3 * off + 0.05 * draw.random()
    metric = tasks.get(problem.task).metric
    curve = _curve(problem, score, metric, draw)
    ends = {name.removeprefix("cost/"): column[-1] for name, column in curve.items()}
    split = "selection" if problem.select == "best_selection" else "valid"
    found = {name: {metric: Estimate(_value(problem, score - less), 1)} for name, less in
             (("test", 0.02), ("valid", 0.0), (split, 0.0))}  # fmt: skip
    if problem.retrain and (cell.method, problem.id, cell.seed) != ("bilevel", "ridge6", 2):
        found["test@retrained"] = {metric: Estimate(_value(problem, score**2 - 0.1), 1)}
    return (
        Record(
            key=cell.key, cell=cell, status="done", metrics=found, selected_step=12, steps=12,
            cost={k: ends[k] for k in ("inner_gradients", "hvps", "outer_gradients", "seconds")},
            environment={"device": "cpu", "machine": {"host": "elsewhere", "cores": 2},
                         "versions": {"torch": "2.15.0"}},
            started="2026-01-02T03:04:05+00:00", ended="2026-01-02T03:04:06+00:00",
        ),
        curve,
    )  # fmt: skip


def _value(problem: ArenaProblem, score: float) -> float:
    return problem.fixed + score * (problem.bound - problem.fixed)


def _curve(problem: ArenaProblem, score: float, metric: str, draw: random.Random) -> Curve:
    looks = range(LOOKS + 1)
    split = "selection" if problem.select == "best_selection" else "valid"
    second = 0.01 + 0.01 * draw.random()
    return {
        "step": [2 * i for i in looks],
        **{f"cost/{name}": [0] * len(looks) for name in COUNT_NAMES},
        "cost/inner_gradients": [6 * i for i in looks],
        "cost/hvps": [3 * i for i in looks],
        "cost/outer_gradients": [2 * i for i in looks],
        "cost/seconds": [second * i for i in looks],
        f"{split}/{metric}": [_value(problem, score * (1 - 0.5**i)) for i in looks],
    }


def _lost(cell: Cell) -> Record:
    return Record(
        key=cell.key, cell=cell, status="diverged", reason="the loss is nan at step 3", steps=3,
        traceback='Traceback (most recent call last):\n  File "<b>loop</b>", line 1\n',
        cost={"inner_gradients": 9.0, "seconds": 0.1},
    )  # fmt: skip
