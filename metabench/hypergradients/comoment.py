"""The covariance of a scalar with named tensors, over samples that come group by group."""

from __future__ import annotations

import torch
from torch import Tensor

from metabench.contract.problem import Params


class Comoment:
    """Sums kept about the means, so that nothing cancels (Chan, Golub, LeVeque 1983); memory does
    not grow with the number of samples."""

    def __init__(self) -> None:
        self.n = 0
        self._x: Tensor = torch.zeros(())
        self._y: Params = {}
        self._sum: Params = {}

    def add(self, x: Tensor, y: Params) -> None:
        """A group of m samples: x [m], y name -> [m, *shape]."""
        m, n, mean = len(x), self.n, x.mean()
        own = {k: v.mean(0) for k, v in y.items()}
        within = {k: torch.tensordot(x - mean, v - own[k], 1) for k, v in y.items()}
        self.n = n + m
        if not n:
            self._x, self._y, self._sum = mean, own, within
            return
        part, gap = m / (n + m), mean - self._x
        self._x = self._x + part * gap
        for k, v in own.items():
            apart = v - self._y[k]
            self._y[k] = self._y[k] + part * apart
            self._sum[k] = self._sum[k] + within[k] + n * part * gap * apart

    def covariance(self) -> Params:
        """Of x with each entry of y, unbiased where samples are independent.

        Raises ValueError for fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs two samples, there are {self.n}")
        return {k: v / (self.n - 1) for k, v in self._sum.items()}
