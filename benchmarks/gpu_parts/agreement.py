"""Part "agreement": the GPU's numbers against the CPU's, in float64.

Hypergradients of every way of taking one, on tasks that need no data, and a short run; then what
float32 and TF32 make of the few-shot network's meta-gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_parts.bench import Bench, apart
from metabench.contract.context import Context
from metabench.contract.method import State
from metabench.contract.parallel.at_once import Graphs, cuda_graph, rerun
from metabench.contract.seeds import Seeds
from metabench.core.registry import methods, solvers, tasks
from metabench.run import determinism

EXACT = 1e-10
"""Largest difference of a float64 hypergradient, over its largest entry."""
RUN = 1e-8
"""The same of lam after a short run: differences grow from step to step."""
STEPS = 5
CPU = torch.device("cpu")
GLYPHS = {"ways": 3, "queries": 2, "meta_batch": 4, "filters": 8, "dtype": "float64"}
PRIOR = {**GLYPHS, "formulation": "prior"}
REPRESENTATION = {**GLYPHS, "formulation": "representation"}


@dataclass(frozen=True)
class Case:
    """A method on a task; ``engine`` on the device, "loop" on the CPU."""

    method: str
    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    task_settings: dict[str, Any] = field(default_factory=dict)
    solver: str = "sgd"
    engine: str = "loop"
    quick: bool = True
    """Whether it is run in miniature too."""

    @property
    def name(self) -> str:
        """For the table."""
        own = {k: v for k, v in self.settings.items() if k not in ("inner_lr", "indefinite")}
        told = ", ".join([self.method, *(f"{k} {v}" for k, v in own.items()), self.engine])
        return f"{self.task}: {told}"


MAML = {"inner_steps": 2, "inner_lr": 0.1}
IFT = {"inner_steps": 5, "inner_lr": 0.05, "terms": 5}
CASES = (
    Case("maml", "glyphs", MAML, GLYPHS),
    Case("maml", "glyphs", MAML, GLYPHS, engine="vmap"),
    Case("maml", "glyphs", MAML, GLYPHS, engine="graph"),
    Case("maml", "glyphs", {**MAML, "order": "first"}, GLYPHS, engine="graph", quick=False),
    Case("maml", "glyphs", {**MAML, "meta_sgd": True}, GLYPHS, engine="graph", quick=False),
    Case("bilevel", "glyphs", {"inner_steps": 3, "memory": "graph"}, REPRESENTATION,
         engine="graph", quick=False),
    Case("ift", "glyphs", {**IFT, "growth_limit": 1e9}, PRIOR, engine="graph", quick=False),
    Case("ift", "glyphs", {**IFT, "inverse": "cg", "indefinite": "truncate"}, PRIOR,
         engine="graph", quick=False),
    Case("bilevel", "ridge", {"inner_steps": 6, "inner_lr": 0.05, "memory": "states"}),
    Case("bilevel", "ridge", {"inner_steps": 3, "inner_lr": 0.05, "mode": "forward"}),
    Case("ift", "ridge", IFT),
    Case("ift", "ridge", {**IFT, "inverse": "cg"}),
    Case("sgld", "ridge", {"inner_steps": 5, "inner_lr": 0.05}, solver="langevin"),
    Case("sgld", "ridge", {"inner_steps": 5, "inner_lr": 0.05, "estimator": "forward"},
         solver="langevin"),
    Case("bilevel", "quadratic", {"inner_steps": 4}, solver="adam"),
    Case("pbgd", "quadratic", {"inner_steps": 3}),
)  # fmt: skip


def context(case: Case, device: torch.device, engine: str, bench: Bench) -> tuple[Context, Any]:
    """A case made ready."""
    task = tasks.get(case.task)(**case.task_settings)
    record = cuda_graph if device.type == "cuda" else rerun
    ctx = Context(
        task.build(Seeds.of(0), device),
        solvers.get(case.solver)(),
        Seeds.of(0),
        task.offers,
        device=device,
        engine="loop" if engine == "loop" else "vmap",
        graphs=Graphs(record) if engine == "graph" else None,
    )
    method = methods.get(case.method)(**case.settings)
    if engine == "graph" and not ctx.replays(method):
        raise ValueError(f"{case.name} is not captured")
    return ctx, method


def descended(ctx: Context, method: Any, steps: int) -> list[dict[str, torch.Tensor]]:
    """lam, and what is learned beside it, after each outer step."""
    with determinism.fixed(ctx.device):
        state: State = method.init(ctx)
        found = []
        for step in range(steps):
            determinism.seed_globals(ctx.seeds.method + 1 + step, ctx.device)
            ctx.step = step
            state, _ = method.step(ctx, state)
            found.append({k: v.cpu() for k, v in state.outer.items()})
    return found


def moves(case: Case, ctx: Context, method: Any) -> dict[str, torch.Tensor]:
    """The first hypergradient, as what plain descent of step size 1 takes from lam."""
    own = {"outer_solver": "sgd", "outer_lr": 1.0}
    known = {k: v for k, v in own.items() if hasattr(method, k)}
    plain = replace(method, **known)
    before = {k: v.cpu() for k, v in plain.init(ctx).outer.items()}
    (after,) = descended(ctx, plain, 1)
    return {k: before[k] - after[k] for k in before}


def run(bench: Bench) -> None:
    """Every case without a graph, then float32, then the graphs."""
    cases = [case for case in CASES if case.quick or not bench.miniature]
    if bench.rest is None:
        for case in cases:
            if case.engine != "graph":
                with bench.part_of(case.name):
                    check(bench, case)
        for tf32 in (False, True):
            name = f"glyphs: maml in float32, TF32 {'on' if tf32 else 'off'}"
            with bench.part_of(name), determinism.fixed(bench.device):
                single(bench, name, tf32)
    bench.captures([(c.name, partial(check, bench, c)) for c in cases if c.engine == "graph"])


def check(bench: Bench, case: Case) -> None:
    """The first hypergradient, and lam after a short run, against the loop's on the CPU."""
    wanted = moves(case, *context(case, CPU, "loop", bench))
    found = moves(case, *context(case, bench.device, case.engine, bench))
    gap = apart(found, wanted)
    wanted = descended(*context(case, CPU, "loop", bench), STEPS)[-1]
    found = descended(*context(case, bench.device, case.engine, bench), STEPS)[-1]
    far = apart(found, wanted)
    bench.row(
        case.name, ok=gap <= EXACT and far <= RUN,
        hypergradient_error=gap, lam_error_after_5_steps=far,
    )  # fmt: skip


def single(bench: Bench, name: str, tf32: bool) -> None:
    """The float32 meta-gradient against the float64 one; no bound: decisions of ReLU flip."""
    exact = Case("maml", "glyphs", MAML, {**GLYPHS, "filters": 8 if bench.miniature else 64})
    rounded = replace(exact, task_settings={**exact.task_settings, "dtype": "float32"})
    ctx, method = context(exact, CPU, "loop", bench)
    lam = method.init(ctx).lam
    wanted = method.hypergradient(ctx, lam, None, ctx.training_episodes()[0]).grad
    other, _ = context(rounded, bench.device, "loop", bench)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    given = {k: v.to(bench.device, torch.float32) for k, v in lam.items()}
    found = method.hypergradient(other, given, None, other.training_episodes()[0]).grad
    bench.row(name, hypergradient_error=apart(found, wanted))
