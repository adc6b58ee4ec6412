"""Softmax regression: the Hessian of its cross-entropy in closed form, as a product and dense.

With p = softmax(x W' + b) and a direction v of (W, b), z = x v_W' + v_b:

    s = p (z - sum_c p_c z_c) ,   (H v)_W = s' x / n ,   (H v)_b = sum_i s_i / n .
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Params

BENDS = 1 / 2, 2**1.5 / (6 * 3**0.5)
"""The largest second and third derivative of log sum_c e^{z_c} along a unit z: variance and third
central moment of a variable whose values are at most sqrt 2 apart."""

LOGISTIC_BENDS = 1 / 4, 1 / (6 * 3**0.5)
"""The same of log(1 + e^z)."""

BLOCK_BYTES = 2**20
"""Rows are worked through in blocks of about this size: each is read from memory once a product."""


@dataclass(frozen=True)
class SoftmaxHessian:
    """v -> H v for directions {weight: [classes, d], bias: [classes]} (the bias may be absent).

    ``x`` [n, d], ``p`` [n, classes] the probabilities at the weights; ``weight`` and ``bias`` are
    the names to read and to answer in.
    """

    x: Tensor
    p: Tensor
    weight: str = "weight"
    bias: str = "bias"

    def __call__(self, v: Params) -> Params:
        """H v, in the order of v's names."""
        n, d = self.x.shape
        rows = max(1, BLOCK_BYTES // (d * self.x.element_size()))
        w, b = v[self.weight], v.get(self.bias)
        out = {k: torch.zeros_like(u) for k, u in v.items()}
        for x, p in zip(torch.split(self.x, rows), torch.split(self.p, rows), strict=True):
            pz = p * F.linear(x, w, b)
            s = pz - p * pz.sum(1, keepdim=True)
            # Not in place: under vmap only some of these have the dimension of the episodes.
            out[self.weight] = torch.addmm(out[self.weight], s.t(), x)
            if b is not None:
                out[self.bias] = out[self.bias] + s.sum(0)
        return {k: u / n for k, u in out.items()}


def dense_hessian(x: Tensor, p: Tensor, weights: Tensor) -> Tensor:
    """Of sum_i weights_i CE_i in W, flattened from [classes, d]: [classes d, classes d].

    ``x`` [n, d], ``p`` [n, classes] the probabilities at W, ``weights`` [n]. A column of ones in
    ``x`` gives the derivatives in a bias.
    """
    d, classes = x.shape[1], p.shape[1]
    out = x.new_empty(classes, d, classes, d)
    for a in range(classes):
        for b in range(a + 1):
            s = weights * p[:, a] * ((1.0 if a == b else 0.0) - p[:, b])
            out[a, :, b] = (x * s[:, None]).t() @ x
            out[b, :, a] = out[a, :, b]
    return out.reshape(classes * d, classes * d)
