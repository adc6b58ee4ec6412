"""What an arena's problems have to give: without learning, and with much of it.

    metabench arena FILE_OR_NAME --budget BUDGET --store DIR
    python -m benchmarks.studies.arena_calibration FILE_OR_NAME --budget BUDGET --store DIR

Once an arena's trials are done, its best method on each problem, with the setting that its trials
have chosen, runs on ten seeds at the problem's cap and at five times that; beside it stands what no
outer learning has (the methods ``fixed`` and ``unlearned``) at the cap. Headroom is the gap between
no learning and the better of the two runs, in whole widths of that run's 95 % t-interval over
seeds; an arena takes problems with five or more, and states their ``fixed`` and ``bound`` from this
table. "Of the wider" takes no learning's interval where that is wider, as where every seed draws
data of its own, which all methods share: no rule rests on it. Runs without numbers are counted and
left out of the means. Seconds are wall seconds of a run at the cap, evaluations included. Finished
cells are read, not run. Writes calibration.json and calibration.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tabulate import tabulate

from metabench.analysis import stats
from metabench.analysis.arena.scores import filled, finals_scores, means
from metabench.api.arena import tournament
from metabench.api.arguments import open_store
from metabench.cli.progress import view
from metabench.core.errors import MetabenchError
from metabench.core.text import listed
from metabench.store.store import Store
from metabench.suites import planning
from metabench.suites.arena.definition import AS_SHIPPED, ArenaProblem
from metabench.suites.planning import NEVER_RUN, Planned

HERE = Path(__file__).parent
WITHOUT = ("fixed", "unlearned")
"""Ids of methods that learn nothing outside."""
SEEDS = range(10)
ROUNDING = 1e-12
LONG = 5.0
"""Caps that a long run may cost."""
LEAST = 5.0
"""The headroom that a problem is to have."""


@dataclass(frozen=True)
class Row:
    """One problem. ``fixed``, ``best`` and ``long`` are means in the task's metric, each with the
    half-width of its interval; ``lost`` counts runs of the best method without numbers.
    ``headroom`` and ``of_the_wider`` are None where no interval has a width."""

    problem: str
    metric: str
    goal: str
    seeds: int
    fixed: float
    fixed_half: float
    method: str
    best: float
    best_half: float
    long: float
    long_half: float
    lost: int
    headroom: float | None
    of_the_wider: float | None
    seconds: float


def headroom(fixed: float, best: float, halves: Sequence[float]) -> float | None:
    """The gap in widths of the widest of the intervals; negative where ``best`` is worse, None
    where the width is rounding alone."""
    width, gap = 2 * max(halves), best - fixed
    return gap / width if width > ROUNDING * abs(gap) else None


def leaders(plan: tournament.Plan) -> dict[str, tuple[str, str]]:
    """Problem to the ids of the best method without and with outer learning, by the finals; by the
    trials where no final has been played. Problems that lack either are left out."""
    if any(p.record is not None for p in plan.finals):
        metrics = tournament.metrics(plan.arena)
        played = [p for p in plan.finals if p.record is not None]
        found = finals_scores(plan.arena, played, metrics)
        scores = {
            (row, name): stats.mean(filled(values))
            for row, of in found.items()
            if not row.endswith(AS_SHIPPED)
            for name, values in of.items()
        }
    else:
        scores = {
            pair: max(means(of)) for pair, of in plan.scores.items()
        }  # fmt: skip
    out = {}
    for problem in plan.arena.problems:
        here = {row: s for (row, name), s in scores.items() if name == problem.id}
        without = {row: s for row, s in here.items() if row in WITHOUT}
        others = {row: s for row, s in here.items() if row not in WITHOUT}
        if without and others:
            out[problem.id] = (
                max(without, key=without.__getitem__),
                max(others, key=others.__getitem__),
            )
    return out


def runs(plan: tournament.Plan, budget: str, store: Store) -> dict[tuple[str, str], list[Planned]]:
    """Problem and "fixed", "best" or "long" to the cells of its row, done or not."""
    rules = plan.arena.budget(budget)
    methods = {m.id: m for m in plan.arena.methods}
    records, found = store.records(), leaders(plan)
    out = {}
    for problem in plan.arena.problems:
        if problem.id not in found:
            continue
        without, best = found[problem.id]
        for name, row, how in (
            ("fixed", without, rules),
            ("best", best, rules),
            ("long", best, replace(rules, stretch=LONG * rules.stretch)),
        ):
            trial = plan.chosen[row, problem.id]
            cells = plan.arena.cells(methods[row], problem, trial, how, SEEDS, "")
            out[problem.id, name] = planning.plan(cells, store, records)
    return out


def _values(problem: ArenaProblem, metric: str, played: Sequence[Planned]) -> list[float]:
    """The metric on the test split, of runs that ended with numbers."""
    found = []
    for p in played:
        if p.record is None:
            raise MetabenchError(f"{p.row}/{problem.id} seed {p.cell.seed} is not done: {p.why}")
        if p.record.status == "done":
            found.append(p.record.metrics["test"][metric].mean)
    if not found:
        raise MetabenchError(f"no run of {played[0].row}/{problem.id} ended with numbers")
    return found


def rows(plan: tournament.Plan, done: Mapping[tuple[str, str], Sequence[Planned]]) -> list[Row]:
    """A row for each problem. Raises MetabenchError where cells are not done."""
    metrics = tournament.metrics(plan.arena)
    out = []
    for problem in plan.arena.problems:
        if (problem.id, "long") not in done:
            continue
        sign = 1.0 if problem.bound > problem.fixed else -1.0
        of = {name: done[problem.id, name] for name in ("fixed", "best", "long")}
        values = {n: _values(problem, metrics[problem.id], played) for n, played in of.items()}
        mean = {n: stats.mean(v) for n, v in values.items()}
        half = {n: stats.half_width(v) or 0.0 for n, v in values.items()}
        better = max("best", "long", key=lambda n: sign * mean[n])
        ended = len(values["best"]) + len(values["long"])
        spent = [
            p.record.cost["seconds"] + p.record.cost["evaluation_seconds"]
            for p in of["best"]
            if p.record is not None
        ]
        out.append(
            Row(
                problem.id, metrics[problem.id], "max" if sign > 0 else "min", len(SEEDS),
                mean["fixed"], half["fixed"], of["best"][0].row, mean["best"], half["best"],
                mean["long"], half["long"], 2 * len(SEEDS) - ended,
                headroom(sign * mean["fixed"], sign * mean[better], [half[better]]),
                headroom(sign * mean["fixed"], sign * mean[better], [half["fixed"], half[better]]),
                stats.mean(spent),
            )
        )  # fmt: skip
    return out


def table(found: Sequence[Row], labels: Mapping[str, str]) -> str:
    """The rows in Markdown."""
    lines = [
        [
            r.problem,
            labels[r.problem],
            f"{r.metric} ({r.goal})",
            f"{r.fixed:.4g} ± {r.fixed_half:.2g}",
            f"{r.best:.4g} ± {r.best_half:.2g}",
            f"{r.long:.4g} ± {r.long_half:.2g}",
            r.method,
            f"{r.lost} of {2 * r.seeds}",
            *("no spread" if h is None else f"{h:.1f}" for h in (r.headroom, r.of_the_wider)),
            f"{r.seconds:.1f}",
        ]
        for r in found
    ]
    heads = [
        "problem", "what is learned", "metric", "without", "best", f"best, {LONG:g} caps", "by",
        "lost", "headroom", "of the wider", "seconds",
    ]  # fmt: skip
    return tabulate(lines, heads, "github")


def page(found: Sequence[Row], labels: Mapping[str, str]) -> str:
    """The table, what its columns are, and the problems below the headroom asked for."""
    below = [r.problem for r in found if r.headroom is not None and r.headroom < LEAST]
    notes = [
        f"without: no outer learning at the cap; best: the best method of the arena's finals, or "
        f"trials, at the cap and at {LONG:g} caps. Means over {found[0].seeds} seeds, ± the "
        "half-width of the 95 % interval.",
        "lost: runs of the best method without numbers, of those at both costs; means leave them "
        "out.",
        "headroom: from without to the better of the two, in whole widths of that one's interval; "
        f"{LEAST:g} or more are asked for. "
        + (f"Below that: {listed(below)}." if below else "No problem is below that."),
        "of the wider: the same in widths of the wider of the two intervals, which is that of "
        "without where every seed draws data of its own. No rule rests on it.",
        "seconds: wall seconds of a run at the cap, with evaluations.",
    ]
    return "\n".join([table(found, labels), "", *(f"- {note}" for note in notes)])


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, write the table, print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.arena_calibration",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("arena", help="an arena by name, or its .toml file")
    parser.add_argument("--budget", default="laptop")
    parser.add_argument("--store", default=None)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--out", type=Path, default=None, help="folder for the two files")
    given = parser.parse_args(arguments)
    try:
        store = open_store(given.store)
        plan = tournament.plan(given.arena, budget=given.budget, store=store)
        if not plan.finals:
            left = sum(p.record is None and p.state not in NEVER_RUN for p in plan.trials)
            raise MetabenchError(
                f"{left} trials are not done; run: metabench arena {given.arena} "
                f"--budget {given.budget}"
            )
        of = runs(plan, given.budget, store)
        cells = [p for played in of.values() for p in played]
        with view(len({p.cell.key for p in cells}), given.jobs) as listener:
            tournament.play(cells, store, given.jobs, None, listener)
        found = rows(plan, runs(plan, given.budget, store))
    except MetabenchError as error:
        print(error, file=sys.stderr)
        return 1
    text = page(found, {p.id: p.label or p.id for p in plan.arena.problems})
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "calibration.md").write_text(text + "\n")
        data = json.dumps([asdict(r) for r in found], indent=1)
        (given.out / "calibration.json").write_text(data + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
