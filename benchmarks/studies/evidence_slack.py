"""How much is lost when the log evidence is estimated from batches: slack over their size.

    python -m benchmarks.studies.evidence_slack
    python -m benchmarks.studies.evidence_slack --examples 200 --sizes 10 100 --points 5 --repeats 2

A small MLP on MNIST digits is trained to the MAP once; then, at that theta and for a grid of
prior precisions, each estimate of log det(P0^-1 P) is held against the exact one (of all examples
and outputs). The slack is half of what an estimate has more, by example: what it takes from the log
evidence, in nats. Bounds have a slack of 0 or more on average; KFAC is no bound. Writes slack.json,
slack.md and slack.png. After the figure of Immer et al., ICML 2023 (arXiv 2306.03968); no number of
theirs could be found to stand beside. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

OUT = Path(__file__).parents[2] / "results" / "evidence-slack"
ESTIMATORS = {
    "NTK, all outputs": ("ntk", "all", False),
    "NTK, independent outputs": ("ntk", "independent", False),
    "NTK, one output": ("ntk", "one", False),
    "NTK, one output each": ("ntk", "one each", False),
    "NTK, all outputs, grouped": ("ntk", "all", True),
    "KFAC": ("kfac", "all", False),
    "diagonal": ("diagonal", "all", False),
}
"""Label to form, outputs, and whether batches hold one class each."""
LOW, HIGH = 1e-4, 1e4
"""Ends of the grid of precisions, as in the authors' script."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, and say where."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.evidence_slack", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 50, 100, 250, 500, 1000])
    parser.add_argument("--points", type=int, default=20, help="precisions of the grid")
    parser.add_argument(
        "--repeats", type=int, default=3, help="batches of 100 or more; of fewer, more"
    )
    parser.add_argument(
        "--most-rows", type=int, default=2000, help="of a kernel; larger are left out"
    )
    parser.add_argument("--width", type=int, default=20, help="hidden units")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    said = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.studies.evidence_slack", *said])
    found = measured(given)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "slack.json").write_text(
        json.dumps({"command": command, **found}, indent=1) + "\n"
    )
    (given.out / "slack.md").write_text(table(found, command))
    draw(found, given.out / "slack.png")
    print(given.out / "slack.md")
    return 0


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Slack by estimator, size and precision: means over batches, in nats an example."""
    import torch

    from metabench.contract.seeds import generator
    from metabench.testing import build, context

    torch.set_num_threads(1)
    settings = {"n_train": given.examples, "validation": 0.0, "shrink": 4, "width": given.width}
    task = build("task", "layerwise_prior", precisions="one", n_test=1000, **settings)
    ctx = context(task, "adam", seed=given.seed)
    fixed = build("method", "fixed", inner_steps=50, inner_lr=0.01)
    state = fixed.init(ctx)
    for ctx.step in range(40):
        state, _ = fixed.step(ctx, state)
    problem, theta = ctx.problem, state.theta
    grid = torch.logspace(math.log10(LOW), math.log10(HIGH), given.points, dtype=torch.float64)
    n = given.examples
    exact = volumes(problem, theta, torch.arange(n), "ntk", "all", grid, None)
    out: dict[str, Any] = {"examples": n, "weights": sum(v.numel() for v in theta.values())}
    out |= {"precisions": grid.tolist(), "exact": exact.tolist(), "slack": {}}
    for label, (form, outputs, grouped) in ESTIMATORS.items():
        out["slack"][label] = {}
        for size in given.sizes:
            if size > (n // 10 if grouped else n):  # a class has a tenth of the digits
                continue
            # Small batches vary more, and cost less.
            repeats = 1 if size == n and outputs == "all" else given.repeats * max(1, 100 // size)
            total = torch.zeros_like(grid)
            for i in range(repeats):
                gen = generator(given.seed, label, size, i)
                chosen = picked(problem, size, grouped, gen)
                scale = n / len(chosen)
                total += scale * volumes(problem, theta, chosen, form, outputs, grid, gen)
            slack = (total / repeats - exact) / (2 * n)
            out["slack"][label][str(size)] = slack.tolist()
            print(f"{label}, M = {size}: {float(slack.mean()):.4f}", flush=True)
    return out


def picked(problem, size: int, grouped: bool, gen):
    """Indices of a batch, of all examples or of one class."""
    import torch

    among = torch.arange(problem.example_count)
    if grouped:
        y = problem.parts["train"]["y"]
        among = among[y == y[torch.randint(len(y), (1,), generator=gen)]]
    return among[torch.randperm(len(among), generator=gen)[:size]]


def volumes(problem, theta, chosen, form: str, outputs: str, grid, gen):
    """log det(P0^-1 P) of a batch for every precision of the grid [points]: the rows are taken
    once, and divided by the root of each precision."""
    import torch

    from metabench.hypergradients import evidence

    lam, batch = problem.init_outer(), problem.take(chosen)
    f = evidence.predictions(problem, lam, theta, batch)
    n, c = f.shape
    cotangents, times = evidence.root(f, None), 1
    if outputs.startswith("one"):
        drawn = torch.randint(c, (n if outputs == "one each" else 1,), generator=gen).expand(n)
        cotangents, times = cotangents[torch.arange(n), drawn][:, None], c
    rows = evidence.pulled_back(problem, lam, theta, batch, cotangents)
    parts = [{k: v.flatten(0, 1).double() for k, v in rows.items()}]
    if outputs == "independent":
        parts = [{k: v[:, i].double() for k, v in rows.items()} for i in range(c)]
    return times * torch.stack([by_precision(part, form, grid) for part in parts]).sum(0)


def by_precision(rows, form: str, grid):
    """log det(I + A'A) of rows that are not divided by the precision yet, for each [points]; of the
    kernel, from the smaller of its two sides."""
    import torch

    from metabench.hypergradients import evidence

    if form != "ntk":
        divided = ({k: v * d.rsqrt() for k, v in rows.items()} for d in grid)
        return torch.stack([evidence.log_det(part, form) for part in divided])
    a = torch.cat([v.flatten(1) for v in rows.values()], 1)
    values = torch.linalg.eigvalsh(a @ a.t() if a.shape[0] < a.shape[1] else a.t() @ a).clamp_min(0)
    return (values / grid[:, None]).log1p().sum(1)


def table(found: dict[str, Any], command: str) -> str:
    """Mean slack over the grid, by estimator and size."""
    slack = found["slack"]
    sizes = sorted({int(s) for by in slack.values() for s in by})
    rows = [
        [
            label,
            *(f"{round(mean(by[str(s)]), 4) + 0.0:.4f}" if str(s) in by else "—" for s in sizes),
        ]
        for label, by in slack.items()
    ]
    drawn = tabulate(
        rows, ["estimator", *(f"M = {s}" for s in sizes)], "github", disable_numparse=True
    )
    return (
        f"# Slack of the log evidence, in nats an example\n\nMean over {len(found['precisions'])} "
        f"precisions from {LOW:g} to {HIGH:g}; {found['examples']} MNIST digits of 7x7 pixels, an\n"
        f"MLP of {found['weights']} weights. KFAC is no bound: its slack may be negative. Grouped "
        f"batches hold one class.\n\n{drawn}\n\nMade by `{command}`.\n"
    )


def mean(values: list[float]) -> float:
    """Of some numbers."""
    return sum(values) / len(values)


def draw(found: dict[str, Any], to: Path) -> None:
    """Slack over the size of batches, and over the precision at one size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    sizes = sorted({int(s) for by in found["slack"].values() for s in by})
    at = str(100 if 100 in sizes else sizes[0])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    for marker, (label, by) in zip("os^DvPX", found["slack"].items(), strict=True):
        left.plot(
            [int(s) for s in by], [mean(v) for v in by.values()], marker=marker, ms=4, label=label
        )
        if at in by:
            right.plot(found["precisions"], by[at], marker=marker, ms=3)
    left.set(xscale="log", xlabel="examples of a batch, M", ylabel="slack, nats an example")
    left.set_yscale("symlog", linthresh=0.1)
    left.set_ylim(bottom=0)
    left.set_title("mean over the grid of precisions", fontsize=9)
    right.set(xscale="log", xlabel="prior precision", ylabel="slack, nats an example")
    right.set_title(f"M = {at}", fontsize=9)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.savefig(to, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
