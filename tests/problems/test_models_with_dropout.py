"""Problems of models with dropout: losses and hypergradients against trainings by hand."""

from __future__ import annotations

from typing import Any

import own_problems
import pytest
import torch
from own_problems import BINARY, DOUBLE, Dropping, classes, drawn
from torch import Tensor, nn
from torch.nn import functional as F

from metabench import problem_from, testing
from metabench.conformance.harness import Harness, snapshot, stored, unchanged
from metabench.contract import autodiff
from metabench.problems.dropout import NUMBER, Dropout

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


class Pooled(nn.Module):
    """A transformer over the four features of a row, and a linear layer."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.body = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=batch_first)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 2]."""
        where = 1 if self.batch_first else 0
        rows = (x[:, :, None] * torch.ones(4, dtype=x.dtype)).movedim(1, where)
        found: Tensor = self.last(self.body(rows).mean(where))
        return found


def test_a_transformer_keeps_the_contract_of_a_task() -> None:
    task = problem_from(lambda: Pooled().double(), *BINARY, batch_size=5)
    assert {"second_order", "example_losses"} <= task.offers
    for _, check in testing.task_checks(task, methods=[]):
        check()
    other = problem_from(lambda: Pooled(batch_first=False).double(), *BINARY, batch_size=5)
    assert "example_losses" not in other.offers
    assert "others of its batch" in other.lacks["example_losses"]


def masks(number: Tensor, *calls: tuple[tuple[int, ...], float]) -> list[Tensor]:
    """What a pass multiplies its inputs by, call by call."""
    with Dropout(number):
        return [F.dropout(torch.ones(shape, dtype=DOUBLE), p) for shape, p in calls]


