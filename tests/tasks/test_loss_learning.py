"""Losses learned under label noise: parts, noise, bounds, and that learning helps."""

import importlib

import pytest
import torch
from oracles import F64, given

from metabench.conformance.harness import Harness
from metabench.contract.problem import GRADIENTS
from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.cell import make_cell
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

Task = tasks.get("loss_learning")
Problem = importlib.import_module("metabench.tasks.loss_learning").LossLearningProblem
losses = importlib.import_module("metabench.tasks.models.losses")


def images(n, seed):
    """Ten classes of 4x4 patterns, each image a noisy one."""
    gen = torch.Generator().manual_seed(7)
    patterns = torch.rand(10, 1, 4, 4, generator=gen)
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (n,), generator=gen)
    return (patterns[y] + 0.25 * torch.randn(n, 1, 4, 4, generator=gen)).clamp(0, 1), y


IMAGES = {"train": images(700, 0), "test": images(200, 1)}
SMALL = {"n_train": 500, "n_valid": 60, "n_test": 200, "network": "linear", "dtype": "float64"}


def made(seed=0, **set_):
    return Problem(Task(**{**SMALL, **set_}), Seeds.of(seed), torch.device("cpu"), IMAGES)


def context(**set_):
    return given(made(**set_), *GRADIENTS, "lam_in_inner_loss")


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_parts_share_no_image_and_the_clean_one_is_balanced():
    problem = made(rate=0.6)
    rows = [tuple(x.flatten().tolist()) for p in problem.parts.values() for x in p["x"]]
    assert len(rows) == len(set(rows)) == 820
    assert problem.parts["valid"]["y"].bincount().tolist() == [6] * 10
    other = made(seed=1).parts["train"]["x"]
    assert not torch.equal(problem.parts["train"]["x"], other)


def test_uniform_noise_redraws_the_right_label_too():
    problem, spared = made(rate=0.6), made(rate=0.0)
    assert torch.equal(problem.parts["train"]["x"], spared.parts["train"]["x"])
    assert torch.equal(problem.wrong, problem.parts["train"]["y"] != spared.parts["train"]["y"])
    share = float(problem.wrong.double().mean())
    assert abs(share - 0.6 * 0.9) < 0.07  # p (1 - 1/C), 500 draws
    close(problem.transition.diag(), torch.full((10,), 0.46, dtype=F64))
    for split in ("valid", "test"):
        assert torch.equal(problem.parts[split]["y"], spared.parts[split]["y"])
    assert not spared.wrong.any()


@pytest.mark.parametrize(("noise", "others"), [("flip", 1), ("flip2", 2)])
def test_flips_go_to_few_other_classes(noise, others):
    problem, spared = made(noise=noise, rate=0.4), made(rate=0.0)
    t = problem.transition
    close(t.sum(1), torch.ones(10, dtype=F64))
    close(t.diag(), torch.full((10,), 0.6, dtype=F64))
    assert ((t > 0).sum(1) == 1 + others).all()
    true, given_ = spared.parts["train"]["y"], problem.parts["train"]["y"]
    assert (t[true, given_] > 0).all()
    assert abs(float(problem.wrong.double().mean()) - 0.4) < 0.08


def test_bounds_train_on_what_is_right():
    right, noisy = made(train_on="right", rate=0.6), made(rate=0.6)
    assert len(right.wrong) == int((~noisy.wrong).sum()) and not right.wrong.any()
    assert torch.equal(right.parts["train"]["y"], noisy.parts["train"]["y"][~noisy.wrong])
    valid = made(train_on="valid", batch=200)
    assert valid.parts["train"] is valid.parts["valid"] and valid.size == 60
    with pytest.raises(SettingError, match="'right', and no label is"):
        made(train_on="right", noise="flip", rate=1.0)


def test_losses_by_hand():
    for network, set_ in (("mlp", {"width": 7}), ("cnn", {"width": 2}), ("linear", {})):
        problem = made(network=network, form="gce", q=0.5, l2=0.3, batch=40, **set_)
        batch, theta = problem.episode("train", 0).batch(0), problem.init_inner({}, None)
        assert len(batch["y"]) == len(batch["index"].unique()) == 40
        p = problem.logits(theta, batch["x"]).softmax(1)[torch.arange(40), batch["y"]]
        norm = sum(v.square().sum() for v in theta.values())
        value = problem.inner_loss(problem.init_outer(), theta, batch)
        close(value, (2 * (1 - p.sqrt())).mean() + 0.15 * norm)
        valid = problem.parts["valid"]
        p = problem.logits(theta, valid["x"]).softmax(1)[torch.arange(60), valid["y"]]
        close(problem.outer_loss({}, theta, valid), -p.log().mean())


