"""One method at one size in a process of its own; see costs.py.

Reads a case as JSON from the file it is given, writes what it measured to stdout. A case without
a method is plain training.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import warnings
from pathlib import Path

LR, LOG_DECAY = 1e-3, -7.0


def limit_memory(limit: float) -> None:
    """End this process where its own memory would go above so many bytes (not on every system)."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    except (ImportError, OSError, ValueError):
        pass


def problem(case: dict, data: dict):
    """The classifier with one tanh layer: theta its weights, lam a log decay a tensor."""
    import torch
    from torch.nn import functional as F

    from metabench.contract.problem import Episode, Hyper, Problem

    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    n = len(x) // 2
    sizes = (x.shape[1], case["hidden"], 10)
    gen = torch.Generator().manual_seed(0)
    first = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        first[f"weight{i}"] = (2 * torch.rand(b, a, generator=gen) - 1) / a**0.5
        first[f"bias{i}"] = torch.zeros(b)

    class Given(Problem):
        carried = True
        hypers = tuple(Hyper(k, (), -12.0, 2.0) for k in first)

        def init_outer(self):
            return {k: torch.tensor(LOG_DECAY) for k in first}

        def init_inner(self, lam, episode):
            return dict(first)

        def decay(self, lam, theta):
            return 0.5 * sum((lam[k].exp() * v.square()).sum() for k, v in theta.items())

        def predict(self, lam, theta, batch):
            h = F.linear(batch["x"], theta["weight0"], theta["bias0"]).tanh()
            return F.linear(h, theta["weight1"], theta["bias1"])

        def loss_of_prediction(self, lam, theta, prediction, batch):
            return F.cross_entropy(prediction, batch["y"]) + self.decay(lam, theta)

        def inner_loss(self, lam, theta, batch):
            return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

        def diagonal_penalty(self, lam):
            return {k: v.exp() for k, v in lam.items()}

        def unpenalised_loss(self, lam, theta, batch):
            return F.cross_entropy(self.predict(lam, theta, batch), batch["y"])

        def outer_loss(self, lam, theta, batch):
            return F.cross_entropy(self.predict(lam, theta, batch), batch["y"])

        def episode(self, split, index):
            return Episode({"x": x[:n], "y": y[:n]}, {"x": x[n:], "y": y[n:]}, index)

    return Given()


class Plain:
    """Gradient descent on the inner loss, in torch alone and in place."""

    def __init__(self, problem) -> None:
        self.problem = problem
        self.lam, self.episode = problem.init_outer(), problem.episode("train", 0)
        theta = problem.init_inner(self.lam, self.episode)
        self.theta = {k: v.clone().requires_grad_() for k, v in theta.items()}

    def step(self) -> None:
        import torch

        leaves = list(self.theta.values())
        loss = self.problem.inner_loss(self.lam, self.theta, self.episode.inner)
        g = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            torch._foreach_add_(leaves, g, alpha=-LR)


class Run:
    """Outer steps of a method, as a run makes them."""

    def __init__(self, problem, case: dict) -> None:
        from metabench.contract.context import Context
        from metabench.contract.problem import GRADIENTS
        from metabench.contract.seeds import Seeds
        from metabench.core.registry import methods, solvers

        chosen = methods.get(case["method"])
        self.method = chosen(**case["settings"])
        solver = solvers.get(chosen.default_solver)()
        offers = GRADIENTS | {"inner_loss", "lam_in_inner_loss", "small_lam", "search_space",
                              "best_response", "prediction"}  # fmt: skip
        if lacking := self.method.needs - offers:
            raise SystemExit(f"{case['method']} needs {', '.join(sorted(lacking))}")
        self.ctx = Context(problem, solver, Seeds.of(0), frozenset(offers))
        self.state = self.method.init(self.ctx)

    def step(self) -> None:
        self.state, _ = self.method.step(self.ctx, self.state)
        self.ctx.step += 1


def per_step(f, least: float, clock) -> float:
    """Seconds a call, over as many calls as last ``least`` seconds."""
    calls, before = 0, clock()
    while calls == 0 or clock() - before < least:
        f()
        calls += 1
    return (clock() - before) / calls


def measured(case: dict, data: dict, small: dict) -> dict:
    """Peak of two outer steps, their counts, and times of outer and plain steps in turn."""
    from benchmarks.harness.turn import forget_peak, resident

    runs = (lambda p: Run(p, case)) if case["method"] else Plain
    tiny = problem({**case, "hidden": 2}, small)
    for warm in (Plain(tiny), runs(tiny)):  # code is loaded, and threads are started, by first use
        warm.step()
        warm.step()
    given = problem(case, data)
    made = runs(given)
    follows = forget_peak()
    before = resident()
    made.step()
    made.step()
    peak = resident("VmHWM")
    found: dict = {"peak_bytes": max(0, peak - before) if follows and before and peak else None}
    if case["method"]:
        counts = made.ctx.meter.counts
        start = counts.as_dict()
        made.step()
        found["counts"] = {k: v - start[k] for k, v in counts.as_dict().items()}
        found["notes"] = made.ctx.notes
        clock = time.perf_counter if case["clock"] == "wall" else time.process_time
        plain = Plain(given)
        found |= {"outer": [], "plain": []}
        for turn in range(case["repeats"] + 1):
            outer = per_step(made.step, case["block"], clock)
            inner = per_step(plain.step, case["block"], clock)
            if turn:
                found["outer"].append(outer)
                found["plain"].append(inner)
    return found


def main() -> None:
    """Measure, or say in one line why not."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    case = json.loads((folder / "case.json").read_text())
    import numpy as np
    import torch

    torch.set_num_threads(1)
    limit_memory(case["memory_gb"] * 1e9)
    try:
        with np.load(folder / "inputs.npz") as held:
            data = {"x": held["x"], "y": held["y"]}
        small = {"x": data["x"][:4, :5].copy(), "y": data["y"][:4]}
        found = measured(case, data, small)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        found = {"hole": f"needs more than {case['memory_gb']:g} GB"}
    answers.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
