"""What an arena's candidate problems have to give: without learning, and with much of it.

    metabench arena benchmarks/arena_candidates.toml --budget calibration --store DIR
    python -m benchmarks.arena_calibration --budget calibration --store DIR

Of each problem the table has the mean and the 95 % t-interval over the finals' seeds of what no
outer learning has (the methods ``fixed`` and ``unlearned``, their step size tuned), the best other
method and its mean, and the headroom: the gap between the two in whole widths of the wider
interval. An arena takes problems with a headroom of five or more. Seconds are wall seconds of a
run, evaluations included. Writes calibration.json and calibration.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from metabench.analysis import stats
from metabench.analysis.arena import finals_scores
from metabench.api import arena as arenas
from metabench.core.errors import MetabenchError
from metabench.suites.arena import AS_SHIPPED

HERE = Path(__file__).parent
WITHOUT = ("fixed", "unlearned")
"""Methods of the file that learn nothing outside."""


@dataclass(frozen=True)
class Row:
    """One problem. ``fixed`` and ``best`` are in the task's metric, with half-widths of intervals;
    ``headroom`` is None where no interval has a width."""

    problem: str
    metric: str
    goal: str
    seeds: int
    fixed: float
    fixed_half: float
    method: str
    best: float
    best_half: float
    headroom: float | None
    seconds: float


def headroom(fixed: float, best: float, halves: Sequence[float]) -> float | None:
    """The gap in widths of the widest of the intervals; negative where ``best`` is worse."""
    width = 2 * max(halves)
    return (best - fixed) / width if width else None


def rows(plan: arenas.Plan) -> list[Row]:
    """A row for each problem whose finals are there. Raises MetabenchError where some are not."""
    metrics = arenas.metrics(plan.arena)
    scores, _ = finals_scores(plan.arena, plan.finals, metrics)
    spent: dict[str, list[float]] = {}
    for p in plan.finals:
        if p.record is not None:
            cost = p.record.cost
            spent.setdefault(p.column, []).append(cost["seconds"] + cost["evaluation_seconds"])
    out = []
    for problem in plan.arena.problems:
        here = {
            row: list(of[problem.id])
            for row, of in scores.items()
            if problem.id in of and not row.endswith(AS_SHIPPED)
        }
        without = [row for row in here if row in WITHOUT]
        others = [row for row in here if row not in WITHOUT]
        if not without or not others:
            continue
        sign = 1.0 if problem.bound > problem.fixed else -1.0
        base = here[max(without, key=lambda row: stats.mean(here[row]))]
        best = max(others, key=lambda row: stats.mean(here[row]))
        mean = [stats.mean(base), stats.mean(here[best])]
        halves = [stats.half_width(base) or 0.0, stats.half_width(here[best]) or 0.0]
        out.append(
            Row(
                problem.id, metrics[problem.id], "max" if sign > 0 else "min", len(base),
                sign * mean[0], halves[0], best, sign * mean[1], halves[1],
                headroom(mean[0], mean[1], halves), stats.mean(spent[problem.id]),
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
            r.method,
            "no spread" if r.headroom is None else f"{r.headroom:.1f}",
            f"{r.seconds:.1f}",
        ]
        for r in found
    ]
    heads = ["problem", "what is learned", "metric", "without", "best", "by", "headroom", "seconds"]
    return tabulate(lines, heads, "github")


def main(arguments: list[str] | None = None) -> int:
    """Read the finals, write the table, print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arena_calibration", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("file", type=Path, nargs="?", default=HERE / "arena_candidates.toml")
    parser.add_argument("--budget", default="calibration")
    parser.add_argument("--store", default=None)
    parser.add_argument("--out", type=Path, default=None, help="folder for the two files")
    given = parser.parse_args(arguments)
    try:
        plan = arenas.plan(given.file, budget=given.budget, store=given.store)
        if not plan.finals:
            left = sum(p.record is None for p in plan.trials)
            raise MetabenchError(
                f"{left} trials are not done; run: metabench arena {given.file} "
                f"--budget {given.budget}"
            )
        found = rows(plan)
    except MetabenchError as error:
        print(error, file=sys.stderr)
        return 1
    text = table(found, {p.id: p.label or p.id for p in plan.arena.problems})
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "calibration.md").write_text(text + "\n")
        data = json.dumps([asdict(r) for r in found], indent=1)
        (given.out / "calibration.json").write_text(data + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
