"""Learned augmentation: geometry, forms, the planted law, derivatives in the ranges."""

import importlib

import pytest
import torch
from oracles import F64, differences, given, hypergradient

from metabench.conformance.harness import Harness
from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.cell import make_cell
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

Task = tasks.get("augmentation")
Problem = importlib.import_module("metabench.tasks.augmentation").AugmentationProblem
aug = importlib.import_module("metabench.problems.augment")


def blots(n, seed):
    """Ten classes of 12x12 images: a smooth pattern each, none another one turned, and noise."""
    patterns = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(9))
    patterns = torch.nn.functional.interpolate(patterns, size=12, mode="bilinear")
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (n,), generator=gen)
    x = patterns[y] + 0.1 * torch.randn(n, 1, 12, 12, generator=gen)
    return x.clamp(0, 1), y


IMAGES = {"train": blots(600, 0), "test": blots(200, 1)}
SMALL = {"n_train": 200, "n_valid": 200, "n_test": 200, "batch": 50, "width": 16,
         "dtype": "float64"}  # fmt: skip


def made(**set_):
    return Problem(Task(**{**SMALL, **set_}), Seeds.of(0), torch.device("cpu"), IMAGES)


def context(**set_):
    return given(made(**set_), *GRADIENTS, "lam_in_inner_loss")


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def by(n=1, **strengths):
    zero = torch.zeros(n, dtype=F64)
    given_ = {k: zero + v for k, v in strengths.items()}
    return aug.Strengths(**{k: given_.get(k, zero) for k in aug.Strengths._fields})


PICTURE = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=F64)
MIDDLE = torch.full((1, 2), 0.5, dtype=F64)


def test_no_strength_changes_nothing():
    close(aug.augment(PICTURE, by(), MIDDLE), PICTURE)


def test_quarter_turns_and_whole_shifts_move_pixels():
    quarter = aug.augment(PICTURE, by(rotation=90.0), MIDDLE)
    assert any(torch.allclose(quarter, torch.rot90(PICTURE, k, (2, 3))) for k in (1, -1))
    back = aug.augment(quarter, by(rotation=-90.0), MIDDLE)
    close(back, PICTURE)
    right = aug.augment(PICTURE, by(right=2 / 6), MIDDLE)
    close(right[..., 2:], PICTURE[..., :-2])
    assert not right[..., :2].abs().gt(1e-12).any()
    down = aug.augment(PICTURE, by(down=1 / 6), MIDDLE)
    close(down[..., 1:, :], PICTURE[..., :-1, :])


def test_scale_magnifies_and_brightness_multiplies():
    flat = torch.ones(1, 1, 6, 6, dtype=F64)
    small = aug.augment(flat, by(scale=-torch.tensor(2.0).log()), MIDDLE)
    assert float(small.sum()) == pytest.approx(9.0)  # half the side
    close(aug.augment(PICTURE, by(brightness=-0.25), MIDDLE), 0.75 * PICTURE)


def test_a_cutout_erases_its_area():
    flat = torch.ones(3, 1, 6, 6, dtype=F64)
    at = torch.tensor([[0.5, 0.5], [0.47, 0.61], [1.0, 1.0]], dtype=F64)
    left = aug.augment(flat, by(3, cutout=0.4), at).sum((1, 2, 3))
    close(left, 36 - torch.tensor([1.0, 1.0, 0.25], dtype=F64) * (0.4 * 6) ** 2)


def test_parts_and_the_law():
    plain, lawful = made(), made(law_rotation=40.0)
    assert torch.equal(plain.parts["train"]["x"], lawful.parts["train"]["x"])
    for split in ("valid", "test"):
        assert torch.equal(plain.parts[split]["y"], lawful.parts[split]["y"])
        gap = (plain.parts[split]["x"] - lawful.parts[split]["x"]).abs().mean((1, 2, 3))
        assert float((gap > 0.01).double().mean()) > 0.8
    assert lawful.episode("train", 0).outer["x"].shape == (50, 1, 12, 12)
    rows = {tuple(x.flatten().tolist()) for s in ("train", "valid") for x in plain.parts[s]["x"]}
    assert len(rows) == 400


def test_ranges_of_zero_leave_the_images_as_they_are():
    problem = made(first="none")
    batch = problem.episode("train", 0).batch(0)
    close(problem.learned.augmented(problem.init_outer(), batch), batch["x"])
    none = made(form="randaugment", magnitude=0.0)
    batch = none.episode("train", 0).batch(0)
    close(none.learned.augmented(none.init_outer(), batch), batch["x"])


