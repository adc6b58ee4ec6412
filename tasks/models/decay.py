"""A penalty 1/2 sum c w^2 with c = e^lam, where one lam may be for many weights."""

from __future__ import annotations

from torch import Tensor

from metabench.contract.declared import Moduli


def mixed_norm(c: Tensor, w: Tensor) -> float:
    """The spectral norm of the penalty's second derivative in lam and w, for ``c`` that broadcasts
    to ``w``: its columns c w, a lam each, share no weight, so the longest is the norm."""
    return float((c * w).square().sum_to_size(c.shape).max().sqrt())


def moduli(c: Tensor, *, bend: float, twist: float, outer: float) -> Moduli:
    """Of a convex loss of "w" with that penalty and a convex outer loss without lam: ``bend``
    bounds the loss's Hessian, ``twist`` how fast that changes, ``outer`` the outer loss's; proved
    where they are."""
    largest = float(c.max())
    return Moduli(
        float(c.min()), bend + largest, outer_smooth=outer,
        mixed=lambda theta: mixed_norm(c, theta["w"]), mixed_lipschitz=largest,
        hessian_lipschitz=twist, direct_lipschitz=0.0, outer_convex=True,
    )  # fmt: skip
