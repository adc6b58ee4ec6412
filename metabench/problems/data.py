"""What a user gives as data, as tensors of this project's own: pairs, data sets, inner problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from metabench.contract.problem import Batch
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import SettingError
from metabench.core.text import type_of

ASKED_TWICE = 16
"""Examples of a data set that are read again: transforms that draw numbers give others then."""
FORMS = (
    "a pair of tensors (x, y), a torch Dataset of such pairs, or a DataLoader around one; for "
    "learn='initialisation' also a list of inner problems ((x, y), (x, y)), or a function of a "
    "torch.Generator that draws one"
)


class Pair(NamedTuple):
    """Examples ``x`` [n, ...] and targets ``y`` [n, ...], floats or int64."""

    x: Tensor
    y: Tensor

    @property
    def batch(self) -> Batch:
        """As losses take it."""
        return {"x": self.x, "y": self.y}


class Inner(NamedTuple):
    """An inner problem: what its solver trains on and what judges the outcome."""

    support: Pair
    query: Pair


@dataclass(frozen=True)
class Listed:
    """Inner problems in a list: gone through in a new order again and again in training."""

    all: tuple[Inner, ...]

    def draw(self, seeds: Seeds, split: str, index: int) -> Inner:
        """Number ``index`` of a split."""
        n = len(self.all)
        if split != "train":
            return self.all[index]
        gen = generator(seeds.batches, "order", index // n)
        return self.all[int(torch.randperm(n, generator=gen)[index % n])]

    @property
    def count(self) -> int | None:
        """How many there are."""
        return len(self.all)


@dataclass(frozen=True)
class Drawn:
    """Inner problems that a function of a generator draws, without end."""

    function: Callable[[torch.Generator], Any]
    dtype: torch.dtype

    def draw(self, seeds: Seeds, split: str, index: int) -> Inner:
        """Number ``index`` of a split, from a generator of its own."""
        seed = seeds.batches if split == "train" else seeds.evaluation
        return inner(self.function(generator(seed, "own", split, index)), self.dtype, split)

    @property
    def count(self) -> int | None:
        """They never end."""
        return None


Inners = Listed | Drawn


def pair(given: Any, dtype: torch.dtype, what: str) -> Pair:
    """Examples and targets as tensors of their own: floats in ``dtype``, whole numbers and truth
    values as int64 in ``y``, and as they are in ``x``.

    Raises SettingError for what is none, for examples and targets of different numbers, and for
    numbers that are not finite.
    """
    if isinstance(given, DataLoader):
        given = _of_loader(given, what)
    x, y = _of_dataset(given, what) if isinstance(given, Dataset) else _two(given, what)
    if x.is_floating_point():
        x = x.to(dtype)
    y = y.to(dtype if y.is_floating_point() else torch.int64)
    if not (x.dim() and y.dim()) or len(x) != len(y):
        raise SettingError(
            f"{what}: x is {list(x.shape)} and y {list(y.shape)}; both have the examples first"
        )
    if not len(x):
        raise SettingError(f"{what}: there is no example")
    for name, value in (("x", x), ("y", y)):
        if value.layout != torch.strided:
            raise SettingError(f"{what}: {name} is sparse; give it as {name}.to_dense()")
        if value.is_complex():
            raise SettingError(f"{what}: {name} is complex; give its real and imaginary parts")
        if not bool(torch.isfinite(value).all()):
            raise SettingError(f"{what}: {name} has numbers that are not finite")
    # What the user changes in place later is not ours to follow.
    return Pair(x.detach().clone(), y.detach().clone())


def inner(given: Any, dtype: torch.dtype, what: str) -> Inner:
    """An inner problem of two pairs. Raises SettingError."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise SettingError(f"{what}: give two pairs, ((x, y), (x, y)), not {_kind(given)}")
    support, query = given
    return Inner(pair(support, dtype, f"{what}, support"), pair(query, dtype, f"{what}, query"))