def test_draws_are_even_up_to_the_range():
    problem = made(first="hand", batch=200)
    strengths = problem.learned.strengths(
        problem.init_outer(), problem.episode("train", 0).batch(0)
    )
    for name, most in (("rotation", 15.0), ("right", 0.1), ("brightness", 0.2), ("cutout", 0.25)):
        drawn = getattr(strengths, name)
        assert 0.9 * most < float(drawn.abs().max()) <= most
        assert (float(drawn.min()) < 0) == (name != "cutout")


def test_randaugment_draws_so_many_operations_at_one_magnitude():
    problem = made(form="randaugment", operations=3, magnitude=0.5, batch=200)
    batch = problem.episode("train", 0).batch(0)
    assert set(batch["chosen"].sum(1).tolist()) <= {0.0, 1.0, 2.0, 3.0}
    angle = problem.learned.strengths(problem.init_outer(), batch).rotation
    close(angle.abs(), 15.0 * batch["chosen"][:, 0])


def test_a_network_starts_near_the_identity_and_every_weight_matters():
    problem = made(form="network")
    lam, theta = problem.init_outer(), problem.init_inner({}, None)
    batch = problem.episode("train", 0).batch(0)
    gap = (problem.learned.augmented(lam, batch) - batch["x"]).abs().mean()
    assert 0 < float(gap) < 0.2
    g = autodiff.grad(lambda p: problem.inner_loss(p, theta, batch), lam)[1]
    assert all(bool(v.any()) for v in g.values())
    away = problem.learned.transform(lam, batch) - torch.eye(2, 3, dtype=F64)
    assert 0 < float(away.abs().max()) < 0.2


def test_hypergradients_in_the_ranges_against_differences():
    ctx = context(first="hand", network="linear", batch=20)
    lam = ctx.problem.init_outer()
    theta = ctx.problem.init_inner(lam, None)
    set_ = {"inner_steps": 3, "inner_lr": 0.2}
    found = hypergradient(ctx, "bilevel", theta=theta, **set_)
    episode = ctx.problem.episode("train", 0)

    def after(p):
        at = dict(theta)
        for t in range(3):
            batch = episode.batch(t)
            g = autodiff.grad(lambda x, b=batch: ctx.problem.inner_loss(p, x, b), at)[1]
            at = {k: v - 0.2 * g[k] for k, v in at.items()}
        return ctx.problem.outer_loss(p, at, episode.outer)

    # Bilinear reading has a kink where a place crosses a pixel's middle: a longer step meets some.
    for k, g in differences(after, lam, h=1e-7).items():
        close(found[k], g, 1e-7)


def test_a_learned_range_grows_towards_the_law_and_stays_small_without_one():
    ends = {}
    for law in (0.0, 25.0):
        ctx = context(tune="rotation", law_rotation=law, n_train=100, network="mlp", width=32)
        method = methods.get("one_step")(inner_steps=1, inner_lr=0.5, outer_lr=0.01)
        state = Harness(method, None).run(ctx, 200)
        ends[law] = ctx.problem.metrics(state.lam, state.theta, ctx.problem.episode("test", 0))
    assert ends[25.0]["rotation"] > ends[0.0]["rotation"] + 5
    found = ends[25.0]
    assert found["rotation_gap"] == pytest.approx(abs(found["rotation"] - 25.0))


def test_settings_that_cannot_be():
    def cell(**set_):
        return make_cell("augmentation", "fixed",
                         set={"task": set_, "budget": {"outer_steps": 1}})  # fmt: skip

    with pytest.raises(SettingError, match="two sizes: set source"):
        cell(dataset="cifar10")
    with pytest.raises(SettingError, match="batch = 50 of 40 images"):
        cell(n_valid=40, batch=50)
    with pytest.raises(SettingError, match=r"n_train \+ n_valid = 601 of 600"):
        made(n_train=401)
    with pytest.raises(SettingError, match="3x3 pixels cannot be pooled twice"):
        made(network="cnn", shrink=4)


def test_crossings_that_theory_does_not_allow_have_a_reason():
    random, stn = methods.get("random")(), methods.get("stn")()
    assert why_not(Task(), random) is None and why_not(Task(), stn) is None
    assert "whole network" in why_not(Task(form="network"), random)
    for form in ("ranges", "network", "randaugment"):
        for name in ("one_step", "ift", "bilevel", "pbgd", "fixed"):
            assert why_not(Task(form=form), methods.get(name)()) is None
