"""inr: SIREN as its authors have it, and a learned start draws digits better than a random one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from optional import needs
from oracles import F64, context

from metabench.contract.seeds import Seeds
from metabench.core.registry import methods, tasks
from metabench.run.evaluation import evaluate
from metabench.run.runner import run_cell
from metabench.store.store import Store
from metabench.suites import loading as suites
from metabench.tasks.inr import INR, INRProblem

CPU = torch.device("cpu")


def problem(images: torch.Tensor, **settings: object) -> INRProblem:
    task = INR(size=images.shape[-1], dtype="float64", **settings)
    return INRProblem(task, Seeds.of(0), CPU, dict.fromkeys(("train", "valid", "test"), images))


def test_first_weights_keep_the_variance_of_what_a_sine_sees_at_one():
    """Sitzmann 2020, theorem 1.8: where the sines before it have a mean square of 1/2."""
    one = problem(torch.rand(1, 20, 20, dtype=F64), width=512, depth=3)
    theta = {k: v * ("weight" in k) for k, v in one.init_outer().items()}
    h = (30 * one.places @ theta["layer0.weight"].T).sin()
    for i in (1, 2):
        seen = 30 * h @ theta[f"layer{i}.weight"].T
        assert float(seen.var()) == pytest.approx(2 * float(h.square().mean()), rel=0.02)
        assert 0.4 < float(h.square().mean()) < 0.5
        h = seen.sin()
    batch = one.episode("train", 0).outer
    assert torch.allclose(
        one.predict({}, theta, batch), (h @ theta["head.weight"].T).reshape(1, 20, 20)
    )


def test_the_module_is_the_function_of_named_parameters():
    one = problem(torch.rand(1, 5, 5, dtype=F64), width=4)
    batch = one.episode("test", 0).outer
    made = one.predict({}, one.init_outer(), batch)
    assert torch.allclose(one.module(one.places).reshape(1, 5, 5), made)


def test_a_network_that_is_constant_has_the_psnr_of_its_error():
    grey = torch.tensor([[[0.25, 0.75], [0.75, 0.25]]], dtype=F64)
    one = problem(grey, width=3)
    theta = {k: torch.zeros_like(v) for k, v in one.init_outer().items()}
    theta["head.bias"] += 0.5
    found = one.metrics({}, theta, one.episode("test", 0))
    assert found["mse"] == pytest.approx(1 / 16)
    assert found["psnr"] == pytest.approx(12.0412, abs=1e-4) == found["psnr_constant"]
    shown = one.pictures(one.init_outer(), theta, one.episode("test", 0))
    assert torch.equal(shown["image"], grey[0]) and bool((shown["fitted"] == 0.5).all())


def test_parts_of_photographs_are_of_the_size_and_of_their_own_photographs():
    needs("skimage")
    one = context(INR(dataset="photographs", size=8)).problem
    assert {k: len(v) for k, v in one.images.items()} == {"train": 8, "valid": 2, "test": 2}
    y = one.episode("test", 3).outer["image"][0]
    parts = one.images["test"].unfold(1, 8, 1).unfold(2, 8, 1).float()
    assert bool((parts == y).all((-1, -2)).any())
    assert one.count("test") is None


def test_a_learned_start_draws_digits_better_in_two_steps():
    task = tasks.get("inr")(size=8, width=24, n_train=300, n_valid=20, n_test=20)
    found = {}
    for name, steps, more in (("maml", 80, {"outer_lr": 1e-3}), ("fixed", 0, {})):
        ctx = context(task, engine="vmap")
        method = methods.get(name)(inner_steps=2, inner_lr=0.01, **more)
        state = method.init(ctx)
        for ctx.step in range(steps):
            state, _ = method.step(ctx, state)
        found[name] = evaluate(ctx, method, state, "test", 20)["psnr"].mean
    assert found["maml"] > found["fixed"] + 3


def test_the_suite_measures_and_shows_one_state_after_several_steps(tmp_path: Path) -> None:
    needs("skimage")
    store = Store(tmp_path)
    suite = suites.load("inr")
    cells = [c for c in suite.cells("smoke") if c.column == "photographs"]
    assert [c.row for c in cells] == [row.id for row in suite.rows]
    for one in cells:
        record = run_cell(one.cell, store)
        assert record.status == "done", record.reason
        for name in ("inr", "inr-one-step", "inr-five-steps"):
            companion = suites.load(name)
            assert [c.cell for c in companion.cells("smoke")] == [
                c.cell for c in suite.cells("smoke")
            ]
            assert companion.metric in record.metrics[companion.evaluation]
        shown = store.pictures(record)
        assert {"image", "start", "fitted", "fitted@5_steps"} <= {*shown}
        assert not any(name.startswith(("image@", "start@")) for name in shown)
        far = {k: np.abs(v.astype(int) - shown["image"]).sum() for k, v in shown.items()}
        assert far["fitted@5_steps"] < far["fitted"] < far["start"]
