"""Arenas that have been played without running anything: records whose numbers a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from metabench.analysis.arena import scores as analysis
from metabench.core.cell import Cell
from metabench.core.costs import COUNT_NAMES, PRICED
from metabench.store.record import RETRAINED, Curve, Estimate, Record
from metabench.suites.arena.definition import AS_SHIPPED, Arena
from metabench.suites.planning import Planned
from metabench.suites.suite import SuiteCell

Score = Callable[[str, str, int, int], float | None]
"""Method, problem, trial and seed to the test score; None for a run without numbers."""
LOOKS = 10
CAP = 100.0
TUNING = (100, 101)


def arena(
    problems: Sequence[str],
    methods: Sequence[str],
    *,
    trials: int = 4,
    seeds: int = 3,
    alone: Sequence[str] = (),
    track: str = "A",
    anew: Sequence[str] = (),
    tracks: Mapping[str, str] | None = None,
) -> Arena:
    """Scores are raw values; the methods in ``alone`` have no space, hence one trial; the problems
    in ``anew`` have the second readout; ``tracks``: those of problems that are in another one."""
    tracks = tracks or {}
    prices = {**dict.fromkeys(PRICED, 1.0), "function_evaluations": 0.5}
    space = {"method.outer_lr": {"low": 0.01, "high": 1.0, "log": True}}
    return TypeAdapter(Arena).validate_python(
        {
            "kind": "arena",
            "name": "small",
            "title": "Small problems",
            "budgets": {
                "smoke": {"trials": trials, "tuning_seeds": [*TUNING], "seeds": [*range(seeds)]}
            },
            "problems": [
                {
                    "id": name, "track": tracks.get(name, track), "task": "quadratic",
                    "fixed": 0.0, "bound": 1.0, "cap": CAP, "looks": LOOKS,
                    "select": "best_valid", "prices": prices,
                    "set": {"task": {"dim": 2 + i}},
                    **({"retrain": {"steps": 5, "lr": 0.1}} if name in anew else {}),
                }
                for i, name in enumerate(problems)
            ],
            "methods": [
                {
                    "id": name, "method": "bilevel", "label": name.title(),
                    "tracks": sorted({track, *tracks.values()}),
                    "set": {"method": {"inner_steps": 2 + i}},
                    "space": {} if name in alone else space,
                }
                for i, name in enumerate(methods)
            ],
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Played:
    """An arena's trials and finals with their records."""

    arena: Arena
    trials: list[Planned]
    finals: list[Planned]
    scores: analysis.Trials
    chosen: dict[tuple[str, str], int]
    metrics: dict[str, str]
    curves: dict[str, Curve]

    def curve(self, record: Record) -> Curve:
        """The learning curve of a record."""
        return self.curves[record.key]


def played(arena: Arena, score: Score, *, gap: float = 0.0, lift: float = 0.0) -> Played:
    """All of it played: tuning scores are test scores plus ``gap``, and so are those of validation;
    those of a theta trained anew are test scores plus ``lift``;
    each score is come to in even steps over ten looks, at 10 inner gradients from one to the
    next."""
    metrics = {p.id: "loss" for p in arena.problems}
    curves: dict[str, Curve] = {}

    def with_records(cells: Sequence[SuiteCell], trial_of: Callable[[str, str], int]) -> list:
        out = []
        for one in cells:
            method = one.row.partition("#")[0].removesuffix(AS_SHIPPED)
            value = score(method, one.column, trial_of(one.row, one.column), one.cell.seed)
            record = _record(one.cell, value, gap, lift)
            curves[record.key] = _curve(value, gap)
            state = record.status
            out.append(Planned(one.row, one.column, one.cell, state, record=record))
        return out

    trials = with_records(
        arena.trials("smoke"), lambda row, _: int(row.partition("#")[2])
    )  # fmt: skip
    scores = analysis.trials_of(arena, trials, metrics)
    chosen = dict(analysis.choose(scores))
    finals = with_records(
        arena.finals("smoke", chosen),
        lambda row, problem: 0 if row.endswith(AS_SHIPPED) else chosen[row, problem],
    )
    return Played(arena, trials, finals, scores, chosen, metrics, curves)


def _record(cell: Cell, value: float | None, gap: float, lift: float) -> Record:
    if value is None:
        return Record(cell.key, cell, "diverged", "the loss is nan")
    metrics = {"test": {"loss": Estimate(value, 1)}, "valid": {"loss": Estimate(value + gap, 1)}}
    if "retrain_steps" in cell.budget:
        metrics["test" + RETRAINED] = {"loss": Estimate(value + lift, 1)}
    return Record(cell.key, cell, "done", metrics=metrics, selected_step=1, steps=LOOKS)


def _curve(value: float | None, gap: float) -> Curve:
    last = 0.0 if value is None else value + gap
    looks = range(LOOKS + 1)
    return {
        "step": [float(i) for i in looks],
        "valid/loss": [last * i / LOOKS for i in looks],
        **{f"cost/{name}": [0.0 for _ in looks] for name in COUNT_NAMES},
        "cost/inner_gradients": [CAP / LOOKS * i for i in looks],
    }
