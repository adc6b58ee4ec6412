"""Dropout of a user's model: what is dropped is a function of the batch, and of training alone."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from metabench.problems.dropout import NUMBER, Dropout, numbers

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


def fresh(n: int, seed: int = 0) -> Dropout:
    return Dropout(numbers(n, torch.Generator().manual_seed(seed)))


def dropped(f: Callable[[], Tensor], n: int, seed: int = 0) -> Tensor:
    with fresh(n, seed):
        return f()


def test_entries_are_dropped_at_the_rate_whatever_example_place_and_call() -> None:
    """The mean of n Bernoulli variables is off by 5 of its standard deviations once in 10^6."""
    n, m, p = 500, 1000, 0.3
    x = torch.ones(n, m, dtype=DOUBLE)
    with fresh(n):
        kept, other = (F.dropout(x, p) * (1 - p) for _ in range(2))
    assert set(kept.unique().tolist()) == {0.0, 1.0}

    def near(found: Tensor, mean: float, count: int) -> bool:
        return bool(((found - mean).abs() < 5 * math.sqrt(mean * (1 - mean) / count)).all())

    q = 1 - p
    assert near(kept.mean(), q, n * m)
    assert near(kept.mean(0), q, n) and near(kept.mean(1), q, m)
    both = q * q  # of what is independent: places side by side, examples, and calls
    for a, b in ((kept[:, 1:], kept[:, :-1]), (kept[1:], kept[:-1]), (kept, other)):
        assert near((a * b).mean(), both, a.numel())
    numbered = Dropout(torch.arange(n))  # numbers side by side are no worse than random ones
    with numbered:
        kept = F.dropout(x, p) * q
    assert near(kept.mean(), q, n * m) and near((kept[1:] * kept[:-1]).mean(), both, n * m - m)


def hashed(x: int) -> int:
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 15)


def test_what_is_dropped_is_the_hash_of_number_call_and_place() -> None:
    """Records of runs rest on it."""
    some = [0, 1, 2**32 - 1]
    x = torch.ones(3, 2, 5, dtype=DOUBLE)
    with Dropout(torch.tensor(some)):
        for call in (1, 2):
            keys = [hashed((number + call * 0x9E3779B9) % 2**32) for number in some]
            found = [[hashed(key ^ hashed(i)) >= 0.4 * 2**32 for i in range(10)] for key in keys]
            assert (F.dropout(x, 0.4) > 0).flatten(1).tolist() == found


def test_an_example_drops_the_same_whatever_stands_beside_it() -> None:
    x, number = drawn(6, 3, 4), numbers(6, torch.Generator().manual_seed(3))
    with Dropout(number):
        whole = F.dropout(x, 0.5)
    with Dropout(number[2:4]):
        assert torch.equal(F.dropout(x[2:4], 0.5), whole[2:4])
    with Dropout(number):  # as when a batch [n, 3, 4] goes through layers as [n * 3, 4]
        assert torch.equal(F.dropout(x.reshape(18, 4), 0.5).view(6, 3, 4), whole)
    with Dropout(
        number
    ):  # and where the examples stand elsewhere it drops at its rate all the same
        odd = F.dropout(torch.ones(1001, 6, dtype=DOUBLE), 0.5)
    assert abs(float(odd.mean()) - 1) < 5 / math.sqrt(6006)


def test_episodes_at_once_drop_what_they_drop_one_by_one() -> None:
    number = numbers(12, torch.Generator()).view(3, 4)
    x = drawn(3, 4, 5)

    def loss(x: Tensor, number: Tensor) -> Tensor:
        with Dropout(number):
            return F.dropout(F.dropout(x, 0.5).sin(), 0.2).square().sum()

    slope = torch.func.grad(loss)
    found = torch.func.vmap(slope)(x, number)
    expected = torch.stack([slope(a, b) for a, b in zip(x, number, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    tangent = torch.func.jvp(lambda x: loss(x, number[0]), (x[0],), (x[1],))[1]
    torch.testing.assert_close(tangent, (expected[0] * x[1]).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("f", "shape", "channels"),
    [
        (F.dropout1d, (3, 4, 5), 2),
        (F.dropout1d, (3, 5), 1),
        (F.dropout2d, (3, 4, 5, 5), 2),
        (F.dropout3d, (3, 4, 2, 2, 2), 2),
        (F.dropout3d, (3, 4, 2, 2), 1),
        (F.feature_alpha_dropout, (3, 4, 5, 5), 2),
    ],
)
def test_channels_are_dropped_whole(f: Any, shape: tuple[int, ...], channels: int) -> None:
    found = dropped(lambda: f(torch.ones(shape, dtype=DOUBLE), 0.5, True), 3)
    by_channel = found.flatten(channels) if channels < len(shape) else found[..., None]
    assert bool((by_channel == by_channel[..., :1]).all())
    assert len(by_channel[..., 0].unique()) == 2


@pytest.mark.parametrize(
    "f", [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
          F.feature_alpha_dropout],
)  # fmt: skip
@pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
def test_values_are_those_of_torch(f: Any, p: float) -> None:
    """Of one constant, torch makes two values: of what is kept, and of what is dropped."""
    space = {F.dropout1d: (2,), F.dropout2d: (2, 2)}.get(f, (2, 2, 2))
    x = torch.full((40, 30, *space), 1.5, dtype=DOUBLE)
    torch.manual_seed(0)
    expected = f(x, p, True).unique()
    torch.testing.assert_close(dropped(lambda: f(x, p, True), 40).unique(), expected)
    held = x.clone()
    assert torch.equal(dropped(lambda: f(x, p, False), 40), held)
    inside = dropped(lambda: f(held, p, True, inplace=True), 40)
    assert inside is held and torch.equal(held, dropped(lambda: f(x, p, True), 40))


def test_a_rate_that_is_none_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"), fresh(3):
        F.dropout(torch.ones(3, dtype=DOUBLE), 1.5)


NONE = 1e-12
"""A rate at which nothing is dropped."""


@pytest.mark.parametrize("how", ["plain", "causal", "bool", "float", "scale", "groups"])
def test_attention_with_nothing_dropped_is_that_of_torch(how: str) -> None:
    q, k, v = drawn(3, 4, 5, 6), drawn(3, 4, 5, 6, seed=1), drawn(3, 4, 5, 6, seed=2)
    more: dict[str, Any] = {
        "plain": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril(1)},
        "float": {"attn_mask": drawn(5, 5, seed=3)},
        "scale": {"scale": 0.3},
        "groups": {"enable_gqa": True},
    }[how]
    if how == "groups":
        k, v = k[:, :2], v[:, :2]
    attend = F.scaled_dot_product_attention
    found = dropped(lambda: attend(q, k, v, dropout_p=NONE, **more), 3)
    torch.testing.assert_close(found, attend(q, k, v, **more))
    torch.testing.assert_close(dropped(lambda: attend(q, k, v, **more), 3), found)


def test_a_transformer_drops_by_the_batch_and_is_torchs_own_where_nothing_is_dropped() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.3, batch_first=True).double()
    x = drawn(3, 5, 4)
    first, again, other = (dropped(lambda: layer(x), 3, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    part = layer.self_attn
    with fresh(3):
        weights = part(x, x, x)[1]  # the mean over two heads of rows that sum to 1 before
    assert not torch.allclose(weights.sum(-1), torch.ones(3, 5, dtype=DOUBLE))
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.p = NONE
    part.dropout = NONE
    torch.testing.assert_close(dropped(lambda: layer(x), 3), layer.eval()(x))


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
