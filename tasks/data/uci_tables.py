"""Regression tables of the UCI repository (and Delve), as float64 tensors."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metabench.core.errors import MetabenchError, UnknownName
from metabench.datasets import locate

from .formats import arrays

SIZES = {
    "yacht": (308, 6),
    "energy": (768, 8),
    "concrete": (1030, 8),
    "kin8nm": (8192, 8),
    "power": (9568, 4),
}
"""Table to rows and inputs."""


def load(name: str) -> tuple[Tensor, Tensor]:
    """Inputs [n, d] and targets [n] of a table, in the file's order and units.

    What comes back is shared between callers: never change it in place. Raises DataMissing,
    UnknownName, and MetabenchError where the file holds something else than it should.
    """
    if name not in SIZES:
        raise UnknownName("regression table", name, SIZES)
    return _load(name, locate.find("uci_regression").resolve() / "uci_regression.npz")


def standard(x: Tensor, by: Tensor) -> Tensor:
    """x less the mean of ``by`` and over its deviation; a constant column is left at 0."""
    scale = by.std(0, correction=0)
    return (x - by.mean(0)) / torch.where(scale > 0, scale, torch.ones_like(scale))


@lru_cache(maxsize=8)
def _load(name: str, path: Path) -> tuple[Tensor, Tensor]:
    with arrays.readable(path, "uci_regression"):
        x, y = arrays.read(path, f"{name}_x", f"{name}_y")
    n, d = SIZES[name]
    if x.shape != (n, d) or y.shape != (n,):
        raise MetabenchError(
            f"{path} holds {name} as {list(x.shape)} and {list(y.shape)} instead of [{n}, {d}] "
            f"and [{n}]"
        )
    return torch.from_numpy(x.astype(np.float64)), torch.from_numpy(y.astype(np.float64))
