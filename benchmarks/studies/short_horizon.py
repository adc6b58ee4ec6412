"""Whether a short look ahead points where a long one does, on a problem of arena-1.

    python -m benchmarks.studies.short_horizon [--seeds 10] [--out results/arena-1]

On `turned` validation and test digits are turned by up to 40 degrees, training digits are not, and
lam is the largest angle by which training turns them. Held against each other: the slope of the
validation loss of a theta trained anew (the arena's own training) by that angle, and the
hypergradient of unrolling 1, 5 or 20 steps on from a theta that was trained at the angle. Means by
seed of 12 outer steps at one theta; lam does not move. Writes short-horizon.csv, a line a seed, and
short-horizon.md, which follows from it. Short-horizon bias: Wu, Ren, Liao and Grosse, ICLR 2018,
for step sizes.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from metabench.analysis import stats

ROOT = Path(__file__).parents[2]
ARENA, PROBLEM = "arena-1", "turned"
ANGLES = (12, 25)
"""Degrees: below the 40 that validation digits are turned by."""
APART = 5
"""Degrees to either side at which theta is trained anew."""
QUARTER = 90.0
"""Degrees of lam = 1."""
RATES = (0.1, 0.3, 0.6)
"""Inner step sizes in units of 1 / L, L the arena's smoothness; above, 20 steps run away."""
TRAINED = (60, 300, 1000)
"""Inner steps before the hypergradient is taken."""
HORIZONS = (1, 5, 20)
DRAWS = 12
"""Outer steps that a seed's mean is of."""


