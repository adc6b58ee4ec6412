"""Decays, weights of examples, augmentations and functions against closed forms, in float64."""

from __future__ import annotations

from typing import Any

import own_problems
import pytest
import torch
from own_problems import DOUBLE, drawn, linear, numbers
from torch import Tensor, nn

from metabench import problem_from, testing
from metabench.contract import autodiff
from metabench.core.capabilities import check_applicable
from metabench.errors import NotApplicable, SettingError

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


class Ridge:
    """mean_i w_i (x_i'theta - y_i)^2 + 1/2 sum c theta^2 on training rows, in closed form."""

    def __init__(
        self, c: Tensor | float = 0.0, w: Tensor | float = 1.0, shift: float = 0.0
    ) -> None:
        (self.x, y), (self.xv, yv) = numbers(20), numbers(15, 1)
        self.y, self.yv = y[:, 0] + shift, yv[:, 0]
        n = len(self.y)
        self.w = torch.as_tensor(w, dtype=DOUBLE).expand(n)
        self.c = torch.as_tensor(c, dtype=DOUBLE).expand(self.x.shape[1])
        self.hessian = 2 / n * self.x.T @ (self.w[:, None] * self.x) + self.c.diag()
        self.theta = torch.linalg.solve(self.hessian, 2 / n * self.x.T @ (self.w * self.y))
        self.gap = self.x @ self.theta - self.y

    @property
    def adjoint(self) -> Tensor:
        """H^-1 times the gradient of the validation loss."""
        slope = 2 / len(self.yv) * self.xv.T @ (self.xv @ self.theta - self.yv)
        found: Tensor = torch.linalg.solve(self.hessian, slope)
        return found


def hypergradient(task: Any, lam: dict[str, Tensor], exact: Ridge) -> dict[str, Tensor]:
    """Implicit, with the whole Hessian, at the exact minimiser."""
    ctx = testing.context(task)
    method = testing.build("method", "ift", inverse="exact", inner_steps=0)
    theta = {"weight": exact.theta[None]}
    found: dict[str, Tensor] = method.hypergradient(
        ctx, lam, theta, ctx.problem.episode("train", 0)
    ).grad
    return found


def one_layer(**how: Any) -> Any:
    return problem_from(linear(bias=False), numbers(20), numbers(15, 1), **how)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_decay_for_every_weight_has_the_hypergradient_of_ridge_regression() -> None:
    lam = drawn(4, seed=5) - 1
    exact = Ridge(c=lam.exp())
    found = hypergradient(one_layer(decays="weight"), {"log_decay.weight": lam[None]}, exact)
    close(found["log_decay.weight"][0], -exact.c * exact.theta * exact.adjoint)


@pytest.mark.parametrize(("decays", "name"), [("one", "log_decay"), ("tensor", "log_decay.weight")])
def test_one_decay_has_the_sum_of_them(decays: str, name: str) -> None:
    lam = torch.tensor(-0.7, dtype=DOUBLE)
    exact = Ridge(c=lam.exp())
    found = hypergradient(one_layer(decays=decays), {name: lam}, exact)
    close(found[name], -(exact.c * exact.theta * exact.adjoint).sum())


def test_weights_of_examples_have_the_hypergradient_of_weighted_least_squares() -> None:
    logit = drawn(20, seed=6)
    w = logit.sigmoid()
    exact = Ridge(w=w)
    found = hypergradient(one_layer(learn="example_weights"), {"logit": logit}, exact)
    # d/dlogit_i of the inner gradient is 2/n w_i (1 - w_i) gap_i x_i.
    expected = -2 / 20 * w * (1 - w) * exact.gap * (exact.x @ exact.adjoint)
    close(found["logit"], expected)


