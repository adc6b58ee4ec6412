"""How strongly to smooth a noisy photograph: total variation with two outer variables.

Salehi, Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data Sci. 7(3), 2025, arXiv 2308.10098, section
4, as in the authors' code (MohammadSadeghSalehi/MAID, TV_denoising.py):

    R(lam, x) = 1/2 e^a sum sqrt(d^2 + e^{2b}) over differences d of neighbours, across and down,

lam = (a, b) = (log_weight, log_smoothing), first (-5, -5). What all images share:
:mod:`metabench.tasks.families.images.denoising`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.declared import Moduli
from metabench.contract.problem import Hyper, Params
from metabench.contract.seeds import Seeds
from metabench.core.registry import task

from .families.images.denoising import (
    BEND_CHANGE,
    Denoising,
    DenoisingProblem,
    slopes,
    smooth_absolute,
)

FIRST = -5.0
"""Of both outer variables."""


@task("tv_denoise")
@dataclass(frozen=True)
class TVDenoise(Denoising):
    """Denoising of photographs (Salehi 2025): weight and smoothing of total variation."""

    @property
    def offers(self) -> frozenset[str]:
        """Two bounded outer variables too."""
        return super().offers | {"small_lam", "search_space"}

    def build(self, seeds: Seeds, device: torch.device) -> TVProblem:
        """Draw who trains, who tests, and the noise."""
        return TVProblem(self, seeds, device)


class TVProblem(DenoisingProblem):
    """lam: "log_weight" and "log_smoothing", scalars."""

    hypers = (
        Hyper("log_weight", (), -8.0, 2.0, meaning="log of twice the weight of total variation"),
        Hyper("log_smoothing", (), -8.0, 0.0, meaning="log of the difference that counts as none"),
    )

    def init_outer(self) -> Params:
        """-5 for both."""
        return {h.name: self.clean.new_tensor(FIRST) for h in self.hypers}

    def roughness(self, lam: Params, image: Tensor) -> Tensor:
        """1/2 e^a sum sqrt(d^2 + e^{2b})."""
        scale = lam["log_smoothing"].exp()
        across, down = image[:, 1:] - image[:, :-1], image[1:] - image[:-1]
        total = smooth_absolute(across, scale).sum() + smooth_absolute(down, scale).sum()
        return 0.5 * lam["log_weight"].exp() * total

    def moduli(self, lam: Params) -> Moduli:
        """mu = 1 and smooth = 1 + 4 e^{a-b}; proved, as is the rest.

        With D the differences across and down and phi(u) = sqrt(u^2 + e^{2b}),

            H = I + 1/2 e^a D' diag(phi''(D x)) D ,    J = 1/2 e^a D' [phi'(D x), d phi'/db (D x)] .

        0 <= phi'' <= e^{-b}, and |D|^2 <= 8: in one direction the sum of (x_{i+1} - x_i)^2 <=
        2 (x_{i+1}^2 + x_i^2) is at most 4 |x|^2. (The authors' code has sqrt(8) in the place of 4,
        which is no bound.) A change e of x moves no difference by more than sqrt(2) |e|, which
        bounds the change of phi'', and moves [phi', d phi'/db] by at most sqrt(2) e^{-b} |D e|.
        """
        weight, scale = (float(lam[h.name].exp()) for h in self.hypers)
        change = 4 * math.sqrt(2) * weight / scale
        return Moduli(
            1.0, 1.0 + 4.0 * weight / scale, outer_smooth=1.0,
            mixed=lambda theta: self.mixed(lam, theta["image"]), mixed_lipschitz=change,
            hessian_lipschitz=change * BEND_CHANGE / scale, direct_lipschitz=0.0, outer_convex=True,
        )  # fmt: skip

    def mixed(self, lam: Params, image: Tensor) -> float:
        """|J| (Frobenius) at an image."""
        scale = lam["log_smoothing"].exp()
        across = slopes(image[:, 1:] - image[:, :-1], scale)[:2]
        down = slopes(image[1:] - image[:-1], scale)[:2]
        columns = [
            F.pad(a, (1, 0)) - F.pad(a, (0, 1)) + F.pad(d, (0, 0, 1, 0)) - F.pad(d, (0, 0, 0, 1))
            for a, d in zip(across, down, strict=True)
        ]
        return 0.5 * float(lam["log_weight"].exp() * torch.stack(columns).norm())
