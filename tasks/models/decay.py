"""A penalty 1/2 sum c w^2 with c = e^lam, where one lam may be for many weights."""

from __future__ import annotations

from torch import Tensor


def mixed_norm(c: Tensor, w: Tensor) -> float:
    """The spectral norm of the penalty's second derivative in lam and w, for ``c`` that broadcasts
    to ``w``: its columns c w, a lam each, share no weight, so the longest is the norm."""
    return float((c * w).square().sum_to_size(c.shape).max().sqrt())