def test_weights_and_decays_together_have_both_hypergradients() -> None:
    logit, decay = drawn(20, seed=6), torch.tensor(-1.0, dtype=DOUBLE)
    w = logit.sigmoid()
    exact = Ridge(c=decay.exp(), w=w)
    task = one_layer(learn=["weight_decays", "example_weights"], decays="one")
    found = hypergradient(task, {"log_decay": decay, "logit": logit}, exact)
    close(found["log_decay"], -(exact.c * exact.theta * exact.adjoint).sum())
    close(found["logit"], -2 / 20 * w * (1 - w) * exact.gap * (exact.x @ exact.adjoint))


def test_weights_of_a_minibatch_are_those_of_its_examples() -> None:
    task = one_layer(learn="example_weights", batch_size=5)
    problem = testing.context(task).problem
    batch = problem.episode("train", 0).batch(3)
    lam, theta = {"logit": drawn(20, seed=6)}, {"weight": drawn(1, 4)}
    at = batch["index"]
    assert len(set(at.tolist())) == 5
    x, y = numbers(20)
    gap = (x @ theta["weight"][0] - y[:, 0]).square()
    close(problem.inner_loss(lam, theta, batch), (lam["logit"].sigmoid() * gap)[at].mean())


def test_a_function_of_ones_own_has_its_hypergradient() -> None:
    def shifted(lam: dict[str, Tensor], model: Any, x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y - lam["shift"]).square()[:, 0]

    task = one_layer(learn=shifted, first={"shift": 0.0})
    shift = torch.tensor(0.3, dtype=DOUBLE)
    exact = Ridge(shift=0.3)
    found = hypergradient(task, {"shift": shift}, exact)
    # d/dshift of the inner gradient is -2/n sum_i x_i.
    close(found["shift"], 2 / 20 * exact.x.sum(0) @ exact.adjoint)


def test_strengths_of_zero_leave_images_and_their_slope_is_that_of_differences() -> None:
    x, y = own_problems.images(8)
    task = problem_from(own_problems.cnn, (x, y), own_problems.images(8, 1), learn="augmentation")
    problem = testing.context(task).problem
    batch, theta = problem.episode("train", 0).batch(0), problem.network.start
    plain = nn.functional.cross_entropy(problem.network(theta, x), y)
    none = {k: torch.zeros_like(v) for k, v in problem.init_outer().items()}
    close(problem.inner_loss(none, theta, batch), plain)

    def loss(lam: dict[str, Tensor]) -> Tensor:
        return problem.inner_loss(lam, theta, batch)

    lam = {k: torch.full_like(v, 0.2) for k, v in none.items()}
    _, g = autodiff.grad(loss, lam)
    for name in ("rotation", "brightness", "cutout"):
        h = 1e-7
        up, down = (loss({**lam, name: lam[name] + s * h}) for s in (1, -1))
        torch.testing.assert_close(g[name], (up - down) / (2 * h), rtol=1e-5, atol=1e-7)


def test_validation_and_test_see_images_as_they_are() -> None:
    x, y = own_problems.images(8, 1)
    task = problem_from(own_problems.cnn, own_problems.images(8), (x, y), learn="augmentation")
    problem = testing.context(task).problem
    outer, theta = problem.episode("train", 0).outer, problem.network.start
    expected = nn.functional.cross_entropy(problem.network(theta, x), y)
    close(problem.outer_loss(problem.init_outer(), theta, outer), expected)


@pytest.mark.parametrize("outputs", [1, 3])
def test_evidence_of_numbers_has_the_variance_of_their_mean(outputs: int) -> None:
    """The mean over C squares is minus the log of a normal likelihood of variance C / 2."""
    x = drawn(12, 4)
    y = drawn(12, outputs, seed=1)
    layer = nn.Linear(4, outputs).double()
    task = problem_from(layer, (x, y), (x, y))
    assert {"evidence", "strongly_convex"} <= task.offers
    problem = testing.context(task).problem
    assert problem.evidence(problem.init_outer()).noise == outputs / 2
    dict(testing.task_checks(task, methods=[]))["evidence"]()


