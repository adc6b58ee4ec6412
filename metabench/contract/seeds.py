"""Where randomness comes from: a seed a named stream, and a generator an address."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


STREAMS = ("data", "init", "batches", "method", "evaluation")
"""Names of the streams; each has a seed of its own."""


@dataclass(frozen=True)
class Seeds:
    """One seed a named stream; see :func:`seed_for`."""

    data: int
    init: int
    batches: int
    method: int
    evaluation: int

    @classmethod
    def of(cls, seed: int) -> Seeds:
        """The seeds of a cell with this integer."""
        return cls(**{stream: seed_for(seed, stream) for stream in STREAMS})


def generator(*address: int | str) -> torch.Generator:
    """A CPU generator for one address, such as ``(seeds.batches, split, index)``.

    The same address gives the same numbers whatever was drawn before: a resumed run needs no
    generator state.
    """
    import torch

    digest = hashlib.sha256("/".join(map(str, address)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") & (2**63 - 1))


def seed_for(seed: int, stream: str) -> int:
    """The seed of a named stream ("data", "init", "batches", "method", "evaluation") of a cell.

    A 63-bit integer from sha256, so streams are independent and the same on every machine.
    """
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)
