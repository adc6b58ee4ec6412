"""Part "episodes": MAML's outer step on few-shot Omniglot at meta-batch 32, four ways.

One episode after another; batched by vmap; batched and replayed from a captured graph; and
learn2learn's usual loop, where that package is there. All work on the same episodes, drawn ahead.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_parts.bench import Bench, apart
from metabench.contract.at_once import Graphs, cuda_graph, rerun
from metabench.contract.context import Context
from metabench.contract.problem import Episode, Params
from metabench.contract.seeds import Seeds
from metabench.core.errors import DataMissing
from metabench.core.registry import methods, solvers, tasks
from metabench.run import determinism

AGREE = 1e-3
"""Largest difference of float32 meta-gradients between two ways, over the largest entry: sums in
another order, and decisions of ReLU that flip. In float64 part "agreement" asks for 1e-10."""
OUTER_LR = 1e-3


@dataclass(frozen=True)
class Row:
    """A network and its episodes."""

    name: str
    downsample: str
    queries: int
    steps: int


ROWS = (
    Row("5-way 1-shot, strides, 1 query, 1 inner step (the suite's at paper budget)",
        "stride", 1, 1),
    Row("5-way 1-shot, strides, 15 queries, 5 inner steps", "stride", 15, 5),
    Row("5-way 1-shot, max-pool, 15 queries, 5 inner steps", "pool", 15, 5),
)  # fmt: skip


def problem_of(row: Row, bench: Bench) -> tuple[Any, Any, str]:
    """Task, problem, and what the images are."""
    size = {"meta_batch": 4, "filters": 8} if bench.miniature else {"meta_batch": 32, "filters": 64}
    given = {"downsample": row.downsample, "queries": row.queries, "ways": 5, "shots": 1, **size}
    try:
        task = tasks.get("omniglot")(split="shuffled", **given)
        return task, task.build(Seeds.of(0), bench.device), "Omniglot"
    except DataMissing:
        task = tasks.get("glyphs")(**given)
        return task, task.build(Seeds.of(0), bench.device), "glyphs: Omniglot is not there"


class Peer:
    """learn2learn's loop: a clone an episode, adapted, its query loss handed back; then Adam."""

    def __init__(self, problem: Any, row: Row, first: Params, episodes: Sequence[Episode]) -> None:
        library: Any = importlib.import_module("learn2learn.algorithms")
        self.steps, self.loss = row.steps, nn.CrossEntropyLoss()
        self.net = library.MAML(usual(problem.net, row), lr=0.4, first_order=False)
        weights = dict(self.net.module.named_parameters())
        with torch.no_grad():
            for name, value in first.items():
                weights[name].copy_(value)
        self.weights, self.episodes = weights, episodes
        self.outer = torch.optim.Adam(self.net.parameters(), OUTER_LR)

    def gradient(self) -> Params:
        """The mean meta-gradient, left in ``.grad`` too."""
        self.outer.zero_grad()
        for episode in self.episodes:
            learner = self.net.clone()
            for t in range(self.steps):
                batch = episode.batch(t)
                learner.adapt(self.loss(learner(batch["x"]), batch["y"]))
            self.loss(learner(episode.outer["x"]), episode.outer["y"]).backward()
        for p in self.weights.values():
            p.grad /= len(self.episodes)
        return {k: p.grad.clone() for k, p in self.weights.items()}

    def step(self) -> None:
        """An outer step."""
        self.gradient()
        self.outer.step()


