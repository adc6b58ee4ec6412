"""What an outer step and an evaluation cost, counted operation by operation: on any machine the
same.

FLOPs are those of the table of ``torch.utils.flop_counter`` (matrix products and convolutions, in
every derivative that is taken; no others). Operations are what PyTorch dispatches, bytes what these
read and write, both with nothing fused.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import flop_registry

from metabench.contract.method import Context, State
from metabench.contract.seeds import Seeds
from metabench.core.cell import Budget, Cell, instances
from metabench.core.errors import DataMissing
from metabench.core.readouts import by_steps
from metabench.datasets import locate
from metabench.hypergradients.tensor_memory import Footprint, tensors
from metabench.run.evaluation import evaluate

CPU = torch.device("cpu")
LONG = {"inner_steps": "method", "ahead": "method", "terms": "method", "final_steps": "task"}
"""Settings that say how often a loop is run, whose cost is affine in it."""
FEW = 10
"""Turns of a long loop that are run, and twice as many."""
FEW_FINAL = 2
"""The same of the final fine-tuning, whose batches are whole passes of two at the fewest."""


@dataclass(frozen=True)
class Cost:
    """FLOPs, operations, bytes read and written, and the most bytes of tensors held at once."""

    flops: float = 0.0
    ops: float = 0.0
    traffic: float = 0.0
    peak: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        peak = max(self.peak, other.peak)
        return Cost(
            self.flops + other.flops, self.ops + other.ops, self.traffic + other.traffic, peak
        )

    def __mul__(self, times: float) -> Cost:
        """So many times, one after the other."""
        return Cost(self.flops * times, self.ops * times, self.traffic * times, self.peak)


class Counter(Footprint):
    """Context: ``cost`` of what runs inside, in this thread and in the backward passes that it
    starts on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.ops = self.traffic = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; count it."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.ops += 1
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            self.traffic += sum(x.nbytes for x in tensors((args, (kwargs or {}).values(), out)))
        return out

    @property
    def cost(self) -> Cost:
        """So far."""
        return Cost(self.flops, self.ops, self.traffic, self.peak)


@dataclass(frozen=True)
class Counted:
    """One cell: an outer step, one episode of each evaluation with how many of them there are, and
    bytes of weights, solver memory and data."""

    step: Cost
    steps: float
    evaluations: dict[str, tuple[Cost, float]]
    state_bytes: float
    data_bytes: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @property
    def whole(self) -> list[tuple[Cost, float]]:
        """Each kind of work and how often it is done."""
        return [(self.step, self.steps), *self.evaluations.values()]


def counted(cell: Cell) -> Counted:
    """The cost of a cell; long loops by the affine law, from runs of few turns."""
    long = _long(cell)
    if not long:
        return _run(cell)
    base = _run(_with(cell, {name: few for name, (few, _) in long.items()}))
    total = base
    for name, (few, all_) in long.items():
        turns = {other: n for other, (n, _) in long.items()} | {name: 2 * few}
        more = _run(_with(cell, turns))
        total = _shifted(total, base, more, (all_ - few) / few)
    return total


def _long(cell: Cell) -> dict[str, tuple[int, int]]:
    """Long loops: name to (turns to run, turns there are)."""
    out = {}
    for name, group in LONG.items():
        settings = cell.method_settings if group == "method" else cell.task_settings
        all_ = settings.get(name) or 0
        if name == "terms" and settings.get("inverse") in ("identity", "exact"):
            continue
        few = FEW if group == "method" else FEW_FINAL
        if name == "inner_steps":  # what is done in its last part alone is whole in both runs
            few = max(few, 1 + (settings.get("truncate") or 0), 2 * (settings.get("thin") or 0))
        if all_ > 4 * few:
            out[name] = (few, all_)
    return out


def _with(cell: Cell, turns: Mapping[str, int]) -> Cell:
    own: dict[str, dict[str, Any]] = {"method": {}, "task": {}}
    for name, n in turns.items():
        own[LONG[name]][name] = n
    return replace(
        cell,
        method_settings={**cell.method_settings, **own["method"]},
        task_settings={**cell.task_settings, **own["task"]},
    )