def inners(given: Any, dtype: torch.dtype, what: str) -> Inners | None:
    """Inner problems of a list or a function; None where one data set is given.

    Raises SettingError for a list of none, for inner problems of different shapes, and for a
    function that gives another inner problem for the same generator.
    """
    if _is_pair(given) or isinstance(given, Dataset | DataLoader):
        return None
    if callable(given):
        drawn = Drawn(given, dtype)
        first, again = (drawn.draw(Seeds.of(0), what, 0) for _ in range(2))
        if not all(
            torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(again), strict=True)
        ):
            raise SettingError(
                f"{what}: the function gives two inner problems for one torch.Generator; draw "
                "everything from the one that it is given (torch.randn(..., generator=g))"
            )
        return drawn
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise SettingError(f"{what} cannot be {_kind(given)}: give {FORMS}")
    all_of_them = tuple(inner(one, dtype, f"{what}[{i}]") for i, one in enumerate(given))
    if not all_of_them:
        raise SettingError(f"{what}: there is no inner problem")
    shapes = [[tuple(t.shape) for t in _tensors(one)] for one in all_of_them]
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise SettingError(
            f"{what}: inner problem {odd} has shapes {shapes[odd]}, and 0 has {shapes[0]}; they "
            "are worked through together: give all as many examples"
        )
    return Listed(all_of_them)


def _tensors(one: Inner) -> list[Tensor]:
    return [*one.support, *one.query]


def _is_pair(given: Any) -> bool:
    """Whether this is (x, y), and no list of two inner problems."""
    plain = isinstance(given, tuple | list) and len(given) == 2
    return plain and all(isinstance(part, Tensor | np.ndarray) for part in given)


def _two(given: Any, what: str) -> tuple[Tensor, Tensor]:
    if not _is_pair(given):
        raise SettingError(f"{what} cannot be {_kind(given)}: give {FORMS}")
    x, y = (torch.as_tensor(part) for part in given)
    return x, y


def _kind(given: Any) -> str:
    if isinstance(given, tuple | list):
        inside = ", ".join(type(part).__name__ for part in given[:3])
        return f"{type_of(given)} of {len(given)} ({inside}{', ...' * (len(given) > 3)})"
    return f"{type_of(given)}"


def _of_loader(loader: DataLoader[Any], what: str) -> Dataset[Any]:
    """The data set of a loader, whose batches and order are left to the problem."""
    if loader.collate_fn is not default_collate and loader.batch_size is not None:
        raise SettingError(
            f"{what}: its DataLoader collates examples by a function of its own, which is not "
            "used here; give the pair (x, y) that it makes"
        )
    return loader.dataset


def _of_dataset(data: Dataset[Any], what: str) -> tuple[Tensor, Tensor]:
    """All of it, read once."""
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return data.tensors[0], data.tensors[1]
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise SettingError(f"{what}: {type_of(data)} has no length; give the pair (x, y)")
    n = len(data)
    if not n:
        raise SettingError(f"{what}: there is no example")
    read = [_example(data[i], f"{what}[{i}]") for i in range(n)]
    try:
        x, y = (default_collate([one[k] for one in read]) for k in (0, 1))
    except (RuntimeError, TypeError) as error:
        raise SettingError(
            f"{what}: its examples are no tensors of one shape ({error}); give the data set a "
            "transform that makes them so, or the pair (x, y)"
        ) from None
    for i in range(min(n, ASKED_TWICE)):
        again = [torch.as_tensor(part) for part in _example(data[i], what)]
        if not all(torch.equal(a, b) for a, b in zip(again, (x[i], y[i]), strict=True)):
            raise SettingError(
                f"{what}: example {i} is another one when it is asked for again, as of a random "
                "transform; give the data set without it, and learn='augmentation' for strengths"
            )
    return x, y


def _example(one: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(one, tuple | list) or len(one) != 2:
        raise SettingError(f"{what} is {_kind(one)}, not a pair (x, y)")
    return one[0], one[1]


def same_kind(splits: dict[str, Pair]) -> None:
    """Raise SettingError where splits have examples of different shapes, or targets of different
    types."""
    (first, known), *rest = splits.items()
    for name, other in rest:
        for what, a, b in (("x", known.x, other.x), ("y", known.y, other.y)):
            if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
                raise SettingError(
                    f"{name}: {what} of an example is {list(b.shape[1:])} {b.dtype}; that of "
                    f"{first} is {list(a.shape[1:])} {a.dtype}"
                )
