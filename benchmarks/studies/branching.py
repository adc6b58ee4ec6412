"""Where learning branches: exponents of a map and of a game, drawn.

    python -m benchmarks.studies.branching
    python -m benchmarks.studies.branching --seed 3 --distance 10 --steps 300

Left: the logistic map x -> r x (1 - x), where it ends for each r, and its Lyapunov exponent, which
crosses 0 where it becomes chaotic and is ln 2 at r = 4. Middle and right: the iterated prisoners'
dilemma, 20 pairs that learn, from starts drawn at random and from the branches of the ridge rider;
the mean loss of a pair by inner step, green where it ends below 1.5. It ends at 2 in defection and
at 1 in tit-for-tat; a pair may also end in neither. Writes branches.png and branches.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

OUT = Path(__file__).parents[2] / "results" / "ridge-rider"
RATE = 3.0
"""Inner step size, as in the suite ridge-rider."""


def logistic(r: float, before: int, after: int) -> tuple[list[float], float]:
    """Where the map goes after ``before`` steps, and the exponent of the ``after`` next ones."""
    from metabench.methods.ridge_rider import spectrum

    x, path = 0.1234, []
    for t in range(before + after):
        if t >= before:
            path.append(x)
        x = r * x * (1 - x)
    slopes = torch.tensor([r - 2 * r * y for y in path], dtype=torch.float64)
    return path, float(spectrum(slopes.view(-1, 1, 1)))


def learned(method: str, seed: int, steps: int, **settings: Any) -> dict[str, Any]:
    """Mean loss of each pair by inner step [steps + 1, branches], and how the pairs end."""
    from metabench.contract.context import Context
    from metabench.contract.seeds import Seeds
    from metabench.core.registry import methods, solvers, tasks

    task, seeds = tasks.get("prisoners")(), Seeds.of(seed)
    problem = task.build(seeds, torch.device("cpu"))
    ctx = Context(problem, solvers.get("sgd")(), seeds, task.offers)
    state = methods.get(method)(inner_steps=steps, inner_lr=RATE, **settings).init(ctx)
    theta, curve = problem.init_inner(state.lam, problem.episode("test", 0)), []
    for _ in range(steps + 1):
        curve.append(problem.losses(theta).mean(0).tolist())
        g = problem.field(state.lam, theta, {})
        last, theta = theta, {k: theta[k] - RATE * g[k] for k in theta}
    return {"curve": curve, **problem.metrics(state.lam, last, problem.episode("test", 0))}


def draw(found: dict[str, Any], path: Path) -> None:
    """The three panels."""
    from metabench.core.environment import drawing
    from metabench.reports.figures.style import COLOURS, styled

    drawing.matplotlib()
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(10, 2.8), layout="constrained")
        left, *games = figure.subplots(1, 3)
        rates = found["logistic"]["r"]
        for r, ends in zip(rates, found["logistic"]["ends"], strict=True):
            left.plot([r] * len(ends), ends, ",", color="#888888", rasterized=True)
        left.set(xlabel="r", ylabel="x", title="Logistic map")
        other = left.twinx()
        other.plot(rates, found["logistic"]["exponents"], color=COLOURS[1], linewidth=0.8)
        other.axhline(math.log(2), color=COLOURS[1], linestyle=":", linewidth=0.8)
        other.set_ylabel("exponent (dotted: ln 2)", color=COLOURS[1])
        other.set_ylim(-2, 1)
        for axes, (name, title) in zip(games, TITLES.items(), strict=True):
            curves = torch.tensor(found[name]["curve"]).T
            for one in curves:
                axes.plot(one, color=COLOURS[2 if float(one[-1]) < 1.5 else 0], linewidth=0.8)
            axes.set(xlabel="inner step", ylabel="mean loss of a pair", title=title)
            axes.set_xscale("symlog", linthresh=1)
            axes.set_ylim(0.9, 2.2)
        figure.savefig(path, dpi=90)


TITLES = {"restarts": "20 restarts", "branches": "20 branches"}


def main(arguments: list[str] | None = None) -> int:
    """Run, draw, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.branching", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distance", type=float, default=10.0, help="of the branches")
    parser.add_argument("--steps", type=int, default=300, help="inner steps of the game")
    parser.add_argument("--rates", type=int, default=400, help="values of r")
    parser.add_argument("--length", type=int, default=400, help="steps of the map")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if not 0 < given.distance < math.inf:
        parser.error(f"--distance is {given.distance:g}: it must be above 0 and finite")
    for name in ("steps", "rates", "length"):
        if getattr(given, name) < 2:
            parser.error(f"--{name} is {getattr(given, name)}: at least 2")
    said = sys.argv[1:] if arguments is None else arguments
    rates = [2.8 + 1.2 * i / (given.rates - 1) for i in range(given.rates)]
    paths = [logistic(r, given.length // 2, given.length) for r in rates]
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.studies.branching", *said]),
        "logistic": {
            "r": rates,
            "ends": [ends[-100:] for ends, _ in paths],
            "exponents": [exponent for _, exponent in paths],
        },
        "restarts": learned("fixed", given.seed, given.steps),
        "branches": learned("ridge_rider", given.seed, given.steps, distance=given.distance),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    draw(found, given.out / "branches.png")
    del found["logistic"]["ends"]
    for name in TITLES:
        found[name]["ends"] = found[name].pop("curve")[-1]
    (given.out / "branches.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, title in TITLES.items():
        print(f"{title}: {found[name]['solutions']:.0f} of 2 solutions")
    print(f"exponent at r = 4: {found['logistic']['exponents'][-1]:.6f}, ln 2 = {math.log(2):.6f}")
    print(f"wrote {given.out / 'branches.png'} and branches.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
