"""Which filters to smooth a noisy photograph by: a convex field of experts.

Salehi, Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data Sci. 7(3), 2025, arXiv 2308.10098, section
4, as in the authors' code (MohammadSadeghSalehi/MAID, FoE.py); the field is that of Roth, Black,
IJCV 82, 2009, with convex experts:

    R(lam, x) = 1/2 e^s sum_k e^{w_k} sum sqrt((c_k * x)^2 + e^{2 b_k}).

lam = (strength s, log_weights w, log_smoothing b, filters c): 48 filters of 7x7 are 2449 numbers in
the paper. Filters start from Xavier's normal distribution, each with mean 0; s and w at -3, b at
-3.5. Differs from the authors' code: a filter is applied where it fits (theirs mirrors two pixels
at the border), and -3.5 is given to all of b (theirs is off by one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.declared import Moduli
from metabench.contract.problem import Params
from metabench.contract.seeds import Seeds, generator
from metabench.core.registry import task

from .families.images.denoising import (
    BEND_CHANGE,
    Denoising,
    DenoisingProblem,
    slopes,
    smooth_absolute,
)

GRID = 64
"""Frequencies a side at which a bound of the filters' response is taken."""


@task("foe_denoise")
@dataclass(frozen=True)
class FoEDenoise(Denoising):
    """Denoising of photographs (Salehi 2025): filters, weights and smoothing of an expert field."""

    filters: Annotated[int, Field(ge=1)] = 8
    """48 in the paper."""
    filter_size: Annotated[int, Field(ge=2, le=9)] = 3
    """7 in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter_size > self.size:
            raise ValueError(
                f"filter_size {self.filter_size} is more than the image's size {self.size}"
            )

    def build(self, seeds: Seeds, device: torch.device) -> FoEProblem:
        """Draw who trains, who tests, the noise, and the first filters."""
        return FoEProblem(self, seeds, device)


class FoEProblem(DenoisingProblem):
    """lam: "strength" a scalar, "log_weights" and "log_smoothing" [filters], "filters" [filters,
    filter_size, filter_size]."""

    def __init__(self, task: FoEDenoise, seeds: Seeds, device: torch.device) -> None:
        super().__init__(task, seeds, device)
        n, side = task.filters, task.filter_size
        gen = generator(seeds.init, "filters")
        drawn = torch.randn((n, side, side), generator=gen, dtype=torch.float64) / math.sqrt(side)
        self.longest = float(self.noisy.flatten(1).norm(dim=1).max())
        self.first = (drawn - drawn.mean((1, 2), keepdim=True)).to(self.clean)

    def init_outer(self) -> Params:
        """Logs of -3 and -3.5, and random filters of mean 0."""
        n = len(self.first)
        return {
            "strength": self.clean.new_tensor(-3.0),
            "log_weights": self.clean.new_full((n,), -3.0),
            "log_smoothing": self.clean.new_full((n,), -3.5),
            "filters": self.first.clone(),
        }

    def roughness(self, lam: Params, image: Tensor) -> Tensor:
        """1/2 e^s sum_k e^{w_k} sum sqrt((c_k * x)^2 + e^{2 b_k})."""
        found = F.conv2d(image[None, None], lam["filters"][:, None])[0]
        scale = lam["log_smoothing"].exp()[:, None, None]
        weights = (lam["strength"] + lam["log_weights"]).exp()
        return 0.5 * (weights * smooth_absolute(found, scale).sum((1, 2))).sum()

    def moduli(self, lam: Params) -> Moduli:
        """mu = 1 and smooth = 1 + 1/2 |sum_k e^{s+w_k-b_k} C_k' C_k|; proved, as is the rest.

        With C_k the filter as a matrix, W_k = e^{s+w_k}, phi_k(u) = sqrt(u^2 + e^{2 b_k}) and
        r_k = C_k x,

            H = I + 1/2 sum_k W_k C_k' diag(phi_k''(r_k)) C_k ,    0 <= phi_k'' <= e^{-b_k} ,

        and phi_k'' changes by at most BEND_CHANGE e^{-2 b_k} |c_k| |e| for a change e of x. J has
        the columns 1/2 W_k C_k' phi_k'(r_k) for w_k; their sum for s, the gradient of R; for b_k
        1/2 W_k C_k' d phi_k'/db (r_k); and 1/2 W_k (S' phi_k'(r_k) + C_k' diag(phi_k''(r_k)) S x)
        for each of the n numbers of c_k, where S x are the pixels that it meets. The last has a
        factor x: ``mixed_lipschitz`` holds between any image and an inner minimiser, of which
        |x| <= |y|, since it is prox_R(y), 0 is prox_R(0), and a proximal map does not expand.
        """
        filters, scale = lam["filters"], lam["log_smoothing"].exp()
        weights = (lam["strength"] + lam["log_weights"]).exp()
        one = weights.new_ones(1)
        sizes = torch.tensor([most_response(one, c[None]) for c in filters]).to(weights).sqrt()
        change = BEND_CHANGE / scale.square() * filters.flatten(1).norm(dim=1)
        bend = 0.5 * most_response(weights / scale, filters)
        by_logs = math.sqrt(2) * sizes.square() / scale
        by_filter = filters.shape[-1] * sizes * (2 / scale + change * self.longest)
        by_part = 0.5 * weights * torch.stack([by_logs, by_filter])
        return Moduli(
            1.0, 1.0 + bend, outer_smooth=1.0,
            mixed=lambda theta: self.mixed(lam, theta["image"], sizes),
            mixed_lipschitz=math.hypot(bend, float(by_part.norm())),
            hessian_lipschitz=0.5 * most_response(weights * change, filters),
            direct_lipschitz=0.0, outer_convex=True,
        )  # fmt: skip

    def mixed(self, lam: Params, image: Tensor, sizes: Tensor) -> float:
        """At least |J| (Frobenius) at an image; ``sizes`` [filters] are at least |C_k|.

        Exact but for the columns of the filters, of which the two terms are bounded one by one.
        """
        filters, side = lam["filters"][:, None], lam["filters"].shape[-1]
        half = 0.5 * (lam["strength"] + lam["log_weights"]).exp()
        found = F.conv2d(image[None, None], filters)[0]
        slope, by_scale, bend = slopes(found, lam["log_smoothing"].exp()[:, None, None])
        logs = torch.stack([slope, by_scale])
        columns = F.conv_transpose2d(half[:, None, None] * logs, filters, groups=len(half))
        met = F.conv2d(image.square()[None, None], torch.ones_like(filters[:1]))[0]
        by_filter = half * (
            side * slope.flatten(1).norm(dim=1)
            + sizes * (bend.square() * met).flatten(1).sum(1).sqrt()
        )
        return float(torch.cat([columns.flatten(), columns[0].sum(0).flatten(), by_filter]).norm())


def most_response(weights: Tensor, filters: Tensor) -> float:
    """At least |sum_k weights_k C_k' C_k|, of filters [k, side, side] as matrices C_k; proved.

    C_k x is a part of the convolution of c_k with x continued by zeros, so that by Parseval the sum
    is at most max T, with T(f) = sum_k weights_k |c_k(f)|^2 and c_k(f) the Fourier transform. T is
    a trigonometric polynomial of degree n = side - 1 in each direction. In one direction it stays
    above cos(n t) max T at a distance t <= pi / n of its maximum (Bernstein's inequality in Szegő's
    form), and a point of the grid is at most pi / GRID away. So max T <= (largest on the grid) /
    cos(pi n / GRID)^2.
    """
    response = torch.fft.fft2(filters, (GRID, GRID)).abs().square()
    largest = float((weights[:, None, None] * response).sum(0).max())
    return largest / math.cos(math.pi * (filters.shape[-1] - 1) / GRID) ** 2
