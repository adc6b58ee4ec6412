"""The outer step of V-PBGD against a plain step of gradient descent on the inner loss.

    python -m benchmarks.penalty [--rows 'linear-*'] [--repeats 7] [--json out.json]

Data hyper-cleaning of the penalty paper: 5,000 training and 5,000 validation images, full batches,
one thread. Both take turns in one process. A row counts only where V-PBGD's steps agree in float64
with the algorithm written in torch alone. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

EXACT = 1e-10
"""Largest error after the gate's steps in float64, relative to the largest entry."""
GATE_STEPS = 3
OUTER_LR, THETA_LR, INNER_LR = 0.1, 0.1, 0.01
GAMMA, RAMP = 0.2, 2


@dataclass(frozen=True)
class Row:
    """One case: T steps of omega an outer step, which may cost T + 3 plain steps."""

    name: str
    network: str
    steps: int

    @property
    def target(self) -> float:
        """In plain steps."""
        return self.steps + 3.0


ROWS = tuple(
    Row(f"{network}-{steps}", network, steps) for network in ("linear", "mlp") for steps in (1, 5)
)


def context(row: Row, n: int, dtype: str):
    """metabench's own problem and context, and what the images are."""
    import torch

    from metabench.contract.context import Context
    from metabench.contract.seeds import Seeds
    from metabench.core.errors import DataMissing
    from metabench.core.registry import solvers, tasks
    from metabench.datasets import locate

    task = tasks.get("hyper_cleaning")(
        network=row.network, n_train=n, n_valid=n, n_test=1, dtype=dtype
    )
    seeds, device = Seeds.of(0), torch.device("cpu")
    try:
        locate.find("mnist")
        problem, kind = task.build(seeds, device), "MNIST"
    except DataMissing:
        from metabench.tasks.hyper_cleaning import HyperCleaningProblem

        gen = torch.Generator().manual_seed(0)
        images = torch.rand(2 * n + 1, 1, 28, 28, generator=gen)
        images = torch.where(images > 0.8, images, torch.zeros(()))
        labels = torch.randint(10, (2 * n + 1,), generator=gen)
        problem = HyperCleaningProblem(task, seeds, device, (images, labels))
        kind = "random pixels, a fifth of them bright (no MNIST here)"
    return Context(problem, solvers.get("sgd")(), seeds, task.offers), kind


def method(row: Row):
    """V-PBGD with the paper's step sizes."""
    from metabench.core.registry import methods

    return methods.get("pbgd")(
        inner_steps=row.steps, inner_lr=INNER_LR, theta_lr=THETA_LR, outer_lr=OUTER_LR,
        gamma_max=GAMMA, ramp_steps=RAMP,
    )  # fmt: skip


class Plain:
    """The same losses and steps, in torch alone."""

    def __init__(self, problem) -> None:
        self.train, self.valid = (
            (problem.parts[k]["x"], problem.parts[k]["y"]) for k in ("train", "valid")
        )
        self.x = problem.init_outer()["logit"]
        self.y = [v.clone() for v in problem.start.values()]
        self.omega = [v.clone() for v in self.y]

    def losses(self, y, part):
        import torch
        from torch.nn import functional as F

        h, labels = part
        if len(y) == 4:
            h, y = torch.sigmoid(F.linear(h, *y[:2])), y[2:]
        return F.cross_entropy(F.linear(h, *y), labels, reduction="none")

    def inner(self, x, y):
        return (x.sigmoid() * self.losses(y, self.train)).mean()

    def sgd(self, y):
        """One plain step."""
        import torch

        y = [v.requires_grad_() for v in y]
        g = torch.autograd.grad(self.inner(self.x, y), y)
        return [(v.detach() - INNER_LR * d) for v, d in zip(y, g, strict=True)]

    def vpbgd(self, steps: int, gamma: float) -> None:
        """The algorithm, one gradient at a time."""
        import torch

        for _ in range(steps):
            self.omega = self.sgd(self.omega)
        x, y = self.x.requires_grad_(), [v.requires_grad_() for v in self.y]
        f = self.losses(y, self.valid).mean()
        gap = self.inner(x, y) - self.inner(x, self.omega)
        gx, *gy = torch.autograd.grad(f + gamma * gap, [x, *y])
        s = min(1 / gamma, 1.0) if gamma else 1.0
        self.x = (x - OUTER_LR * s * gx).detach()
        self.y = [(v - THETA_LR * s * d).detach() for v, d in zip(y, gy, strict=True)]


