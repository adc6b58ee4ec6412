"""Part "episodes": MAML's outer step on few-shot Omniglot at meta-batch 32, four ways.

One episode after another; batched by vmap; batched and replayed from a captured graph; and
learn2learn's usual loop, where that package is there. All work on the same episodes, drawn ahead.
"""

from __future__ import annotations

import importlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_parts.bench import Bench, apart
from metabench.contract.context import Context
from metabench.contract.parallel.at_once import Graphs, cuda_graph, rerun
from metabench.contract.problem import Episode, Params
from metabench.contract.seeds import Seeds
from metabench.core.errors import DataMissing
from metabench.core.registry import methods, solvers, tasks
from metabench.run import determinism

AGREE = 1e-3
"""Largest difference of float32 meta-gradients between two ways, over the largest entry: sums in
another order, and decisions of ReLU that flip. In float64 part "agreement" asks for 1e-10."""
OUTER_LR = 1e-3
FAST_DILATED = (2, 9)
"""The torch from which deterministic dilated convolutions are cuDNN's (pytorch#154292)."""


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
    """All rows: without a graph first, then the graphs."""
    rows = ROWS[:2] if bench.miniature else ROWS
    ms: dict[str, dict[str, float]] = {row.name: {} for row in rows}
    known: dict[str, Comparison] = {}
    if bench.rest is None:
        for row in rows:
            with bench.part_of(row.name), determinism.fixed(bench.device):
                known[row.name] = Comparison(bench, row, ms[row.name])
                plain(known[row.name])
    else:
        ms = bench.rest["ms"]

    def captured(row: Row, free: bool) -> None:
        with determinism.fixed(bench.device):
            if row.name not in known:
                known[row.name] = Comparison(bench, row, ms[row.name])
            graph(known[row.name], free)

    ways = [(row, free) for row in rows for free in (False, True)]
    bench.captures(
        [(f"{row.name}: {named(free)}", partial(captured, row, free)) for row, free in ways], ms=ms
    )


class Comparison:
    """A row at work: its problem, a step's episodes, and the meta-gradient that the loop takes of
    them. ``ms``: what ways that were timed took."""

    def __init__(self, bench: Bench, row: Row, ms: dict[str, float]) -> None:
        self.bench, self.row, self.ms = bench, row, ms
        self.task, self.problem, self.kind = problem_of(row, bench)
        self.method = methods.get("maml")(inner_steps=row.steps, inner_lr=0.4, outer_lr=OUTER_LR)
        self.held = self.draw()
        with without_tf32():
            self.wanted = self.gradient("loop")

    def draw(self) -> list[Episode]:
        """The episodes of the first step."""
        m = self.problem.episodes_per_step
        found: list[Episode] = type(self.problem).episodes(self.problem, "train", range(m))
        return found

    def context(self, engine: str) -> Context:
        """One that has captured nothing yet, and draws nothing."""
        self.problem.episodes = lambda split, indices: self.held
        record = cuda_graph if self.bench.cuda else rerun
        return Context(
            self.problem, solvers.get("sgd")(), Seeds.of(0), self.task.offers,
            device=self.bench.device, engine="loop" if engine == "loop" else "vmap",
            graphs=Graphs(record) if engine == "graph" else None,
        )  # fmt: skip

    def gradient(self, engine: str) -> Params:
        """The mean meta-gradient, a graph captured with the algorithms that are now allowed."""
        return gradient_of(self.context(engine), self.method)

    def time(self, name: str, engine: str, note: str = "") -> None:
        """Check and time a way of metabench's."""
        step = Stepper(self.context(engine), self.method)
        self.tell(name, partial(self.gradient, engine), step, note)

    def tell(
        self, name: str, gradient: Callable[[], Params], step: Callable[[], object], note: str = ""
    ) -> None:
        """Check a gradient against the loop's in float32 alone, and time steps as runs take them,
        with TF32: what that rounds is a figure, and no verdict hangs on it."""
        with without_tf32():
            gap = apart(gradient(), self.wanted)
        rounded = apart(gradient(), self.wanted)
        found = self.bench.timed(step, share=0.12)
        self.ms[name] = float(found["ms"] or 0)
        against = {
            f"times_{k}": self.ms[k] / self.ms[name] for k in ("loop", "learn2learn")
            if k in self.ms and k != name
        }  # fmt: skip
        self.bench.row(f"{self.row.name}: {name}", ok=gap <= AGREE, note=note, error=gap,
                       tf32_error=rounded, **found, **against)  # fmt: skip


def plain(at: Comparison) -> None:
    """Drawing, and the ways without a graph."""
    bench, row, slow = at.bench, at.row, slowed(at.row)
    drawn = bench.timed(at.draw, share=0.02)
    bench.row(f"{row.name}: drawing the episodes", note=at.kind, **drawn)
    try:
        importlib.import_module("learn2learn.algorithms")
    except Exception as error:
        bench.row(f"{row.name}: learn2learn", note=f"not there: {type(error).__name__}: {error}")
    else:
        with bench.part_of(f"{row.name}: learn2learn"):
            first = at.method.init(at.context("loop")).lam
            peer = Peer(at.problem, row, first, at.held)
            at.tell("learn2learn", peer.gradient, peer.step, slow)
    for engine in ("loop", "vmap"):
        with bench.part_of(f"{row.name}: {engine}"):
            at.time(engine, engine, slow)


def graph(at: Comparison, free: bool) -> None:
    """A captured graph, with deterministic algorithms alone or with any."""
    note = slowed(at.row)
    if free:
        torch.use_deterministic_algorithms(False)
        note = "torch may take algorithms that are not deterministic"
    if not at.bench.cuda:
        note = "the function that a graph holds, run again: no GPU"
    at.time(named(free), "graph", note)


def named(free: bool) -> str:
    """A graph, for the table."""
    return "graph, algorithms free" if free else "graph"


def slowed(row: Row) -> str:
    """What the torch at hand is known to be slow at, in words; "" where there is nothing."""
    version = tuple(int(x) for x in re.findall(r"\d+", torch.__version__)[:2])
    if row.downsample != "stride" or version >= FAST_DILATED:
        return ""
    return (
        f"torch {torch.__version__}: deterministic dilated convolutions, which the second order of "
        "strides takes, are not cuDNN's before 2.9 (pytorch#28777), and slow"
    )


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, convolutions are float32's own; products of matrices are so in every run."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Stepper:
    """Outer steps, one after another."""

    def __init__(self, ctx: Context, method: Any) -> None:
        self.ctx, self.method, self.state = ctx, method, method.init(ctx)

    def __call__(self) -> None:
        self.state, _ = self.method.step(self.ctx, self.state)
        self.ctx.step += 1


def gradient_of(ctx: Context, method: Any) -> Params:
    """The mean meta-gradient of the first weights, as plain descent of step size 1 moves them."""
    plain = replace(method, outer_solver="sgd", outer_lr=1.0)
    state = plain.init(ctx)
    new, _ = plain.step(ctx, state)
    return {k: v - new.lam[k] for k, v in state.lam.items()}