def _shifted(total: Counted, base: Counted, more: Counted, times: float) -> Counted:
    """``total`` and so many times what ``more`` has over ``base``."""

    def law(x: Cost, a: Cost, b: Cost) -> Cost:
        found = {
            f.name: getattr(x, f.name) + times * (getattr(b, f.name) - getattr(a, f.name))
            for f in fields(Cost)
        }
        return Cost(**found)

    evaluations = {
        name: (law(cost, base.evaluations[name][0], more.evaluations[name][0]), n)
        for name, (cost, n) in total.evaluations.items()
    }
    # A budget of inner gradients buys fewer steps of more turns.
    steps = total.steps
    if base.steps != more.steps:
        steps = 1 / (1 / total.steps + times * (1 / more.steps - 1 / base.steps))
    return replace(
        total, step=law(total.step, base.step, more.step), steps=steps, evaluations=evaluations
    )


def _run(cell: Cell) -> Counted:
    """Build the cell and run one outer step and one episode of each evaluation.

    Of a step with several episodes one is run, and counts for all: they are alike. Where a GPU
    takes them all at once (engine "vmap"), operations and the peak are of that, from two episodes:
    of the former only those that draw an episode depend on how many, the latter grows with them.
    """
    task, method, solver, budget = instances(cell)
    seeds = Seeds.of(cell.seed)
    problem = task.build(seeds, CPU)
    n = problem.episodes_per_step
    together = n > 1 and method.batched

    def context(engine: Any) -> Context:
        begun = (budget.outer_steps or 0) // 2 or getattr(method, "warmup", 0)
        return Context(
            problem, solver, seeds, task.offers, budget=budget, engine=engine, step=begun
        )

    ctx = context("loop")
    state: State = method.init(ctx)
    spent = ctx.meter.counts.as_dict()
    step = Cost()
    if budget.outer_steps != 0:
        problem.episodes_per_step = 1
        with Counter() as counter:
            method.step(ctx, state)
        step = counter.cost * n
        if together:
            problem.episodes_per_step = 2
            problem.descends_at_once = 0  # the derivation by hand is a CPU's
            step = _at_once(step, n, context("vmap"), lambda c: method.step(c, state))
    used = {k: v - spent[k] for k, v in ctx.meter.counts.as_dict().items()}
    steps = _steps(budget, {k: n * v for k, v in used.items()})

    evaluations = {}
    looks = 1 + math.ceil(steps / budget.eval_every)
    ways = [("", method), *by_steps(method, budget).items()]
    planned = [("valid", "valid", method, looks * budget.valid_episodes)]
    for split in problem.evaluations:
        planned += [(split + end, split, way, budget.test_episodes) for end, way in ways]
    for name, split, way, episodes in planned:
        there = problem.count(split)
        if there is not None:
            each = budget.valid_episodes if name == "valid" else budget.test_episodes
            episodes = episodes * min(there, each) / each
        with Counter() as counter:
            evaluate(context("loop"), way, state, split, 1)
        cost = counter.cost
        if together and (there is None or there > 1):
            problem.episodes_per_step = 2
            cost = _at_once(
                cost, n, context("vmap"), lambda c, w=way, s=split: evaluate(c, w, state, s, 2)
            )
            cost = replace(cost, ops=cost.ops / n)
        evaluations[name] = (cost, float(episodes))
    state_bytes = _bytes(vars(state))
    return Counted(step, steps, evaluations, state_bytes, _bytes(problem))


def _at_once(cost: Cost, n: int, ctx: Context, work: Any) -> Cost:
    """The same work of n episodes at once, by ``work`` of two: fewer operations, more memory."""
    with Counter() as drawing:
        ctx.problem.episode("train", 0)
    work(ctx)  # tables of indices are made once a process: no part of a step
    with Counter() as counter:
        work(ctx)
    ops = counter.ops + (n - 2) * drawing.ops
    return replace(cost, ops=ops, peak=counter.peak * n / 2)


def _steps(budget: Budget, used: Mapping[str, int]) -> float:
    """Outer steps that a budget allows where one takes ``used``."""
    limits = [] if budget.outer_steps is None else [float(budget.outer_steps)]
    for name, n in used.items():
        limit = getattr(budget, name)
        if limit is not None and n:
            limits.append(limit / n)
    return min(limits)


