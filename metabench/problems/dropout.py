"""Dropout that is a function of the batch: a loss that is computed again drops the same.

Losses read no generator (:mod:`metabench.contract.problem`): one step is computed again by
recomputation, by differences, by vmap over episodes, by a resumed run. So an inner batch has one
number for every example, ``dropout`` int64 [n] below 2^32, drawn with the batch by its address.
What is dropped is a hash of that number, of the place in the example and of how many dropouts came
before: counter-based random numbers, as of Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As
Easy as 1, 2, 3, SC 2011. The hash is one of two rounds of C. Wellons, hash-prospector.

Torch's functions are replaced inside a forward pass, so that modules and functional calls are one
case. A batch without these numbers, such as one that judges, is seen without dropout.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metabench.contract.problem import Batch

NUMBER = "dropout"
"""Its name in a batch."""
_32_BITS = 2**32 - 1
_ODD = 0x9E3779B9
_SELU = 1.7580993408473766  # the product of its two constants, as in torch


def numbers(n: int, gen: torch.Generator) -> Tensor:
    """Of n examples, int64 [n]."""
    return torch.randint(2**32, (n,), generator=gen)


def dropout_of(batch: Batch) -> Dropout | None:
    """What drops in one loss of a batch; None where nothing does."""
    return Dropout(batch[NUMBER]) if NUMBER in batch else None


class Dropout(TorchFunctionMode):
    """Inside, the dropouts of torch.nn.functional, and of its attention, drop by ``number`` [n].

    An input whose first dimension is a multiple of n has the examples there, one after another, and
    each drops by its own number, whichever others stand beside it; another input drops by all of
    them. Every call drops something else: one object serves one evaluation of a loss. ``rate``: of
    all dropouts, in the place of their own.
    """

    def __init__(self, number: Tensor, rate: float | None = None) -> None:
        super().__init__()
        self.number, self.rate = number, rate
        self.calls = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """In here the mode is off."""
        kwargs = kwargs or {}
        if func in _UNBATCHED:
            return self.dropped(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self.attended(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _attention_of_heads(*args, **kwargs)
        return func(*args, **kwargs)

    def dropped(
        self,
        func: Any,
        input: Tensor,
        p: float = 0.5,
        training: bool | None = None,
        inplace: bool = False,
    ) -> Tensor:
        """What ``func``, one of torch's dropouts, does."""
        alpha = func in (F.alpha_dropout, F.feature_alpha_dropout)
        training = not alpha if training is None else training
        if not training or not 0 < p <= 1:
            same: Tensor = func(input, p, training, inplace)
            return same
        shape, p = _entries(func, input), self.rate or p
        kept = self.kept(shape, p).view(*shape, *[1] * (input.dim() - len(shape))).to(input.dtype)
        if p == 1:
            out = input * 0
        elif alpha:
            a = 1 / math.sqrt((1 + p * _SELU**2) * (1 - p))
            out = a * input * kept + a * _SELU * (kept - 1 + p)
        else:
            out = input * (kept / (1 - p))
        return input.copy_(out) if inplace else out

    def attended(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """softmax(q k' scale + mask) v with some of the weights dropped, as torch's documentation
        of scaled_dot_product_attention has it."""
        if not 0 < dropout_p <= 1:
            same: Tensor = F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
            return same
        if enable_gqa:
            key, value = (
                part.repeat_interleave(query.shape[-3] // part.shape[-3], -3)
                for part in (key, value)
            )
        scores = query @ key.transpose(-2, -1)
        scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return self.dropped(F.dropout, scores.softmax(-1), dropout_p) @ value

    def kept(self, shape: tuple[int, ...], p: float) -> Tensor:
        """True with probability 1 - p [*shape]."""
        self.calls += 1
        keys, n = self.number, len(self.number)
        if not shape or shape[0] % n:
            keys = _hashed(keys).sum()[None]
        keys = _hashed((keys + self.calls * _ODD) & _32_BITS)
        places = torch.arange(math.prod(shape) // len(keys), device=keys.device)
        found = _hashed(keys[:, None] ^ _hashed(places))
        return (found >= round(p * 2**32)).view(shape)


_UNBATCHED: dict[Any, int | None] = {
    F.dropout: None,
    F.alpha_dropout: None,
    F.dropout1d: 2,
    F.dropout2d: None,
    F.dropout3d: 4,
    F.feature_alpha_dropout: None,
}
"""Dropouts, and the dimensions of an input that is one example to them."""


def _entries(func: Any, x: Tensor) -> tuple[int, ...]:
    """The shape of what is dropped on its own: entries, or whole channels."""
    if func in (F.dropout, F.alpha_dropout):
        return tuple(x.shape)
    return tuple(x.shape[: 1 if x.dim() == _UNBATCHED[func] else 2])


def _hashed(x: Tensor) -> Tensor:
    """Of int64 below 2^32, into the same. The factors are below 2^31, so nothing overflows."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> shift)).mul_(factor).bitwise_and_(_32_BITS)
    return x ^ (x >> 15)


# It asks at once whether a mode is there and hands itself over, for ever: its own body does not.
_attention_of_heads = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
