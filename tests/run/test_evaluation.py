"""Episodes adapted at once and one after another: the same numbers, the same counts."""

from __future__ import annotations

import math

import pytest
import torch

from metabench.contract.context import Context
from metabench.contract.seeds import Seeds
from metabench.core.cell import make_cell
from metabench.core.registry import methods, solvers, tasks
from metabench.run import evaluation
from metabench.run.evaluation import at_once, evaluate
from metabench.run.runner import run_cell

TASK = {"ways": 3, "shots": 2, "queries": 2, "meta_batch": 2, "filters": 3, "dtype": "float64"}
BODY = {"formulation": "representation"}
MINI = {"inner_batch": 3, "test_inner_batch": 4, "train_shots": 4, "reduction": "flatten"}
ROWS = {
    "maml": ("maml", {"inner_steps": 1, "test_steps": 3}, {}, "sgd"),
    "rates": ("maml", {"inner_steps": 2, "layer_step_rates": True}, {}, "sgd"),
    "anil": ("maml", {"inner_steps": 2, "anil": True}, {}, "sgd"),
    "imaml": ("imaml", {"inner_steps": 2}, {}, "sgd"),
    "reptile": ("reptile", {"inner_steps": 2, "test_steps": 4}, MINI, "adam"),
    "moments": ("reptile", {"inner_steps": 2, "test_steps": 4, "keep_moments": True}, MINI, "adam"),
    "noisy": ("reptile", {"inner_steps": 2}, {}, "langevin"),
    "representation": ("bilevel", {"inner_steps": 3}, BODY, "sgd"),
    "tolerance": ("ift", {"inner_steps": 3, "tolerance": 1e-3}, BODY, "sgd"),
    "fixed": ("fixed", {"inner_steps": 3}, {}, "sgd"),
    "protonet": ("protonet", {}, BODY, "sgd"),
}


def trained(row, size=1, **more):
    """Context, method and the state after two outer steps, taken one episode after another."""
    name, settings, task_settings, solver = ROWS[row]
    task = tasks.get("glyphs")(**TASK, **task_settings)
    ctx = Context(
        task.build(Seeds.of(0), torch.device("cpu")),
        solvers.get(solver)(),
        Seeds.of(0),
        task.offers,
        adapted_at_once=size,
        **more,
    )
    method = methods.get(name)(**settings)
    state = method.init(ctx)
    for _ in range(2):
        state, _ = method.step(ctx, state)
        ctx.step += 1
    ctx.meter.counts = type(ctx.meter.counts)()
    return ctx, method, state


def found(ctx, method, state, n=10):
    metrics = evaluate(ctx, method, state, "test", n, charged=True)
    return {k: (v.mean, v.std) for k, v in metrics.items()}, ctx.meter.counts


@pytest.mark.parametrize("row", ROWS)
def test_at_once_gives_what_one_after_another_gives(row, monkeypatch):
    expected, counts = found(*trained(row))
    assert counts.function_evaluations == 10
    mapped = []
    vmap = torch.func.vmap
    monkeypatch.setattr(torch.func, "vmap", lambda f: mapped.append(f) or vmap(f))
    together, same = found(*trained(row, 4))
    assert len(mapped) == 3 and same == counts
    for name, values in expected.items():
        assert together[name] == pytest.approx(values, rel=1e-9, abs=1e-11)
    assert found(*trained(row, 4, workers=3)) == (together, counts)


def test_a_last_episode_alone_is_not_mapped(monkeypatch):
    mapped = []
    vmap = torch.func.vmap
    monkeypatch.setattr(torch.func, "vmap", lambda f: mapped.append(f) or vmap(f))
    metrics, counts = found(*trained("maml", 4), n=5)
    assert len(mapped) == 1 and counts.inner_gradients == 5 * 3
    assert metrics == {
        k: pytest.approx(v, rel=1e-9) for k, v in found(*trained("maml"), n=5)[0].items()
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_chunks_are_the_same_whatever_the_number_of_threads(workers, monkeypatch):
    """40 episodes are more than one part between two looks at the clock."""
    ctx, method, state = trained("fixed", 6, workers=workers)
    sizes = {}
    each = ctx.at_once
    monkeypatch.setattr(
        ctx, "at_once", lambda f, some, *, steps: sizes.update({some[0].index: len(some)})
        or each(f, some, steps=steps),
    )  # fmt: skip
    evaluate(ctx, method, state, "test", 40)
    assert dict(sorted(sizes.items())) == {0: 6, 6: 6, 12: 6, 18: 6, 24: 6, 30: 6, 36: 4}


def test_who_is_adapted_one_after_another():
    ctx, method, state = trained("maml", 4)
    assert at_once(ctx, method, state, "test") == 4
    assert at_once(ctx, method, type(state)(state.lam, theta=state.lam), "test") == 1
    assert at_once(ctx, methods.get("asha")(), state, "test") == 1
    retrained = {name: evaluation.Retrained(3, 0.1, solvers.get(name)()) for name in SOLVERS}
    assert {name: at_once(ctx, way, state, "test") for name, way in retrained.items()} == SOLVERS
    ctx.adapted_at_once = None
    assert at_once(ctx, method, state, "test") == 1
    ctx.engine = "vmap"
    assert at_once(ctx, method, state, "test") == 2
    ctx.chunk = 3
    assert at_once(ctx, method, state, "test") == 3


SOLVERS = {"sgd": 4, "adam": 4, "langevin": 1}


def test_a_run_chooses_by_what_it_evaluates_and_keeps_its_training():
    """Reptile with kept moments trains on one episode after another; the record says both."""
    cell = make_cell(
        "glyphs",
        "reptile",
        solver="adam",
        set={
            "task": {**TASK, **MINI},
            "method": {"inner_steps": 2, "test_steps": 4, "keep_moments": True},
            "budget": {"outer_steps": 2, "valid_episodes": 3, "test_episodes": 7},
        },
    )
    auto, loop = run_cell(cell), run_cell(cell, engine="loop")
    assert (auto.environment["engine"], loop.environment["engine"]) == ("loop", "loop")
    assert auto.environment["adapted_at_once"] > 7 and loop.environment["adapted_at_once"] == 1
    assert auto.lam == loop.lam
    for name, value in loop.metrics["test"].items():
        assert math.isclose(auto.metrics["test"][name].mean, value.mean, rel_tol=1e-9)


def test_inner_batches_that_are_drawn_ahead_fit_in_memory(monkeypatch):
    ctx, method, state = trained("reptile", 4)
    batch = 4 * (28 * 28 + 1) * 8
    for room, fit in ((4 * 4 * batch, 4), (4 * 4 * batch - 1, 3), (1, 1)):
        monkeypatch.setattr(evaluation, "DRAWN_BYTES", room)
        assert at_once(ctx, method, state, "test") == fit
    ctx, method, state = trained("maml", 4)
    assert at_once(ctx, method, state, "test") == 4