def usual(net: Any, row: Row) -> nn.Module:
    """The network as a user of that library writes it: the library's own layers."""
    layers: dict[str, nn.Module] = {}
    inputs = net.conv1.in_channels
    for i in range(1, 5):
        filters = net.conv1.out_channels
        layers[f"conv{i}"] = nn.Conv2d(inputs, filters, 3, net.stride, 1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(filters, track_running_stats=False)
        if row.downsample == "pool":
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        layers[f"relu{i}"] = nn.ReLU()
        inputs = filters
    if net.mean:
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flat"] = nn.Flatten()
    layers["head"] = nn.Linear(net.feature_size, net.head.out_features)
    return nn.Sequential(OrderedDict(layers)).to(next(iter(net.parameters())).device)


def run(bench: Bench) -> None:
    """All rows."""
    for row in ROWS[:2] if bench.miniature else ROWS:
        with bench.part_of(row.name), determinism.fixed(bench.device):
            compare(bench, row)


def compare(bench: Bench, row: Row) -> None:
    """All ways of one row; each against the loop's meta-gradient."""
    task, problem, kind = problem_of(row, bench)
    method = methods.get("maml")(inner_steps=row.steps, inner_lr=0.4, outer_lr=OUTER_LR)
    drawn = bench.timed(
        lambda: problem.episodes("train", range(problem.episodes_per_step)), share=0.02
    )
    bench.row(f"{row.name}: drawing the episodes", note=kind, **drawn)
    held = problem.episodes("train", range(problem.episodes_per_step))
    problem.episodes = lambda split, indices: held

    def context(engine: str) -> Context:
        record = cuda_graph if bench.cuda else rerun
        return Context(
            problem, solvers.get("sgd")(), Seeds.of(0), task.offers, device=bench.device,
            engine="loop" if engine == "loop" else "vmap",
            graphs=Graphs(record) if engine == "graph" else None,
        )  # fmt: skip

    wanted = gradient_of(context("loop"), method, held)
    first = method.init(context("loop")).lam
    slowest: dict[str, float] = {}

    def tell(
        name: str, gradient: Callable[[], Params], step: Callable[[], object], note: str = ""
    ) -> None:
        with bench.part_of(f"{row.name}: {name}"):
            gap = apart(gradient(), wanted)
            found = bench.timed(step, share=0.12)
            slowest[name] = float(found["ms"] or 0)
            against = {
                f"times_{k}": slowest[k] / slowest[name] for k in ("loop", "learn2learn")
                if k in slowest and k != name
            }  # fmt: skip
            bench.row(f"{row.name}: {name}", ok=gap <= AGREE, note=note, error=gap, **found,
                      **against)  # fmt: skip

    try:
        importlib.import_module("learn2learn.algorithms")
    except ImportError as error:
        bench.row(f"{row.name}: learn2learn", note=f"not there: {error}")
    else:
        with bench.part_of(f"{row.name}: learn2learn"):
            peer = Peer(problem, row, first, held)
            tell("learn2learn", peer.gradient, peer.step)
    for engine, note in (
        ("loop", ""),
        ("vmap", ""),
        ("graph", "" if bench.cuda else "the function that a graph holds, run again: no GPU"),
    ):
        ctx = context(engine)
        tell(engine, partial(gradient_of, ctx, method, held), Stepper(ctx, method), note)
    with bench.part_of(f"{row.name}: graph, algorithms free"):
        torch.use_deterministic_algorithms(False)
        ctx, note = context("graph"), "torch may take algorithms that are not deterministic"
        free = partial(gradient_of, context("graph"), method, held)
        tell("graph, algorithms free", free, Stepper(ctx, method), note)
    determinism.settle(bench.device)


class Stepper:
    """Outer steps, one after another."""

    def __init__(self, ctx: Context, method: Any) -> None:
        self.ctx, self.method, self.state = ctx, method, method.init(ctx)

    def __call__(self) -> None:
        self.state, _ = self.method.step(self.ctx, self.state)
        self.ctx.step += 1


def gradient_of(ctx: Context, method: Any, held: Sequence[Episode]) -> Params:
    """The mean meta-gradient of the first weights, as plain descent of step size 1 moves them."""
    plain = replace(method, outer_solver="sgd", outer_lr=1.0)
    state = plain.init(ctx)
    new, _ = plain.step(ctx, state)
    return {k: v - new.lam[k] for k, v in state.lam.items()}
