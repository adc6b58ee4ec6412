"""Bytes of tensors held at once: by hand, and as they grow or not with a method's budget."""

import pytest
import torch
from oracles import context

from metabench.core.cell import make_cell
from metabench.core.errors import Stopped
from metabench.core.registry import methods
from metabench.hypergradients.tensor_memory import Footprint
from metabench.run.loop import Loop
from metabench.run.runner import run_cell
from metabench.store.store import Store
from metabench.tasks.models.convnet.convolution import buffer


def test_what_is_alive_is_counted_once():
    with Footprint() as held:
        a = torch.zeros(1000, dtype=torch.float64)
        b = a.view(10, 100).t()
        assert held.now == 8000
        c = b + 1
        assert held.now == held.peak == 16000
        del c
        assert held.now == 8000
        a.add_(1).mul_(2)
        assert held.peak == 16000
        del a
        assert held.now == 8000  # b is a view
        del b
    assert (held.now, held.peak) == (0, 16000)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_a_graph_is_held_until_it_has_been_gone_through(n):
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    with Footprint() as held:
        y = x
        for _ in range(n):
            y = y.sin()
        torch.autograd.grad(y.sum(), x)
    # Every sine, and of the last one's derivative the cosine and the product.
    assert held.peak == pytest.approx(8000 * (n + 2), rel=0.01)


def peak(name, **set_):
    ctx, method = context("ridge"), methods.get(name)(inner_lr=0.3, **set_)
    state = method.init(ctx)
    method.step(ctx, state)  # what is imported and cached along the way
    with Footprint() as held:
        method.step(ctx, state)
    return held.peak


def test_memory_grows_with_the_budget_where_theory_says_so():
    whole = [peak("bilevel", inner_steps=t, memory="graph") for t in (20, 40, 80)]
    assert whole[2] - whole[1] == pytest.approx(2 * (whole[1] - whole[0]), rel=0.02)
    assert peak("bilevel", inner_steps=80, memory="checkpoints") < whole[2] / 3
    forward = [peak("bilevel", inner_steps=t, mode="forward") for t in (20, 80)]
    series = [peak("ift", inner_steps=t, terms=t) for t in (20, 80)]
    assert forward[0] == forward[1] and series[0] == series[1] < whole[0]


def test_a_run_measures_its_first_step_and_is_otherwise_the_same(tmp_path):
    set_ = {"outer_steps": 3, "eval_every": 3, "test_episodes": 1}
    plain = make_cell("ridge", "bilevel", set={"budget": set_, "method": {"inner_steps": 20}})
    assert "measure_memory" not in plain.budget  # keys of old runs stay
    wanted = {"budget": {**set_, "measure_memory": True}, "method": {"inner_steps": 20}}
    measured = make_cell("ridge", "bilevel", set=wanted)
    a, b = (run_cell(cell, Store(tmp_path)) for cell in (plain, measured))
    assert a.status == b.status == "done" and a.metrics == b.metrics
    found = b.cost["peak_tensor_bytes"]
    assert "peak_tensor_bytes" not in a.cost and found > 20 * 10 * 8
    clocks = ("seconds", "evaluation_seconds", "peak_memory_bytes", "peak_tensor_bytes")
    same = [{k: v for k, v in r.cost.items() if k not in clocks} for r in (a, b)]
    assert same[0] == same[1]
    again = run_cell(measured, Store(tmp_path / "other"))
    assert again.cost["peak_tensor_bytes"] == found


def test_the_number_does_not_depend_on_what_a_thread_or_a_problem_keeps(tmp_path, monkeypatch):
    """Run again in one process, and gone on with from the end of training: the same."""
    set_ = {"outer_steps": 2, "eval_every": 2, "test_episodes": 1, "measure_memory": True}
    cell = make_cell("ridge", "bilevel", set={"budget": set_, "method": {"inner_steps": 5}})
    kind = methods.get("bilevel")
    step, judge = kind.step, Loop.final_evaluations

    def keeping(self, ctx, state):
        buffer("of this test", (50_000,), torch.zeros(1))
        if not hasattr(ctx.problem, "kept_by_this_test"):
            ctx.problem.kept_by_this_test = torch.ones(70_000)
        return step(self, ctx, state)

    def stopped(loop):
        if loop.attempts == 1:
            raise Stopped(str(cell))
        judge(loop)

    monkeypatch.setattr(kind, "step", keeping)
    found = [run_cell(cell, Store(tmp_path / f"{i}")).cost["peak_tensor_bytes"] for i in range(2)]
    assert 4 * 50_000 < found[0] < 4 * 70_000
    monkeypatch.setattr(Loop, "final_evaluations", stopped)
    with pytest.raises(Stopped):
        run_cell(cell, Store(tmp_path / "stopped"))
    again = run_cell(cell, Store(tmp_path / "stopped"))
    assert again.attempts == 2
    assert {*found, again.cost["peak_tensor_bytes"]} == {found[0]}
