"""What is dropped is a function of the numbers of examples, and drops as torch's own does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from own_problems import DOUBLE, drawn
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.problems.dropout import Dropout, numbers


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