def error(row: Row, n: int) -> float:
    """Of lam, theta and omega after a few steps in float64, relative to their largest entries."""
    ctx, _ = context(row, n, "float64")
    own, plain = method(row), Plain(ctx.problem)
    state = own.init(ctx)
    for k in range(GATE_STEPS):
        ctx.step = k
        plain.vpbgd(row.steps, own.gamma(k))
        state, _ = own.step(ctx, state)
    pairs = [(state.lam["logit"], plain.x)]
    pairs += zip(state.theta.values(), plain.y, strict=True)
    pairs += zip(state.memory["omega"].values(), plain.omega, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def seconds(f, clock: str) -> float:
    now = time.perf_counter if clock == "wall" else time.process_time
    before = now()
    f()
    return now() - before


def measure(row: Row, n: int, repeats: int, block: int, clock: str) -> dict:
    """Times of ``block`` steps of each, in turn; the first turn warms up."""
    ctx, kind = context(row, n, "float32")
    own, plain = method(row), Plain(ctx.problem)
    state = own.init(ctx)

    def outer() -> None:
        nonlocal state
        for _ in range(block):
            state, _ = own.step(ctx, state)
            ctx.step += 1

    def inner() -> None:
        for _ in range(block):
            plain.omega = plain.sgd(plain.omega)

    times: dict[str, list[float]] = {"V-PBGD": [], "plain step": []}
    for turn in range(repeats + 1):
        for name, f in (("V-PBGD", outer), ("plain step", inner)):
            spent = seconds(f, clock) / block
            if turn:
                times[name].append(spent)
    ratio = median(times["V-PBGD"]) / median(times["plain step"])
    found = error(row, min(n, 500))
    agrees = found < EXACT
    return {
        "row": asdict(row), "inputs": kind, "examples": n, "seconds": times, "ratio": ratio,
        "target": row.target, "error_float64": found, "agrees": agrees,
        "met": ratio <= row.target if agrees else None,
    }  # fmt: skip


def show(result: dict) -> None:
    """The row as text."""
    row = result["row"]
    print(
        f"\n{row['name']}: {row['network']} network, {result['examples']} examples, "
        f"{row['steps']} steps of omega; {result['inputs']}"
    )
    for name, times in result["seconds"].items():
        ms = sorted(1e3 * s for s in times)
        print(f"  {name:10s} {median(ms):8.2f} ms ({ms[0]:.2f} to {ms[-1]:.2f})")
    verdict = {True: "met", False: "NOT MET", None: "not counted"}[result["met"]]
    print(
        f"  {result['ratio']:.2f} plain steps, target at most {result['target']:g}: {verdict}; "
        f"error {result['error_float64']:.0e}" + ("" if result["agrees"] else "   DOES NOT AGREE")
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the rows asked for; 1 where a target was missed or V-PBGD disagreed."""
    import torch

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.penalty",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", nargs="*", default=["*"], help="names or patterns; see --list")
    add("--list", action="store_true", help="name the rows and stop")
    add("--repeats", type=int, default=5, help="timed repeats after one warm-up")
    add("--block", type=int, default=20, help="steps a repeat")
    add("--examples", type=int, default=5000, help="of training and of validation")
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine")
    add("--json", type=Path, metavar="OUT", help="write everything measured there")
    options = parser.parse_args(arguments)
    rows = [r for r in ROWS if any(fnmatch.fnmatch(r.name, p) for p in options.rows)]
    if options.list or not rows:
        print("\n".join(r.name for r in ROWS))
        return 0 if options.list else 2
    torch.set_num_threads(1)
    results = []
    for row in rows:
        result = measure(row, options.examples, options.repeats, options.block, options.clock)
        results.append(result)
        show(result)
        if options.json:
            text = json.dumps({"torch": torch.__version__, "clock": options.clock, "rows": results})
            options.json.write_text(text + "\n")
    return 1 if any(r["met"] is not True for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
