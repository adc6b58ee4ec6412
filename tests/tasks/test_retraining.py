"""Retraining: the checkpoint, the forms, the scaled field, and that modules are dropped."""

import importlib

import pytest
import torch
from oracles import F64, given
from torch.nn import functional as F

from metabench.contract.seeds import Seeds
from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

Task = tasks.get("retraining")
retraining = importlib.import_module("metabench.tasks.retraining")
SMALL = {
    "n_train": 60, "n_valid": 40, "n_test": 30, "shrink": 1, "width": 2, "batch": 10,
    "checkpoint_steps": 30, "dtype": "float64",
}  # fmt: skip
PLAIN = {"form": "fine_tuning", "tune": "rates"}
SPG = [
    {"form": form, "residual": r} for form in ("spg_a", "spg_b") for r in ("linear", "linear_relu")
]


def images(n, seed):
    """Five classes of 4x4 patterns, each image a noisy one."""
    patterns = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    gen = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 5
    return (patterns[y] + 0.3 * torch.randn(n, 3, 4, 4, generator=gen)).clamp(0, 1), y


IMAGES = {"train": images(120, 0), "test": images(40, 1)}


def made(seed=0, **set_):
    task, seeds, cpu = Task(**{**SMALL, **set_}), Seeds.of(seed), torch.device("cpu")
    start = retraining.checkpoint(retraining._common(task), seeds, cpu, IMAGES)
    return retraining.RetrainingProblem(task, seeds, cpu, start)


def moved(problem, seed=0):
    """lam and theta away from the start, and a batch."""
    gen = torch.Generator().manual_seed(seed)
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta = {
        k: v + 0.1 * torch.randn(v.shape, generator=gen, dtype=F64)
        for k, v in problem.init_inner(lam, episode).items()
    }
    return lam, theta, episode.batch(0)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def trained(problem, steps=15, lr=0.05):
    ctx = given(problem, *problem.task.offers, solver="momentum")
    method = methods.get("fixed")(inner_steps=steps, inner_lr=lr)
    return method.step(ctx, method.init(ctx))[0]


def test_every_form_starts_at_one_checkpoint_and_sees_the_same_images():
    problems = [made(**set_) for set_ in (*SPG, PLAIN, {**PLAIN, "rate": 0.0})]
    for problem in problems:
        assert problem.checkpoint.keys() == problems[0].checkpoint.keys()
        for name, value in problem.checkpoint.items():
            assert torch.equal(value, problems[0].checkpoint[name])
        batch, other = (p.episode("train", 2).batch(3) for p in (problem, problems[0]))
        assert torch.equal(batch["x"], other["x"]) and torch.equal(batch["y"], other["y"])
    other = made(seed=1).checkpoint["head.weight"]
    assert not torch.equal(other, problems[0].checkpoint["head.weight"])


def test_the_checkpoint_is_trained_and_parts_share_no_image():
    problem = made(checkpoint_steps=200)
    metrics = problem.metrics({}, problem.start, problem.episode("test", 0))
    assert metrics["accuracy"] == metrics["checkpoint_accuracy"] > 0.5 and metrics["gain"] == 0
    rows = [tuple(x.flatten().tolist()) for p in problem.parts.values() for x in p["x"]]
    assert len(set(rows)) == len(rows) == 150
    x = problem.parts["train"]["x"]
    close(x.mean((0, 2, 3)), torch.zeros(3, dtype=F64))
    close(x.std((0, 2, 3)), torch.ones(3, dtype=F64))


def test_noise_is_another_class_in_the_training_part_alone():
    noisy, clean = made(noise=0.25), made()
    changed = noisy.parts["train"]["y"] != clean.parts["train"]["y"]
    assert int(changed.sum()) == 15 and changed[:15].all()
    for split in ("valid", "test"):
        assert torch.equal(noisy.parts[split]["y"], clean.parts[split]["y"])


def test_fine_tuning_is_cross_entropy_and_dropout_of_the_features():
    plain = made(**PLAIN, rate=0.0)
    lam, theta, batch = moved(plain)
    close(plain.inner_loss(lam, theta, batch), plain.outer_loss(lam, theta, batch))
    dropout = made(**PLAIN, rate=0.4)
    h = retraining.pooled(theta, batch["x"])
    h = torch.where(batch["drop"][:, 0] < 0.4, 0.0, h / 0.6)
    logits = h @ theta["head.weight"].T + theta["head.bias"]
    found = dropout.inner_loss(dropout.init_outer(), theta, batch)
    close(found, F.cross_entropy(logits, batch["y"]))
    assert dropout.field({}, theta, batch) is None