def by_hand(theta: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Losses [n] of Dropping, in training, from its masks."""
    n = len(batch["y"])
    first, second = masks(batch[NUMBER], ((n, own_problems.FEATURES), 0.2), ((n, 5), 0.4))
    hidden = F.linear(batch["x"] * first, theta["first.weight"], theta["first.bias"]).tanh()
    logits = F.linear(hidden * second, theta["last.weight"], theta["last.bias"])
    return F.cross_entropy(logits, batch["y"], reduction="none")


def decays(**how: Any) -> Any:
    return problem_from(Dropping, *BINARY, decays="one", test=classes(9, 2), **how)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_training_loss_is_that_of_its_masks_and_passes_gradcheck(
    batch_size: int | None,
) -> None:
    problem = testing.context(decays(batch_size=batch_size)).problem
    lam, theta = problem.init_outer(), problem.network.start
    batch = problem.episode("train", 2).batch(3)
    assert batch[NUMBER].dtype == torch.int64 and batch[NUMBER].shape == batch["y"].shape
    size = sum(v.square().sum() for v in theta.values())
    expected = by_hand(theta, batch).mean() + 0.5 * lam["log_decay"].exp() * size
    torch.testing.assert_close(problem.inner_loss(lam, theta, batch), expected, rtol=1e-12, atol=0)
    names = list(theta)

    def loss(log_decay: Tensor, *values: Tensor) -> Tensor:
        at = dict(zip(names, values, strict=True))
        found: Tensor = problem.inner_loss({"log_decay": log_decay}, at, batch)
        return found

    inputs = [v.clone().requires_grad_() for v in (lam["log_decay"], *theta.values())]
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_a_step_drops_the_same_when_it_is_asked_for_again_and_another_one_something_else() -> None:
    task = decays()
    problem, built_again = (testing.context(task).problem for _ in range(2))
    number = problem.episode("train", 1).batch(2)[NUMBER]
    assert torch.equal(built_again.episode("train", 1).batch(2)[NUMBER], number)
    other_seed = testing.context(task, seed=1).problem
    for other in (
        problem.episode("train", 1).batch(1),
        problem.episode("train", 2).batch(2),
        problem.episode("valid", 1).batch(2),
        other_seed.episode("train", 1).batch(2),
    ):
        assert not torch.equal(other[NUMBER], number)


@pytest.mark.parametrize("kind", ["dropout", "dropout of channels", "start with dropout"])
def test_what_judges_sees_the_whole_model(kind: str) -> None:
    problem = testing.context(own_problems.KINDS[kind]()).problem
    lam, theta = problem.init_outer(), problem.network.start
    module = problem.network.module.eval()
    for split in ("train", "valid"):
        outer = problem.episode(split, 0).outer
        assert NUMBER not in outer
        prediction = torch.func.functional_call(module, theta, (outer["x"],))
        expected = problem.judge.loss(prediction, outer["y"]).mean()
        assert torch.equal(problem.outer_loss(lam, theta, outer), expected)
        assert problem.metrics(lam, theta, problem.episode(split, 0))["loss"] == float(expected)


def trained(problem: Any, lam: dict[str, Tensor], steps: int, lr: float) -> Tensor:
    """The outer loss after gradient steps on the losses by hand."""
    episode = problem.episode("train", 0)
    theta = dict(problem.network.start)
    for t in range(steps):
        batch = episode.batch(t)

        def loss(at: dict[str, Tensor], batch: Any = batch) -> Tensor:
            weights = lam["logit"].sigmoid()[batch["index"]]
            decayed = [
                (lam[f"log_decay.{k}"].exp() * v.square()).sum() for k, v in at.items()
            ]  # fmt: skip
            return (weights * by_hand(at, batch)).mean() + 0.5 * torch.stack(decayed).sum()

        _, g = autodiff.grad(loss, theta)
        theta = {k: v - lr * g[k] for k, v in theta.items()}
    outer: Tensor = problem.outer_loss(lam, theta, episode.outer)
    return outer


def test_an_unrolled_hypergradient_is_that_of_differences_of_trainings_by_hand() -> None:
    task = own_problems.KINDS["dropout"]()
    ctx = testing.context(task)
    method = testing.build("method", "bilevel", inner_steps=4, inner_lr=0.3)
    lam = ctx.problem.init_outer()
    lam["logit"] = drawn(12, seed=5)
    found = method.hypergradient(ctx, lam, None, ctx.problem.episode("train", 0)).grad
    v = {k: drawn(*x.shape, seed=6) for k, x in lam.items()}
    h = 1e-5
    up, down = (trained(ctx.problem, autodiff.axpy(s * h, v, lam), 4, 0.3) for s in (1, -1))
    slope = (up - down) / (2 * h)
    assert abs(float(autodiff.dot(found, v) - slope)) < 1e-8 * (1 + abs(float(slope)))


def test_an_implicit_hypergradient_has_the_hessian_of_the_step_it_is_taken_at() -> None:
    """-v'(d grad G / d lam) with H v = grad F, all of one batch's loss by hand, differentiated."""
    task = own_problems.KINDS["dropout"]()
    ctx = testing.context(task)
    problem, method = ctx.problem, testing.build("method", "ift", inverse="exact", inner_steps=0)
    lam = problem.init_outer()
    lam |= {k: x + 3 for k, x in lam.items() if k != "logit"}  # convex enough to be inverted
    episode = problem.episode("train", 0)
    theta = dict(problem.network.start)
    seen: list[int] = []
    inner = episode.inner

    def watched(step: int) -> Any:
        seen.append(step)
        return inner(step)

    object.__setattr__(episode, "inner", watched)
    found = method.hypergradient(ctx, lam, theta, episode).grad
    (step,) = set(seen)
    batch = inner(step)
    names, like = list(lam), theta

    def gradient(lam_: dict[str, Tensor], flat: Tensor) -> Tensor:
        def loss(at: dict[str, Tensor]) -> Tensor:
            weights = lam_["logit"].sigmoid()[batch["index"]]
            decayed = [(lam_[f"log_decay.{k}"].exp() * v.square()).sum() for k, v in at.items()]
            return (weights * by_hand(at, batch)).mean() + 0.5 * torch.stack(decayed).sum()

        return autodiff.flatten(torch.func.grad(loss)(autodiff.unflatten(flat, like)))

    flat = autodiff.flatten(theta)
    hessian = torch.func.jacrev(lambda t: gradient(lam, t))(flat)
    outer = torch.func.grad(
        lambda t: problem.outer_loss(lam, autodiff.unflatten(t, like), episode.outer)
    )(flat)
    v = torch.linalg.solve(hessian, outer)
    mixed = torch.func.jacrev(lambda p: gradient(p, flat))(lam)
    for k in names:
        expected = -torch.tensordot(v, mixed[k], dims=1)
        torch.testing.assert_close(found[k], expected, rtol=1e-7, atol=1e-10)


def test_a_run_that_is_gone_on_with_from_a_stored_state_ends_in_the_same_bits() -> None:
    task = own_problems.KINDS["dropout of channels"]()
    at = Harness(testing.build("method", "bilevel", inner_steps=2), task)
    whole = at.run(at.context(), 3)
    ctx = at.context()
    half = stored(at.run(ctx, 1))
    torch.manual_seed(7)  # nothing of it is read
    later = at.context(step=1, notes=dict(ctx.notes))
    state = half
    for _ in range(2):
        state = at.step(later, state)[0]
    assert unchanged(snapshot(whole), state)


def test_episodes_at_once_have_the_hypergradients_of_one_after_another() -> None:
    task = own_problems.KINDS["start with dropout"]()
    at = Harness(testing.build("method", "maml", inner_steps=2), task)
    one, several = (at.run(at.context(engine=engine), 2) for engine in ("loop", "vmap"))
    for k, v in one.lam.items():
        torch.testing.assert_close(several.lam[k], v, rtol=1e-10, atol=1e-12)


def test_a_function_of_ones_own_that_predicts_twice_drops_something_else_each_time() -> None:
    def apart(lam: Any, model: Any, x: Tensor, y: Tensor) -> Tensor:
        first, second = model(x), model(x)
        gap = (first - second).square().mean(1)
        return F.cross_entropy(first, y, reduction="none") + lam["weight"] * gap

    task = problem_from(Dropping, *BINARY, learn=apart, first={"weight": 1.0})
    assert "example_losses" in task.offers
    problem = testing.context(task).problem
    batch, theta = problem.episode("train", 0).batch(0), problem.network.start
    gap = problem.inner_loss({"weight": torch.tensor(1.0, dtype=DOUBLE)}, theta, batch)
    none = problem.inner_loss({"weight": torch.tensor(0.0, dtype=DOUBLE)}, theta, batch)
    assert float(gap - none) > 1e-3
    for _, check in testing.task_checks(task, methods=[]):
        check()


def test_what_a_model_with_dropout_does_not_offer_has_a_reason() -> None:
    task = decays(carried=False)
    assert not task.offers & {"full_batch", "evidence", "module", "best_response"}
    assert "drawn anew" in task.lacks["full_batch"]
    assert "another inner loss" in task.lacks["evidence"]
    assert "no seed of a run" in task.lacks["module"]
    plain = problem_from(lambda: Dropping().eval(), *BINARY, decays="one", carried=False)
    assert {"full_batch", "evidence", "module"} <= plain.offers
