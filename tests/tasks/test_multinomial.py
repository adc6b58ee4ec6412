"""Softmax regression with a decay a weight: parts, losses, the Hessian, an independent solver."""

import pytest
import torch
from optional import needs
from oracles import F64, differences, given
from torch.nn import functional as F

from metabench.contract.problem import Episode
from metabench.contract.seeds import Seeds
from metabench.core.errors import SettingError
from metabench.hypergradients import reference
from metabench.hypergradients.inexact.inner_solve import to_accuracy
from metabench.tasks.data.images import resized
from metabench.tasks.multinomial import Multinomial, MultinomialProblem

GEN = torch.Generator().manual_seed(0)
IMAGES = {
    split: (torch.rand(n, 1, 8, 8, generator=GEN), torch.arange(n) % 10)
    for split, n in (("train", 70), ("test", 30))
}
SMALL = {"n_train": 40, "n_valid": 20, "n_test": 30, "size": 3}


def made(**set_):
    task = Multinomial(**{**SMALL, **set_})
    return MultinomialProblem(task, Seeds.of(0), torch.device("cpu"), IMAGES)


def lam_of(problem):
    return {"log_decay": torch.linspace(-2, 0, 90, dtype=F64).reshape(problem.shape)}


def test_parts_are_apart_unless_the_test_images_judge():
    problem = made()
    sizes = {k: tuple(p["x"].shape) for k, p in problem.parts.items()}
    assert sizes == {"train": (40, 9), "valid": (20, 9), "test": (30, 9), "selection": (10, 9)}
    train, valid, left = (problem.parts[k]["x"] for k in ("train", "valid", "selection"))
    for a, b in ((train, valid), (train, left), (valid, left)):
        assert not (a[:, None] == b[None]).all(2).any()
    published = made(n_train=70, n_valid=None)
    assert published.parts["valid"] is published.parts["test"]
    assert published.episode("train", 0).outer is published.episode("test", 0).outer
    with pytest.raises(SettingError, match=r"n_train \+ n_valid is 90; mnist has 70"):
        made(n_train=70)


def test_images_are_resized_with_antialiasing():
    """A constant stays; halving 4 x 4 weighs pixels by a triangle of two output pixels' width."""
    small = resized(torch.full((1, 1, 28, 28), 0.5), 12)
    torch.testing.assert_close(small, torch.full((1, 1, 12, 12), 0.5))
    x = torch.zeros(1, 1, 4, 4, dtype=F64)
    x[..., 0] = 1.0
    found = resized(x, 2)
    expected = torch.tensor([0.75 / (0.75 + 0.75 + 0.25), 0.0], dtype=F64)
    torch.testing.assert_close(found[0, 0, 0], expected)


