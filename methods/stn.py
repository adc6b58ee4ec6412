"""Self-tuning networks: a network that answers hyperparameters, trained while they are tuned.

MacKay, Vicol, Lorraine, Duvenaud, Grosse: Self-Tuning Networks: Bilevel Optimization of
Hyperparameters using Structured Best-Response Functions, ICLR 2019, arXiv 1903.03088.

    training  min over phi       E_eps G(r(u + eps), theta_phi(u + eps)),  eps ~ N(0, diag sigma^2)
    tuning    min over u, sigma  E_eps F(r(u), theta_phi(u + eps)) - tau H[N(u, diag sigma^2)]

The gradient in u flows through the response alone (and through an F that names lam), never through
the regulariser, which may be discrete. Differs from the authors' code: step sizes do not fall,
sigma's update rule is u's, theta1 of biases starts at one (``bias_slopes = "uniform"`` is theirs),
and theta0 has no trained factor beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metabench.core.registry import method
from metabench.hypergradients.self_tuning import SelfTuning


@method("stn")
@dataclass(frozen=True)
class STN(SelfTuning):
    r"""Self-tuning network (MacKay 2019): rows of theta gated by lam, trained under noise on lam.

    Formula:
        \theta_\phi(u) = \theta_0 + \mathrm{diag}(V u)\, \theta_1

        \min_{\phi}\; \mathbb{E}_{\varepsilon}\, G(r(u + \varepsilon), \theta_\phi(u +
        \varepsilon)), \qquad \min_{u,\, \sigma}\; \mathbb{E}_{\varepsilon}\, F(r(u),
        \theta_\phi(u + \varepsilon)) - \tau\, \mathbb{H}[\mathcal{N}(u, \sigma^2)]

    Loop:
        for t in range(inner_steps):
            at = u + sigma * normal()
            phi = phi - inner_lr * grad(G(r(at), response(phi, at)), phi)
        at = u + sigma * normal()
        loss = F(r(u), response(phi, at)) - entropy_weight * entropy(sigma)
        u, sigma = u - outer_lr * grad(loss, u), sigma - outer_lr * grad(loss, sigma)
    """

    gates: ClassVar[float] = 0.01

    def centre(self, u: Tensor) -> Tensor:
        """Nothing: the gates see u + eps."""
        return torch.zeros_like(u)