def _bytes(x: Any) -> float:
    """Of all tensors within, each storage once."""
    seen: dict[int, int] = {}
    visited: set[int] = set()

    def walk(x: Any) -> None:
        if id(x) in visited:
            return
        visited.add(id(x))
        if isinstance(x, torch.Tensor):
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(x, dict):
            for each in x.values():
                walk(each)
        elif isinstance(x, list | tuple | set):
            for each in x:
                walk(each)
        elif type(x).__module__.startswith("metabench"):
            walk(getattr(x, "__dict__", {}))
            walk([getattr(x, name, None) for name in getattr(type(x), "__slots__", ())])

    walk(x)
    return float(sum(seen.values()))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _photographs(source: str | None, part: str) -> torch.Tensor:
    mini = importlib.import_module("metabench.tasks.data.miniimagenet")
    return _noise(mini.CLASSES[part], 40, 3, mini.SIZE, mini.SIZE)


def _small_photographs(source: Any, split: dict[str, list[str]], part: str) -> torch.Tensor:
    cifar = importlib.import_module("metabench.tasks.data.cifar100")
    held_out = [name for names in split.values() for name in names]
    n = len(split[part]) if part in split else len(cifar.NAMES) - len(held_out)
    return _noise(n, cifar.IMAGES[source], 3, cifar.SIZE, cifar.SIZE)


def _hearts() -> Any:
    ptbxl = importlib.import_module("metabench.tasks.data.ptbxl")
    n, gen = 21837, torch.Generator().manual_seed(0)
    signal = torch.randint(
        -2000, 2000, (n, ptbxl.LEADS, ptbxl.SAMPLES), dtype=torch.int16, generator=gen
    )
    level = torch.ones(n, ptbxl.LEADS)
    label = torch.rand(n, len(ptbxl.CLASSES), generator=gen) < 0.3
    fold = torch.arange(n) % ptbxl.FOLDS + 1
    return ptbxl.Hearts(signal, 1000 * level, 0 * level, label, fold, 0.0, 1.0)


def _graphs() -> Any:
    ppi = importlib.import_module("metabench.tasks.data.ppi")
    n, nodes, edges, gen = 4000, 40, 730, torch.Generator().manual_seed(0)
    species = torch.tensor([*ppi.SPECIES, ppi.TEST_SPECIES])
    return ppi.Graphs(
        torch.arange(n + 1) * nodes,
        torch.arange(n + 1) * edges,
        torch.randint(nodes, (2, n * edges), generator=gen, dtype=torch.int32),
        torch.randint(8, (n * nodes, ppi.KINDS + 1), generator=gen, dtype=torch.int32),
        torch.randint(nodes, (n,), generator=gen),
        species[torch.arange(n) % len(species)],
        torch.rand(n, ppi.PRETRAIN, generator=gen) < 0.1,
        torch.rand(n, ppi.DOWNSTREAM, generator=gen) < 0.1,
    )


@dataclass(frozen=True)
class StandIn:
    """Random numbers in the real shapes, for data that is not there: costs do not depend on the
    contents."""

    said: str
    module: str
    reader: str
    """The function of the module that ``made`` takes the place of."""
    made: Callable[..., Any]


STAND_INS = {
    "miniimagenet": StandIn(
        "random images: 40 of the 600 of each class of miniImageNet",
        "miniimagenet", "images", _photographs,
    ),
    "cifar100": StandIn(
        "random images in the number and size of CIFAR-100's",
        "cifar100", "images", _small_photographs,
    ),
    "ptbxl": StandIn(
        "random signals in the number and size of PTB-XL's 21,837", "ptbxl", "load", _hearts
    ),
    "ppi_bio": StandIn(
        "4,000 random graphs of 40 proteins and 730 directed edges, the sizes from memory, in "
        "place of some 88,000",
        "ppi", "load", _graphs,
    ),
}  # fmt: skip
"""By the name of the data set."""


@contextmanager
def stand_ins(names: Sequence[str]) -> Iterator[None]:
    """Inside, the readers of these data sets give their stand-ins."""
    with ExitStack() as stack:
        for it in map(STAND_INS.__getitem__, names):
            module = importlib.import_module(f"metabench.tasks.data.{it.module}")
            stack.enter_context(mock.patch.object(module, it.reader, it.made))
        yield


def absent(task: Any) -> list[str]:
    """Data sets of a task that are not on this machine, and need a stand-in."""
    source = task.source
    out = []
    for name in task.data:
        try:
            locate.locate(name, None if source == "auto" else source)
        except DataMissing:
            if name not in STAND_INS:
                raise
            out.append(name)
    return out
