"""What a step must not do: give numbers that are none, or change the state that it was given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from metabench.contract.guards import check_like
from metabench.contract.method import State
from metabench.contract.problem import Params
from metabench.core.errors import Diverged
from metabench.core.text import listed, type_of


class ChangedInPlace(Exception):
    """A method changed a state that it was given; the best state may be the same tensors."""


class Untouched:
    """A state as it was: its dicts, and its tensors' counters of writes and, with ``bits``, their
    sums. Only those show a write around the counter, through ``.data`` or numpy."""

    def __init__(self, state: State, *, bits: bool = False) -> None:
        self._state, self._bits = state, bits
        self._leaves = dict(_leaves(vars(state), ""))
        self._marks = {
            name: self._mark(leaf)
            for name, leaf in self._leaves.items()
            if isinstance(leaf, Tensor)
        }

    def check(self, when: str) -> None:
        """Raise :class:`ChangedInPlace` where the state is another now."""
        now = dict(_leaves(vars(self._state), ""))
        for name in {**self._leaves, **now}:
            old: Any = self._leaves.get(name)
            new: Any = now.get(name)
            if isinstance(new, Tensor):
                if old is not new or self._mark(new) != self._marks[name]:
                    break
            elif old is not new and old != new:
                break
        else:
            return
        raise ChangedInPlace(
            f"{name} of the state was changed in place {when}: a step returns a new State of new "
            "tensors (clone what it writes to)"
        )

    def _mark(self, x: Tensor) -> tuple[int, int]:
        writes = 0 if x.is_inference() else x._version
        return writes, _sum_of_bits(x) if self._bits else 0


def _leaves(tree: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(part, f"{at}.{name}" if at else str(name))
    else:
        yield at, tree


def _sum_of_bits(x: Tensor) -> int:
    """Of all entries, read as whole numbers."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(x.element_size(), torch.int64)
    return int(x.detach().reshape(-1).view(kind).sum(dtype=torch.int64))


def check_state(what: str, found: object) -> None:
    """Raise TypeError where a function of a method has given something else than a State."""
    if not isinstance(found, State):
        raise TypeError(f"{what} gives {type_of(found)}, not a State")


def check_step(method: str, found: Any, before: State) -> tuple[State, dict[str, float]]:
    """What a step has given, once it is found to be a State and a dict, and lam to have kept its
    names and shapes. Raises TypeError."""
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise TypeError(f"step of {method} gives {_kind(found)}, not (State, dict of numbers)")
    check_state(f"step of {method}", found[0])
    for name, value in found[1].items():
        if not isinstance(value, Real):
            raise TypeError(f"step of {method} logs {name!r} as {type_of(value)}")
    check_like(f"lam after a step of {method}", found[0].outer, before.outer)
    return found


def _kind(found: object) -> str:
    inside = f" of {listed(type(x).__name__ for x in found)}" if isinstance(found, tuple) else ""
    return type_of(found) + inside


def check_numbers(step: int, log: dict[str, float], lam: Params) -> None:
    """Raise Diverged where the outer loss or lam is no number."""
    loss = log.get("outer_loss")
    if loss is not None and not math.isfinite(loss):
        raise Diverged(f"the outer loss at outer step {step} is {loss}")
    if lam and not bool(torch.stack([torch.isfinite(v).all() for v in lam.values()]).all()):
        bad = [name for name, v in lam.items() if not bool(torch.isfinite(v).all())]
        raise Diverged(f"lam is not finite after outer step {step} (in {', '.join(bad)})")