class Line(NamedTuple):
    """A seed's mean; ``horizon`` 0 is the slope of a theta trained anew, ``rate`` and ``trained``
    are then 0, too. Values by lam: by quarter turns."""

    angle: int
    rate: float
    trained: int
    horizon: int
    seed: int
    value: float


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, and say where."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.short_horizon", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / ARENA)
    given = parser.parse_args(arguments)
    lines = []
    for seed in range(given.seeds):
        lines += measured(seed)
        print(f"seed {seed}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "short-horizon.csv").write_text(written(lines), encoding="utf-8")
    (given.out / "short-horizon.md").write_text(rendered(lines), encoding="utf-8")
    print(given.out / "short-horizon.md")
    return 0


def measured(
    seed: int,
    angles: Sequence[int] = ANGLES,
    trained: Sequence[int] = TRAINED,
    rates: Sequence[float] = RATES,
) -> Iterator[Line]:
    """The lines of a seed."""
    import torch

    from metabench.contract.context import Context
    from metabench.contract.seeds import Seeds
    from metabench.core.registry import methods, solvers, tasks
    from metabench.suites.arena import definition

    torch.set_num_threads(1)
    problem = next(p for p in definition.load(ARENA).problems if p.id == PROBLEM)
    task, seeds = tasks.get(problem.task)(**problem.set["task"]), Seeds.of(seed)
    made = task.build(seeds, torch.device("cpu"))
    ctx = Context(made, solvers.get("sgd")(), seeds, task.offers)
    assert problem.retrain is not None
    for angle in angles:
        ends = []
        for at in (angle - APART, angle + APART):
            lam = {"rotation": torch.tensor(at / QUARTER)}
            theta = after(ctx, lam, problem.retrain.steps, problem.retrain.lr)
            ends.append(made.metrics(lam, theta, made.episode("valid", 0))["loss"])
        yield Line(angle, 0.0, 0, 0, seed, (ends[1] - ends[0]) * QUARTER / (2 * APART))
        lam = {"rotation": torch.tensor(angle / QUARTER)}
        for rate in rates:
            lr = rate / problem.smoothness
            for steps in trained:
                theta = after(ctx, lam, steps, lr)
                for horizon in HORIZONS:
                    method = methods.get("bilevel")(inner_steps=horizon, inner_lr=lr)
                    found = [
                        method.hypergradient(ctx, lam, theta, made.episode("train", steps + i))
                        for i in range(DRAWS)
                    ]
                    value = stats.mean([float(f.grad["rotation"]) for f in found])
                    yield Line(angle, rate, steps, horizon, seed, value)


def after(ctx: Any, lam: Any, steps: int, lr: float) -> Any:
    """theta after inner steps from its first value, each on a batch of its own."""
    from metabench.contract import autodiff
    from metabench.contract.method import inner_loop

    episode = ctx.problem.episode("train", 0)
    theta, _ = inner_loop(
        ctx, lam, ctx.problem.init_inner(lam, episode), episode, steps=steps, lr=lr
    )
    return autodiff.detach(theta)


def written(lines: Iterable[Line]) -> str:
    """As CSV, six digits."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(Line._fields)
    table.writerows([*line[:-1], f"{line.value:.6g}"] for line in lines)
    return out.getvalue()


def read(text: str) -> list[Line]:
    """What :func:`written` wrote."""
    return [
        Line(int(a), float(b), int(c), int(d), int(e), float(f))
        for a, b, c, d, e, f in list(csv.reader(io.StringIO(text)))[1:]
    ]


def verdict(values: Sequence[float], right: float) -> str:
    """Whether the mean over seeds has the sign of ``right``: "" where its interval holds 0."""
    half = stats.half_width(values)
    if half is None or abs(stats.mean(values)) <= half:
        return ""
    return "right" if stats.mean(values) * right > 0 else "wrong"


def rendered(lines: Iterable[Line]) -> str:
    """The page."""
    by: dict[tuple[int, float, int, int], list[float]] = {}
    for line in lines:
        by.setdefault(line[:4], []).append(line.value)
    seeds = len(next(iter(by.values())))
    slope = {angle: values for (angle, _, _, horizon), values in by.items() if not horizon}
    rows, told = [], []
    for rate, trained in sorted({key[1:3] for key in by if key[3]}):
        row = [f"{rate:g} / L", f"{trained}"]
        for angle in sorted(slope):
            for horizon in HORIZONS:
                values = by[angle, rate, trained, horizon]
                said = verdict(values, stats.mean(slope[angle]))
                told.append((horizon, said))
                row.append(f"{shown(values)} {said}".strip())
        rows.append(row)
    heads = ["step size", "after"]
    heads += [f"{angle}°, {h} step{'s' * (h > 1)}" for angle in sorted(slope) for h in HORIZONS]
    counts = "; ".join(
        f"{h} step{'s' * (h > 1)}: {told.count((h, 'right'))} right, {told.count((h, 'wrong'))} "
        f"wrong, {told.count((h, ''))} not told"
        for h in HORIZONS
    )
    slopes = "\n".join(
        f"- at {angle} degrees: {shown(values)}" for angle, values in sorted(slope.items())
    )
    return (
        "# A short look ahead, on `turned` of arena-1\n\n"
        "`python -m benchmarks.studies.short_horizon`: lam is the largest angle by which training\n"
        "digits are turned; validation digits are turned by up to 40 degrees. Derivatives of the\n"
        f"validation loss by lam, a quarter turn being 1; mean over {seeds} seeds and the 95 %\n"
        "t-interval.\n\n"
        "Of a theta trained anew, by the arena's own training, which is where lam leads in the "
        f"end:\n\n{slopes}\n\n"
        "Below 0 a larger angle is better in the end. Hypergradients of unrolling, at a theta\n"
        'trained at that angle for so many steps; "right" and "wrong": the sign, beside that of\n'
        "the slope above, where the interval does not hold 0.\n\n"
        + tabulate(rows, heads, "github", disable_numparse=True)
        + f"\n\n{counts}.\n"
    )


def shown(values: Sequence[float]) -> str:
    """Mean ± half-width."""
    half = stats.half_width(values)
    return f"{stats.mean(values):.3f}" + (f" ± {half:.3f}" if half is not None else "")


if __name__ == "__main__":
    raise SystemExit(main())