def test_losses_and_derivatives():
    problem = made()
    lam, episode = lam_of(problem), problem.episode("train", 0)
    w = torch.randn(problem.shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    x, y = episode.inner["x"], episode.inner["y"]
    expected = F.cross_entropy(x @ w.T, y) + 0.5 * (lam["log_decay"].exp() * w * w).sum()
    torch.testing.assert_close(problem.inner_loss(lam, {"w": w}, episode.inner), expected)
    g = differences(lambda t: problem.inner_loss(lam, t, episode.inner), {"w": w})["w"]
    leaf = w.clone().requires_grad_()
    (found,) = torch.autograd.grad(problem.inner_loss(lam, {"w": leaf}, episode.inner), leaf)
    torch.testing.assert_close(found, g, rtol=1e-7, atol=1e-9)
    outer = problem.outer_loss(lam, {"w": w}, episode.outer)
    torch.testing.assert_close(outer, F.cross_entropy(episode.outer["x"] @ w.T, episode.outer["y"]))


def test_a_solve_ends_where_scikit_learns_logistic_regression_does():
    """With one decay for all; theirs is the sum of the losses, with C = 1 / (n decay)."""
    needs("sklearn")
    from sklearn.linear_model import LogisticRegression

    problem = made()
    lam = {"log_decay": torch.full(problem.shape, -1.3, dtype=F64)}
    episode = problem.episode("train", 0)
    ctx = given(problem, *problem.task.offers)
    found = to_accuracy(
        ctx, lam, problem.init_inner(lam, episode), episode, norm=1e-11, rule="fista"
    )
    assert found.reached and found.certified
    x, y = episode.inner["x"].numpy(), episode.inner["y"].numpy()
    decay = float(lam["log_decay"].exp()[0, 0])
    theirs = LogisticRegression(
        C=1 / (len(y) * decay), fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=10_000
    ).fit(x, y)
    torch.testing.assert_close(
        found.theta["w"], torch.from_numpy(theirs.coef_), rtol=1e-6, atol=1e-8
    )


PAIR = {"pair": (3, 8), "decays": "pixel", "n_train": 10, "n_valid": None, "n_test": 6}


def test_a_pair_of_digits_with_a_decay_a_pixel_is_logistic_regression():
    """With w = (-u, u) / 2: the logistic loss of u'x, and a quarter of e^lam |u|^2 by pixel."""
    problem = made(**PAIR)
    part = problem.parts["train"]
    assert part["x"].shape == (10, 9) and set(part["y"].tolist()) == {0, 1}
    lam = {"log_decay": torch.linspace(-2, 0, 9, dtype=F64)}
    assert problem.init_outer()["log_decay"].shape == (9,)
    u = torch.randn(9, dtype=F64, generator=torch.Generator().manual_seed(1))
    theta = {"w": torch.stack([-u, u]) / 2}
    sign = 2.0 * part["y"] - 1
    expected = F.softplus(-sign * (part["x"] @ u)).mean()
    penalty = 0.25 * (lam["log_decay"].exp() * u.square()).sum()
    found = problem.inner_loss(lam, theta, part)
    assert float(found) == pytest.approx(float(expected + penalty), abs=1e-14)
    assert float(problem.outer_loss(lam, theta, part)) == pytest.approx(float(expected), abs=1e-14)
    with pytest.raises(SettingError, match="pair is 3 twice"):
        made(**{**PAIR, "pair": (3, 3)})


def test_batches_are_addressed_and_rows_of_their_parts():
    problem = made(batch=5)
    episode = problem.episode("train", 2)
    one, again, next_ = episode.batch(0), problem.episode("train", 2).batch(0), episode.batch(1)
    assert torch.equal(one["x"], again["x"]) and not torch.equal(one["x"], next_["x"])
    for batch, split in ((one, "train"), (episode.outer, "valid")):
        assert batch["x"].shape == (5, 9)
        assert bool((batch["x"][:, None] == problem.parts[split]["x"][None]).all(2).any(1).all())
    assert problem.episode("test", 0).outer is problem.parts["test"]
    task = Multinomial(**SMALL, batch=5)
    assert not task.offers & {"full_batch", "best_response", "strongly_convex"}
    with pytest.raises(SettingError, match="a batch of 30 from 40 training images and 20"):
        made(batch=30)


@pytest.mark.parametrize("more", [{}, PAIR], ids=["a decay a weight", "a decay a pixel"])
def test_hypergradient_square_is_that_of_the_outer_loss_at_the_minimum(more):
    """By differentiation alone, and along the gradient by differences of whole solves."""
    problem = made(exact=True, batch=5, **more)
    assert problem.task.metrics[-1] == "hypergradient_square"
    first = problem.init_outer()["log_decay"]
    lam = {"log_decay": first + torch.linspace(-1, 1, first.numel(), dtype=F64).view_as(first)}
    whole = Episode(problem.parts["train"], problem.parts["valid"])
    known = reference.exact(problem, lam, problem.init_inner(lam, whole), whole)
    square = float(known.grad["log_decay"].square().sum())
    anywhere = {"w": torch.ones(problem.shape, dtype=F64)}
    for split in ("valid", "test"):
        found = problem.metrics(lam, anywhere, problem.episode(split, 0))["hypergradient_square"]
        assert found == pytest.approx(square, rel=1e-10)

    def judged(t):
        moved = {"log_decay": lam["log_decay"] + t * known.grad["log_decay"]}
        end = reference.exact(problem, moved, known.theta, whole).theta
        return float(problem.outer_loss(moved, end, problem.parts["valid"]))

    step = 1e-3 / square**0.5
    assert (judged(step) - judged(-step)) / (2 * step) == pytest.approx(square, rel=1e-5)


def test_at_a_bound_the_hypergradient_is_what_lam_can_move_by():
    free, bounded = (made(exact=True, batch=5, highest_log_decay=high) for high in (6.0, -2.9))
    lam = {"log_decay": torch.full((10, 9), -2.9, dtype=F64)}
    whole = Episode(free.parts["train"], free.parts["valid"])
    g = reference.exact(free, lam, free.init_inner(lam, whole), whole).grad["log_decay"]
    assert 10 < int((g < 0).sum()) < 80
    assert free.hypergradient_square(lam) == pytest.approx(float(g.square().sum()), rel=1e-10)
    inside = float(g.clamp(min=0).square().sum())
    assert bounded.hypergradient_square(lam) == pytest.approx(inside, rel=1e-10)
    with pytest.raises(SettingError, match=r"first_log_decay = -3\.0 is above highest_log_decay"):
        made(highest_log_decay=-4.0)


def test_outer_blocks_are_the_validation_images_in_order():
    problem = made(batch=5)
    found = [problem.outer_block(b)["x"] for b in range(problem.outer_blocks)]
    assert torch.equal(torch.cat(found), problem.parts["valid"]["x"]) and len(found) == 4
    assert made(batch=6).outer_blocks == made().outer_blocks == 0, "20 are no multiple of 6"
