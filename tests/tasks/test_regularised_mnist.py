"""Regularised MNIST: masks and augmentations by numbers of the batch, a lam for every image."""

import os
import sys
from pathlib import Path

import pytest
import torch
from oracles import F64, context

from metabench.conformance.kit import method_checks, task_checks
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

Task = tasks.get("regularised_mnist")
SMALL = {"n_train": 40, "n_valid": 24, "n_test": 16, "batch": 8, "width": 4, "dtype": "float64"}
VARIANTS = [
    {},
    {"tune": "augmentation"},
    {"tune": "all", "network": "cnn"},
    {"tune": "all", "masks": "concrete"},
]


@pytest.fixture
def drawn(monkeypatch):
    """Random images in the place of MNIST."""
    gen = torch.Generator().manual_seed(0)
    images = {
        split: (
            torch.rand(n, 1, 28, 28, generator=gen),
            torch.randint(10, (n,), generator=gen),
        )
        for split, n in (("train", 100), ("test", 30))
    }
    monkeypatch.setattr(sys.modules[Task.__module__], "load", lambda name, layout: images)
    return images


def build(**set_):
    return Task(**{**SMALL, **set_}).build(Seeds.of(0), torch.device("cpu"))


@pytest.mark.parametrize("set_", VARIANTS, ids=str)
def test_the_task_keeps_the_contract(drawn, set_):
    for _, check in task_checks(Task(**{**SMALL, **set_}), ["stn", "delta_stn", "fixed"]):
        check()


@pytest.mark.parametrize("name", ["stn", "delta_stn"])
@pytest.mark.parametrize("set_", [{}, {"tune": "all", "network": "cnn"}], ids=str)
def test_self_tuning_networks_keep_the_contract_with_a_lam_an_image(drawn, name, set_):
    for _, check in method_checks(name, [Task(**{**SMALL, **set_})]):
        check()


def test_parts_are_apart_and_cut_by_the_data_seed(drawn):
    problem = build()
    rows = {k: {tuple(x.flatten().tolist()) for x in v["x"]} for k, v in problem.parts.items()}
    assert [len(rows[k]) for k in ("train", "valid", "test")] == [40, 24, 16]
    assert not rows["train"] & rows["valid"]
    other = Task(**SMALL).build(Seeds.of(1), torch.device("cpu"))
    assert not torch.equal(problem.parts["train"]["y"], other.parts["train"]["y"])
    assert torch.equal(problem.parts["test"]["x"], drawn["test"][0][:16].double())


def test_more_images_than_there_are_are_refused(drawn):
    with pytest.raises(SettingError, match="n_train \\+ n_valid = 124 of 100"):
        build(n_train=100)
    with pytest.raises(SettingError, match="n_test = 31 of 30"):
        build(n_test=31)
    with pytest.raises(SettingError, match="batch = 25 of 24"):
        Task(**{**SMALL, "batch": 25})


def test_a_mask_drops_what_lies_below_the_rate_and_keeps_the_mean(drawn):
    problem = build()
    numbers = torch.rand(2, 10000, generator=torch.Generator().manual_seed(0), dtype=F64)
    mask = problem.mask(numbers, torch.tensor([0.25, 0.8], dtype=F64))
    assert torch.equal(mask[0], (numbers[0] >= 0.25).double() / 0.75)
    torch.testing.assert_close(mask.mean(1), torch.ones(2, dtype=F64), atol=0.06, rtol=0)
    assert torch.equal(problem.mask(numbers, torch.zeros((), dtype=F64)), torch.ones_like(numbers))


def test_concrete_masks_are_near_the_hard_ones_and_have_a_derivative(drawn):
    hard, soft = build(), build(masks="concrete")
    numbers = torch.rand(1, 20000, generator=torch.Generator().manual_seed(0), dtype=F64)
    rate = torch.tensor(0.4, dtype=F64, requires_grad=True)
    one, other = soft.mask(numbers, rate), hard.mask(numbers, rate.detach())
    assert float((one - other).detach().abs().mean()) < 0.1
    (slope,) = torch.autograd.grad((one * (1 - rate)).mean(), rate)
    assert -1.2 < float(slope) < -0.5  # the part kept falls with the rate


