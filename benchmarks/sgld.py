"""A step of SGLD's first-order recursion against a plain step of gradient descent.

    python -m benchmarks.sgld [--rows 'mlp-*'] [--repeats 7] [--json out.json]

A classifier of 784 inputs and 10 classes on full batches, its log weight decays learned; one
thread. Both take turns in one process. A row counts only where the hypergradient agrees in float64
with the recurrence written in torch alone. Noise is part of SGLD's step, none of the plain one's.
See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

EXACT = 1e-10
"""Largest error of the float64 hypergradient, relative to its largest entry."""
GATE_STEPS = 7
LR, KAPPA, TEMPERATURE = 0.1, 0.9, 1e-4


@dataclass(frozen=True)
class Row:
    """One case: a hypergradient sample every ``thin`` steps, which may cost ``target`` plain ones.

    ``decays``: one log decay a "tensor", or one a "weight".
    """

    name: str
    hidden: int
    decays: str
    thin: int

    @property
    def target(self) -> float:
        """In plain steps."""
        return 3.0 if self.thin == 1 else 1.8


ROWS = tuple(
    Row(f"{net}-{decays}-{'every' if thin == 1 else f'every{thin}'}", hidden, decays, thin)
    for net, hidden in (("linear", 0), ("mlp", 256))
    for decays in ("tensor", "weight")
    for thin in (1, 5)
)


def problem(row: Row, n: int, dtype):
    """Random pixels, a fifth of them bright, with labels of a random linear rule."""
    import torch
    from torch.nn import functional as F

    from metabench.contract.problem import Episode, Problem

    gen = torch.Generator().manual_seed(0)
    images = torch.rand(2 * n, 784, generator=gen, dtype=dtype)
    images = torch.where(images > 0.8, images, torch.zeros((), dtype=dtype))
    labels = (images @ torch.randn(784, 10, generator=gen, dtype=dtype)).argmax(1)
    sizes = [784, row.hidden, 10] if row.hidden else [784, 10]
    first = {}
    for i, (m, k) in enumerate(itertools.pairwise(sizes)):
        first[f"weight{i}"] = torch.randn(k, m, generator=gen, dtype=dtype) / m**0.5
        first[f"bias{i}"] = torch.zeros(k, dtype=dtype)

    class Given(Problem):
        def init_outer(self):
            shape = (lambda v: v.shape) if row.decays == "weight" else (lambda v: ())
            return {k: torch.full(shape(v), -7.0, dtype=dtype) for k, v in first.items()}

        def init_inner(self, lam, episode):
            return dict(first)

        def fit(self, theta, batch):
            x = F.linear(batch["x"], theta["weight0"], theta["bias0"])
            if row.hidden:
                x = F.linear(torch.tanh(x), theta["weight1"], theta["bias1"])
            return F.cross_entropy(x, batch["y"])

        def inner_loss(self, lam, theta, batch):
            decay = sum((lam[k].exp() * v.square()).sum() for k, v in theta.items())
            return self.fit(theta, batch) + 0.5 * decay

        def outer_loss(self, lam, theta, batch):
            return self.fit(theta, batch)

        def episode(self, split, index):
            train, valid = (
                {"x": images[cut], "y": labels[cut]} for cut in (slice(n), slice(n, None))
            )
            return Episode(train, valid, index)

    return Given()


def context(row: Row, n: int, dtype):
    """As a run has it."""
    from metabench.contract.context import Context
    from metabench.contract.problem import GRADIENTS
    from metabench.contract.seeds import Seeds
    from metabench.core.registry import solvers

    solver = solvers.get("langevin")(temperature=TEMPERATURE)
    offers = GRADIENTS | {"lam_in_inner_loss"}
    return Context(problem(row, n, dtype), solver, Seeds.of(0), offers)


def method(row: Row, steps: int):
    """Every sample that thinning leaves is kept."""
    from metabench.core.registry import methods

    return methods.get("sgld")(
        inner_steps=steps, inner_lr=LR, kappa=KAPPA, burn_in=0.0, thin=row.thin
    )


class Plain:
    """The same losses and steps, in torch alone."""

    def __init__(self, ctx) -> None:
        self.ctx, self.problem = ctx, ctx.problem
        self.lam, self.episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
        self.names = list(ctx.problem.init_inner(self.lam, self.episode))
        self.theta = [v.clone() for v in ctx.problem.init_inner(self.lam, self.episode).values()]

    def step(self) -> None:
        """Gradient descent, in place."""
        import torch

        leaves = [v.detach().requires_grad_() for v in self.theta]
        named = dict(zip(self.names, leaves, strict=True))
        loss = self.problem.inner_loss(self.lam, named, self.episode.inner)
        g = torch.autograd.grad(loss, leaves)
        torch._foreach_add_(self.theta, g, alpha=-LR)

    def hypergradient(self, steps: int, thin: int):
        """The recurrence, one derivative at a time."""
        import torch

        lam = {k: v.clone().requires_grad_() for k, v in self.lam.items()}
        theta = dict(zip(self.names, self.theta, strict=True))
        h = [torch.zeros_like(v) for v in self.lam.values()]
        total, kept, block = [torch.zeros_like(v) for v in h], 0, 0
        for t in range(steps):
            block += 1
            leaves = {k: v.detach().requires_grad_() for k, v in theta.items()}
            loss = self.problem.inner_loss(lam, leaves, self.episode.inner)
            g = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
            noise = self.ctx.noise(self.episode, t, theta)
            theta = {
                k: (v - LR * d + (2 * LR * TEMPERATURE) ** 0.5 * noise[k]).detach()
                for (k, v), d in zip(theta.items(), g, strict=True)
            }
            if (steps - 1 - t) % thin:
                continue
            at = {k: v.clone().requires_grad_() for k, v in theta.items()}
            value = self.problem.outer_loss(lam, at, self.episode.outer)
            s = torch.autograd.grad(value, list(at.values()))
            inner = sum((a * b).sum() for a, b in zip(g, s, strict=True))
            product = torch.autograd.grad(inner, list(lam.values()))
            weight = LR * sum(KAPPA**i for i in range(block))
            h = [KAPPA**block * a - weight * b for a, b in zip(h, product, strict=True)]
            total, kept, block = [a + b for a, b in zip(total, h, strict=True)], kept + 1, 0
        return [v / kept for v in total]


def error(row: Row, n: int) -> float:
    """Of the hypergradient of a few steps in float64, relative to its largest entry."""
    import torch

    ctx = context(row, n, torch.float64)
    plain = Plain(ctx)
    found = method(row, GATE_STEPS).hypergradient(ctx, plain.lam, None, plain.episode).grad
    expected = plain.hypergradient(GATE_STEPS, row.thin)
    largest = max(float(v.abs().max()) for v in expected)
    gaps = [float((a - b).abs().max()) for a, b in zip(found.values(), expected, strict=True)]
    return max(gaps) / largest


def peaks(chain, lengths) -> dict[int, int | None]:
    """Length of a chain to the most bytes resident while it ran, above what was resident before
    the first; None where the system does not say."""
    from benchmarks.harness.turn import forget_peak, resident

    before, found = resident(), {}
    for steps in lengths:
        follows = forget_peak()
        chain(steps)
        after = resident("VmHWM")
        known = follows and before is not None and after is not None
        found[steps] = max(0, after - before) if known else None
    return found


def seconds(f, clock: str) -> float:
    now = time.perf_counter if clock == "wall" else time.process_time
    before = now()
    f()
    return now() - before


def measure(row: Row, n: int, repeats: int, block: int, clock: str) -> dict:
    """Times of ``block`` steps of each, in turn; the first turn warms up."""
    import torch

    ctx = context(row, n, torch.float32)
    plain = Plain(ctx)

    def chain(steps: int) -> None:
        method(row, steps).hypergradient(ctx, plain.lam, None, plain.episode)

    def descend() -> None:
        for _ in range(block):
            plain.step()

    chain(2)  # loads code, which is no part of a chain's memory
    peak_bytes = peaks(chain, (block, 4 * block))
    times: dict[str, list[float]] = {"SGLD": [], "plain step": []}
    for turn in range(repeats + 1):
        for name, f in (("SGLD", lambda: chain(block)), ("plain step", descend)):
            spent = seconds(f, clock) / block
            if turn:
                times[name].append(spent)
    ratio = median(times["SGLD"]) / median(times["plain step"])
    found = error(row, min(n, 200))
    agrees = found < EXACT
    return {
        "row": asdict(row), "examples": n, "seconds": times, "ratio": ratio,
        "target": row.target, "error_float64": found, "agrees": agrees,
        "met": ratio <= row.target if agrees else None,
        "peak_bytes": peak_bytes,
    }  # fmt: skip


def show(result: dict) -> None:
    """The row as text."""
    row = result["row"]
    net = f"{row['hidden']} hidden units" if row["hidden"] else "linear"
    print(
        f"\n{row['name']}: {net}, {result['examples']} examples, a decay a {row['decays']}, "
        f"a sample every {row['thin']} steps; random pixels"
    )
    for name, times in result["seconds"].items():
        ms = sorted(1e3 * s for s in times)
        print(f"  {name:10s} {median(ms):8.2f} ms ({ms[0]:.2f} to {ms[-1]:.2f})")
    verdict = {True: "met", False: "NOT MET", None: "not counted"}[result["met"]]
    print(
        f"  {result['ratio']:.2f} plain steps, target at most {result['target']:g}: {verdict}; "
        f"error {result['error_float64']:.0e}" + ("" if result["agrees"] else "   DOES NOT AGREE")
    )
    for steps, size in result["peak_bytes"].items():
        print(f"  peak of {steps} steps: " + ("-" if size is None else f"+{size / 1e6:.1f} MB"))


def main(arguments: list[str] | None = None) -> int:
    """Run the rows asked for; 1 where a target was missed or SGLD disagreed."""
    import torch

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sgld",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", nargs="*", default=["*"], help="names or patterns; see --list")
    add("--list", action="store_true", help="name the rows and stop")
    add("--repeats", type=int, default=5, help="timed repeats after one warm-up")
    add("--block", type=int, default=50, help="steps a repeat")
    add("--examples", type=int, default=512, help="of training and of validation")
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