def test_a_taylor_loss_at_its_start_has_the_path_of_the_squared_error():
    ctx = context(form="taylor", network="mlp", width=6, batch=None)
    problem = ctx.problem
    method = methods.get("fixed")(inner_steps=20, inner_lr=0.5)
    state = method.step(ctx, method.init(ctx))[0]
    theta, train = problem.init_inner({}, None), problem.parts["train"]
    target = torch.nn.functional.one_hot(train["y"], 10).to(F64)
    for _ in range(20):
        leaf = {k: v.clone().requires_grad_() for k, v in theta.items()}
        p = problem.logits(leaf, train["x"]).softmax(1)
        g = torch.autograd.grad((p - target).square().sum(1).mean(), list(leaf.values()))
        theta = {k: v - 0.5 * d for (k, v), d in zip(theta.items(), g, strict=True)}
    for k, v in theta.items():
        close(state.theta[k], v)


def test_metrics_look_at_the_split_that_is_asked():
    problem = made(rate=0.4, form="transition")
    lam, theta = problem.init_outer(), problem.init_inner({}, None)
    for split in ("valid", "test"):
        part = problem.parts[split]
        right = (problem.logits(theta, part["x"]).argmax(1) == part["y"]).double().mean()
        found = problem.metrics(lam, theta, problem.episode(split, 0))
        assert found["accuracy"] == float(right)
    true = {"transition": problem.transition.log()}
    assert problem.metrics(true, theta, problem.episode("test", 0))["transition_error"] < 1e-12
    clean = made(rate=0.0).metrics(
        made(rate=0.0).init_outer(), theta, made(rate=0.0).episode("test", 0)
    )
    assert clean["fitted_wrong"] == clean["weight_wrong"] == 0.0
    assert problem.episode("train", 0).outer is problem.parts["valid"]  # never the test part


def after(method, steps, **set_):
    ctx = context(**set_)
    state = Harness(method, None).run(ctx, steps)
    return ctx.problem.metrics(state.lam, state.theta, ctx.problem.episode("test", 0))


LEARN = {"inner_steps": 1, "inner_lr": 0.5, "outer_lr": 0.03}


# A weight net learns at its paper's 1e-3: faster, V rises to 1 for everything.
@pytest.mark.parametrize(
    ("form", "outer_lr"),
    [("weight_net", 0.001), ("examples", 0.03), ("transition", 0.03), ("gce", 0.03)],
)
def test_a_learned_loss_trusts_right_labels_more(form, outer_lr):
    set_ = {"noise": "flip", "rate": 0.3, "network": "mlp", "width": 16}
    learner = methods.get("one_step")(**{**LEARN, "outer_lr": outer_lr})
    found = after(learner, 300, form=form, **set_)
    assert found["weight_right"] > 1.1 * found["weight_wrong"]
    plain = after(methods.get("fixed")(inner_steps=1, inner_lr=0.5), 300, form="gce", **set_)
    assert plain["weight_right"] == pytest.approx(1.0) == plain["effective_step"]
    assert found["accuracy"] >= plain["accuracy"] - 0.02


def test_a_learned_matrix_nears_the_true_one():
    set_ = {"noise": "flip", "rate": 0.4, "form": "transition"}
    first = after(methods.get("fixed")(inner_steps=1), 1, **set_)["transition_error"]
    found = after(methods.get("one_step")(**LEARN), 400, **set_)["transition_error"]
    assert found < 0.9 * first


def test_settings_that_cannot_be():
    def cell(**set_):
        return make_cell("loss_learning", "fixed", set={"task": set_, "budget": {"outer_steps": 1}})

    with pytest.raises(SettingError, match=r"two sizes: set source to torchvision"):
        cell(dataset="cifar10")
    with pytest.raises(SettingError, match="valid_batch = 101 of 100 images"):
        cell(valid_batch=101)
    with pytest.raises(SettingError, match=r"n_train \+ n_valid is 701; mnist has 700 images"):
        made(n_train=641)
    with pytest.raises(SettingError, match="2x2 pixels cannot be pooled twice"):
        made(network="cnn", shrink=2)


def test_crossings_that_theory_does_not_allow_have_a_reason():
    random, maml = methods.get("random")(), methods.get("maml")()
    assert why_not(Task(), random) is None
    assert "whole weight net: too many scalars" in why_not(Task(form="weight_net"), random)
    assert "initial value of theta" in why_not(Task(), maml)
    for form in losses.ClassForm.__args__:
        for name in ("one_step", "ift", "bilevel", "pbgd", "sgld", "fixed"):
            assert why_not(Task(form=form), methods.get(name)()) is None