def test_augmentations_of_no_strength_change_nothing(drawn):
    problem = build(tune="all")
    batch = problem.episode("train", 0).batch(0)
    nothing = {k: torch.zeros_like(v) for k, v in problem.init_outer().items()}
    torch.testing.assert_close(problem.augmented(nothing, batch), batch["x"], rtol=0, atol=1e-12)
    theta = problem.init_inner(nothing, None)
    plain = problem.outer_loss(nothing, theta, batch)
    torch.testing.assert_close(problem.inner_loss(nothing, theta, batch), plain)


def test_every_augmentation_does_what_it_says(drawn):
    problem = build(tune="augmentation")
    zero = {k: torch.zeros_like(v) for k, v in problem.init_outer().items()}
    n = 2
    batch = {
        "x": torch.ones(n, 1, 28, 28, dtype=F64),
        "move": torch.tensor([[0.5, 1.0, 0.5], [0.5, 0.5, 0.0]], dtype=F64),
        "corner": torch.full((n, 2), 0.5, dtype=F64),
        "grain": torch.full((n, 1, 28, 28), 2.0, dtype=F64),
    }

    def seen(**strengths):
        more = {k: torch.tensor(v, dtype=F64) for k, v in strengths.items()}
        return problem.augmented({**zero, **more}, batch)[:, 0]

    moved = seen(shift=3.0)
    assert float(moved[0, :, -3:].abs().max()) < 1e-12 and float(moved[0, :, :-3].min()) > 1 - 1e-12
    assert float(moved[1, :3].abs().max()) < 1e-12 and float(moved[1, 3:].min()) > 1 - 1e-12
    torch.testing.assert_close(seen(noise=0.25), torch.full((n, 28, 28), 1.5, dtype=F64))
    for side in (0, 1, 5, 14):
        erased = seen(cutout=float(side)) == 0
        assert erased.flatten(1).sum(1).tolist() == [side**2] * n
    each = seen(cutout=[3.0, 4.0]) == 0
    assert each.flatten(1).sum(1).tolist() == [9, 16]
    turned = dict(batch, move=torch.tensor([[1.0, 0.5, 0.5]] * n, dtype=F64))
    ramp = torch.linspace(0, 1, 28, dtype=F64).expand(n, 1, 28, 28)
    quarter = problem.augmented(
        {**zero, "rotation": torch.tensor(90.0, dtype=F64)}, {**turned, "x": ramp}
    )
    torch.testing.assert_close(quarter, torch.rot90(ramp, 1, (2, 3)), rtol=0, atol=1e-10)


def test_hard_masks_give_no_derivative_in_lam_and_say_so():
    hard, soft = Task(), Task(masks="concrete")
    bilevel = methods.get("bilevel")()
    assert "masks = 'hard'" in why_not(hard, bilevel)
    assert why_not(soft, bilevel) is None
    for name in ("stn", "delta_stn", "random", "fixed"):
        assert why_not(hard, methods.get(name)()) is None


def test_rates_are_tuned_image_by_image(drawn):
    ctx = context(Task(**{**SMALL, "tune": "all"}))
    method = methods.get("stn")()
    state = first = method.init(ctx)
    for _ in range(3):
        state, log = method.step(ctx, state)
        ctx.step += 1
    assert list(state.lam) == [h.name for h in ctx.problem.hypers]
    assert all(bool((state.lam[k] != v).all()) for k, v in first.lam.items() if k != "cutout")
    assert float(state.lam["cutout"]) == 2.0 and log["hypergradient_norm"] > 0


@pytest.mark.skipif(
    not Path(os.environ.get("METABENCH_DATA", ""), "mnist").is_dir(),
    reason="METABENCH_DATA has no mnist",
)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["stn", "delta_stn"])
def test_rates_rise_from_a_small_start_on_mnist(name):
    ctx = context(Task(n_train=1000, first_rate=0.05), solver="momentum")
    method = methods.get(name)(inner_steps=2, inner_lr=0.03, outer_lr=0.02, warmup=50)
    state = method.init(ctx)
    for _ in range(600):
        state, _ = method.step(ctx, state)
        ctx.step += 1
    assert float(state.lam["hidden_dropout"].mean()) > 0.1
