"""Steps that are captured once and replayed: what a graph would compute, without a GPU.

:func:`rerun` stands for a captured graph: the same function, on the same buffers, call after call.
What a graph refuses (a number read on the host, a tensor from another device) is looked for on the
meta device, whose tensors have no contents to read.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.parallel import at_once
from metabench.contract.parallel.at_once import Graphs, rerun
from metabench.contract.seeds import Seeds
from metabench.core.registry import methods, solvers, tasks
from metabench.hypergradients.tensor_memory import tensors
from metabench.run.evaluation import evaluate

SETTINGS = {"ways": 3, "queries": 2, "meta_batch": 3, "filters": 3, "dtype": "float64"}
ROWS = {
    "maml": ("maml", {"inner_steps": 2, "inner_lr": 0.1}, {}, "sgd"),
    "first order": ("maml", {"inner_steps": 2, "inner_lr": 0.1, "order": "first"}, {}, "sgd"),
    "meta-sgd": ("maml", {"inner_steps": 1, "inner_lr": 0.1, "meta_sgd": True}, {}, "sgd"),
    "anil": ("maml", {"inner_steps": 2, "inner_lr": 0.1, "anil": True}, {}, "sgd"),
    "clipped": ("maml", {"inner_steps": 1, "clip": 1e-3, "outer_solver": "momentum"}, {}, "sgd"),
    "decayed": ("maml", {"inner_steps": 1, "outer_decay": "sqrt"}, {}, "adam"),
    "unrolled": (
        "bilevel", {"inner_steps": 3, "learn_rate": True, "memory": "graph"},
        {"formulation": "representation"}, "sgd",
    ),
    "implicit": (
        "ift", {"inner_steps": 3, "inner_lr": 0.1, "terms": 4, "alpha": 0.01},
        {"formulation": "prior"}, "sgd",
    ),
    "conjugate gradient": (
        "ift",
        {"inner_steps": 3, "inner_lr": 0.1, "terms": 3, "inverse": "cg", "indefinite": "truncate"},
        {"formulation": "prior"}, "langevin",
    ),
}  # fmt: skip


def context(row, engine="vmap", graphs=None, device="cpu", **more):
    name, settings, task_settings, solver = ROWS[row]
    task = tasks.get("glyphs")(**{**SETTINGS, **task_settings, **more})
    problem = task.build(Seeds.of(0), torch.device(device))
    ctx = Context(
        problem, solvers.get(solver)(), Seeds.of(0), task.offers, engine=engine, graphs=graphs
    )
    return ctx, methods.get(name)(**settings)


def trained(ctx, method, steps=4):
    state, logs = method.init(ctx), []
    for step in range(steps):
        ctx.step = step
        state, log = method.step(ctx, state)
        logs.append(log)
    return state, logs


@pytest.mark.parametrize("row", ROWS)
def test_replayed_steps_are_those_of_the_engine_beside_it(row):
    graphs = Graphs(rerun)
    plain, method = context(row)
    other, _ = context(row, graphs=graphs)
    assert other.replays(method) and not plain.replays(method)
    state, logs = trained(plain, method)
    found, told = trained(other, method)
    for one, two in ((state.outer, found.outer), (state.memory, found.memory)):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)
    for one, two in zip(logs, told, strict=True):
        assert two == pytest.approx(one, rel=1e-9)
    assert other.meter.counts == plain.meter.counts
    assert other.notes == plain.notes
    assert len(graphs._known) == 1, "one capture serves all steps"


def test_the_loop_agrees_too():
    looped, method = context("maml", "loop")
    other, _ = context("maml", graphs=Graphs(rerun))
    state, _ = trained(looped, method)
    found, _ = trained(other, method)
    torch.testing.assert_close(found.outer, state.outer, rtol=1e-10, atol=1e-12)
    assert other.meter.counts == looped.meter.counts


def test_a_state_keeps_its_numbers_when_the_graph_runs_again():
    ctx, method = context("maml", graphs=Graphs(rerun))
    state, _ = trained(ctx, method, 1)
    kept = {k: v.clone() for k, v in state.lam.items()}
    moments = {k: v.clone() for k, v in state.memory["outer"]["mean"].items()}
    ctx.step = 1
    method.step(ctx, state)
    assert all(torch.equal(state.lam[k], v) for k, v in kept.items())
    assert all(torch.equal(state.memory["outer"]["mean"][k], v) for k, v in moments.items())


@pytest.mark.parametrize("row", ["maml", "unrolled"])
def test_evaluation_is_replayed_and_the_same(row):
    graphs = Graphs(rerun)
    plain, method = context(row)
    other, _ = context(row, graphs=graphs)
    state = method.init(plain)
    a, b = (evaluate(ctx, method, state, "valid", 41) for ctx in (plain, other))
    assert {k: v.mean for k, v in a.items()} == pytest.approx({k: v.mean for k, v in b.items()})
    assert a["accuracy"] == b["accuracy"]
    assert len(graphs._known) == 2, "parts of 3 episodes, and the 2 that are left"


def test_methods_that_change_from_step_to_step_are_not_captured():
    ctx, method = context("maml", graphs=Graphs(rerun))
    for own in ({"multi_step_epochs": 1}, {"first_order_epochs": 1}, {"step_norms": True}):
        assert not ctx.replays(replace(method, **own))
    assert not ctx.replays(methods.get("reptile")())
    assert not ctx.replays(methods.get("ift")(tolerance=1e-3))
    other = tasks.get("quadratic")().build(Seeds.of(0), torch.device("cpu"))
    assert not replace(ctx, problem=other).replays(method), "its task must say so as well"


class Refused(Exception):
    pass


class NothingFromTheHost(TorchDispatchMode):
    """Raises where an operation takes or gives a tensor that is not on the device, as a copy from
    the host would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        seen = [*tensors((args, (kwargs or {}).values())), *tensors((out,))]
        kinds = {x.device.type for x in seen}
        copied = func._schema.name in ("aten::_to_copy", "aten::copy_") and len(kinds) > 1
        for x in seen:
            # A number that Python wrote is a tensor of the host without dimensions: an argument of
            # a kernel, unless it is copied to the device.
            if x.device.type != "meta" and (x.ndim or copied):
                raise Refused(f"{func} has a tensor {list(x.shape)} of {x.device}")
        return out