@pytest.mark.parametrize("set_", SPG)
def test_the_field_is_the_gradient_of_the_loss_times_a_detached_factor(set_):
    problem = made(**set_)
    lam, theta, batch = moved(problem)
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    value, first = problem.losses(lam, leaves, batch)
    raw = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
    factor = (first - value).exp().detach()
    assert factor < 1
    normalised = value * factor
    close(normalised, value * torch.exp(first) / torch.exp(value))
    scaled = torch.autograd.grad(normalised, list(leaves.values()))
    field = problem.field(lam, theta, batch)
    for f, s, r in zip(field.values(), scaled, raw, strict=True):
        close(f, s)
        close(f, factor * r)
    assert made(**set_, normalise=False).field(lam, theta, batch) is None


def test_the_field_is_differentiated_with_its_factor():
    problem = made(form="spg_b")
    lam, theta, batch = moved(problem)

    def along(step):
        at = {k: v + step * torch.ones_like(v) for k, v in theta.items()}
        return problem.field(lam, at, batch)["head.bias"]

    by_hand = (along(1e-6) - along(-1e-6)) / 2e-6
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    f = problem.field(lam, leaves, batch)["head.bias"]
    rows = [torch.autograd.grad(one, list(leaves.values()), retain_graph=True) for one in f]
    close(torch.stack([sum(g.sum() for g in row) for row in rows]), by_hand, 1e-6)


@pytest.mark.parametrize("set_", SPG)
def test_modules_of_linear_and_relu_stay_zero_through_training(set_):
    state = trained(made(**set_))
    alive = any(v.any() for k, v in state.theta.items() if k.startswith("module"))
    assert alive == (set_["residual"] == "linear")


def test_modules_are_part_of_no_metric():
    problem = made()
    lam, theta, _ = moved(problem)
    dropped = {k: v for k, v in theta.items() if not k.startswith("module")}
    assert dropped.keys() == problem.checkpoint.keys()
    episode = problem.episode("test", 0)
    whole, alone = (problem.metrics(lam, t, episode) for t in (theta, dropped))
    assert whole.pop("module_norm") > 0 == alone.pop("module_norm")
    assert whole == alone
    assert set(Task().metrics) == {*whole, "module_norm"}


def test_top_classes_keep_every_episode_going():
    """With all five classes allowed no episode ends: form A is a weighted sum of means."""
    problem = made(top=5)
    lam, theta, batch = moved(problem)
    states = retraining.spg.trajectory(
        theta, retraining.pooled(theta, batch["x"]), problem.rates, batch["drop"], "linear"
    )
    means = [F.cross_entropy(retraining.judged(theta, h), batch["y"]) for h in states]
    expected = means[0] + sum(w * m for w, m in zip((0.4, 0.2, 0.1), means[1:], strict=True))
    close(problem.inner_loss(lam, theta, batch), expected, 1e-6)


def test_of_a_hundred_classes_the_test_images_stay_apart(monkeypatch):
    every = (
        torch.arange(3 * 160).view(3, 160, 1, 1, 1).expand(3, 160, 3, 2, 2).remainder(256).byte()
    )
    monkeypatch.setattr(retraining.cifar100, "images", lambda *_: every)
    found = retraining.photographs("cifar100", "metabench")
    for split, first, n in (("train", 0, 120), ("test", 120, 40)):
        x, y = found[split]
        assert y.tolist() == [c for c in range(3) for _ in range(n)]
        numbers = [(160 * c + first + i) % 256 for c in range(3) for i in range(n)]
        torch.testing.assert_close(x[:, 0, 0, 0] * 255, torch.tensor(numbers).float())


@pytest.mark.parametrize(
    ("set_", "words"),
    [
        ({"form": "fine_tuning"}, "set tune to 'rates'"),
        ({"cut": True}, "cut is for form spg_b; form is 'spg_a'"),
        ({"batch": 3000}, "a batch of 3000 from 2000"),
    ],
)
def test_settings_that_contradict_are_refused(set_, words):
    with pytest.raises(SettingError, match=words):
        Task(**set_)


def test_what_applies_follows_from_the_form_and_what_is_tuned():
    ift, unrolled, search = (methods.get(name)() for name in ("ift", "bilevel", "random"))
    loss = Task(normalise=False)
    assert [why_not(loss, m) for m in (ift, unrolled, search)] == [None] * 3
    assert why_not(Task(), unrolled) is None
    rates = Task(tune="rates")
    assert "zeros and ones" in why_not(rates, unrolled) and why_not(rates, search) is None
    with pytest.raises(SettingError, match="shrink = 2 leaves 2 pixels"):
        made(shrink=2)


def test_more_likely_classes_than_there_are():
    with pytest.raises(SettingError, match="top is 11: cifar10 has 10 classes"):
        tasks.get("retraining")(top=11)