@pytest.mark.parametrize("places", [1, 2])
def test_several_classes_of_an_example_offer_no_evidence(places: int) -> None:
    """The mean over them is no likelihood, and (3) has one class an example."""
    y = (drawn(12, places, seed=1) > 0).long()
    layers = nn.Sequential(nn.Linear(4, 3 * places), nn.Unflatten(1, (3, places))).double()
    task = problem_from(layers, (drawn(12, 4), y), (drawn(12, 4), y))
    assert "evidence" not in task.offers and "example_losses" in task.offers
    assert "several classes" in task.lacks["evidence"]
    with pytest.raises(NotApplicable, match="several classes"):
        make = testing.build("method", "marglik")
        check_applicable(task, make, testing.build("solver", make.default_solver))


def test_what_is_given_is_copied() -> None:
    (x, y), valid, layer = numbers(20), numbers(15, 1), linear(bias=False)
    task = problem_from(layer, (x, y), valid)
    before = testing.context(task).problem
    lam, theta = before.init_outer(), before.network.start
    value = before.inner_loss(lam, theta, before.episode("train", 0).batch(0))
    with torch.no_grad():
        x.zero_()
        layer.weight.zero_()
    after = testing.context(task).problem
    assert torch.equal(after.network.start["weight"], theta["weight"])
    assert torch.equal(after.inner_loss(lam, theta, after.episode("train", 0).batch(0)), value)


def test_a_function_that_changed_since_is_refused() -> None:
    factor = torch.ones((), dtype=DOUBLE)

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return factor * (prediction - y).square()[:, 0]

    task = one_layer(loss=loss)
    testing.context(task)
    factor.mul_(2)
    with pytest.raises(SettingError, match=r"what its functions read has changed.*loss"):
        testing.context(task)


def test_a_function_makes_other_weights_for_another_seed_and_leaves_the_global_generator() -> None:
    task = problem_from(own_problems.mlp, *own_problems.BINARY)
    before = torch.random.get_rng_state()
    starts = [testing.context(task, seed=s).problem.network.start for s in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, other = (start["0.weight"] for start in starts)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_frozen_parameters_stay_where_they_are() -> None:
    model = own_problems.mlp()
    for p in model[0].parameters():  # type: ignore[index]
        p.requires_grad_(False)
    task = problem_from(model, *own_problems.BINARY)
    problem = testing.context(task).problem
    assert set(problem.network.start) == {"2.weight", "2.bias"}
    assert "module" not in task.offers and "frozen" in task.lacks["module"]
    for _, check in testing.task_checks(task, methods=[]):
        check()


def test_batch_norm_of_the_batch_is_taken_and_offers_no_single_examples() -> None:
    norm = nn.BatchNorm1d(5, track_running_stats=False)
    model = nn.Sequential(nn.Linear(4, 5), norm, nn.ReLU(), nn.Linear(5, 2)).double()
    task = problem_from(model, *own_problems.BINARY)
    assert not task.offers & {"example_losses", "evidence", "per_example_lam"}
    for need in ("example_losses", "evidence"):
        assert "others of its batch" in task.lacks[need]


def test_batch_norm_with_statistics_as_they_are_is_a_constant() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    task = problem_from(model.eval(), *own_problems.BINARY)
    assert "example_losses" in task.offers


def test_a_loss_with_one_derivative_offers_no_second() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        found: Tensor = Once.apply(prediction - y)
        return found[:, 0].square()

    task = one_layer(loss=loss)
    assert "second_order" not in task.offers and "one derivative" in task.lacks["second_order"]


def test_tensors_of_one_dimension_fit_predictions_of_two() -> None:
    x, y = numbers(20)
    other, target = numbers(15, 1)
    flat = problem_from(linear(), (x, y[:, 0]), (other, target[:, 0]))
    assert flat.given.splits["train"].y.shape == (20, 1)
