"""What tasks share whose learner has a rule of its own: lam in words, its first values, draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.problem import Hyper, Params

NO_GRADIENTS = dict.fromkeys(
    ("outer_gradient", "second_order", "inner_loss", "lam_in_inner_loss", "lam_is_initialisation",
     "best_response", "prediction", "full_batch", "strongly_convex"),
    "the learner has steps of its own, without autograd: lam is searched for, not differentiated",
)  # fmt: skip

TAGI_PARTS = (
    Hyper("sigma_v", (), 0.05, 10.0, log=True, meaning="deviation of an observation"),
    Hyper("gain", (), 0.1, 10.0, log=True, meaning="multiple of the prior variances"),
)
ADAM = (Hyper("rate", (), 1e-5, 0.1, log=True, meaning="step size of Adam"),)

# What lam may be is also what its first value may be.
SigmaV = Annotated[float, Field(ge=TAGI_PARTS[0].low, le=TAGI_PARTS[0].high)]
Gain = Annotated[float, Field(ge=TAGI_PARTS[1].low, le=TAGI_PARTS[1].high)]
Rate = Annotated[float, Field(ge=ADAM[0].low, le=ADAM[0].high)]


def first(hypers: Sequence[Hyper], settings: object, device: torch.device) -> Params:
    """lam with the values that a task's settings of the same names have. Raises ValueError where
    one is out of bounds."""
    out = {}
    for h in hypers:
        value = float(getattr(settings, h.name))
        if not (h.low or 0.0) <= value <= (h.high or np.inf):
            raise ValueError(f"{h.name} is {value:g}: it must be in {h.low:g} to {h.high:g}")
        out[h.name] = torch.tensor(value, dtype=torch.float64, device=device)
    return out


def draw(seed: Tensor) -> np.random.Generator:
    """numpy's generator for an int64 seed []."""
    return np.random.default_rng(int(seed))