class Captured(Exception):
    pass


def recorded(f):
    """As a capture: nothing is computed."""
    with NothingFromTheHost():
        outputs = f()
    assert all(x.is_meta for x in autodiff.tensors(outputs))
    raise Captured


@pytest.mark.parametrize("row", ROWS)
def test_a_capture_reads_nothing_on_the_host(row):
    ctx, method = context(row, graphs=Graphs(recorded), device="meta", dtype="float32")
    ctx.device = torch.device("meta")
    with pytest.raises(Captured):
        method.step(ctx, method.init(ctx))
    with pytest.raises(Captured):
        evaluate(ctx, method, method.init(ctx), "valid", 3)


def test_a_number_read_on_the_host_would_be_found():
    ctx, method = context("maml", graphs=Graphs(recorded), device="meta", dtype="float32")

    class Reads(type(ctx.problem)):
        def inner_loss(self, lam, theta, batch):
            return super().inner_loss(lam, theta, batch) * float(lam["head.bias"].sum())

    ctx.problem.__class__ = Reads
    with pytest.raises(RuntimeError, match="meta tensors"):
        method.step(ctx, method.init(ctx))


def test_buffers_stay_where_they_are_and_shapes_have_graphs_of_their_own():
    seen = []

    def f(inputs):
        seen.append(inputs["x"].data_ptr())
        return {"y": inputs["x"] * 2}

    graphs = Graphs(rerun)
    for value in (1.0, 2.0, 3.0):
        x = torch.full((3,), value, dtype=torch.float64)
        out, said = graphs("f", f, {"x": x}, lambda: len(seen))
        assert out["y"].tolist() == [2 * value] * 3 and said == 1
    assert len(set(seen)) == 1
    graphs("f", f, {"x": torch.zeros(4, dtype=torch.float64)}, lambda: 0)
    assert len(set(seen)) == 2


class FakeCuda:
    """torch.cuda as far as a capture needs it; a broken one cannot be ended, as torch has it."""

    class Stream:
        def wait_stream(self, other):
            pass

    CUDAGraph = object

    def __init__(self, ends):
        self.ends = ends

    def current_stream(self):
        return self.Stream()

    def stream(self, side):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph):
        try:
            yield
        finally:
            if not self.ends:
                raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("ends", [True, False])
def test_a_capture_that_fails_says_why(monkeypatch, ends):
    calls = []

    def f():
        calls.append(1)
        if len(calls) > at_once.WARM_UPS:
            raise ValueError("a copy from the host")

    monkeypatch.setattr(at_once.torch, "cuda", FakeCuda(ends))
    with pytest.raises(ValueError, match="a copy from the host"):
        at_once.cuda_graph(f)


def test_a_capture_that_cannot_be_ended_says_so(monkeypatch):
    monkeypatch.setattr(at_once.torch, "cuda", FakeCuda(False))
    with pytest.raises(RuntimeError, match="previous error"):
        at_once.cuda_graph(lambda: None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("row", ROWS)
def test_on_a_gpu_a_graph_gives_what_its_function_gives(row):
    plain, method = context(row, graphs=Graphs(rerun), device="cuda")
    other, _ = context(row, graphs=Graphs(at_once.cuda_graph), device="cuda")
    state, logs = trained(plain, method)
    found, told = trained(other, method)
    torch.testing.assert_close(found.outer, state.outer, rtol=1e-10, atol=1e-12)
    assert other.meter.counts == plain.meter.counts
    assert told[-1] == pytest.approx(logs[-1], rel=1e-9)
