"""Hypernetworks as best responses: a network that maps lam to the weights trained under it.

Lorraine, Duvenaud: Stochastic Hyperparameter Optimization through Hypernetworks, arXiv 1802.09419
(chapter 2 of Lorraine's thesis, arXiv 2407.01526); constants are those of the authors' code
(lorraine2/hypernet-hypertraining).

    phi  <-  phi - alpha grad_phi G(lam, w_phi(lam)),   lam ~ p(lam) or N(lam_hat, s^2), or lam_hat
    lam_hat  <-  lam_hat - beta grad_lam F(w_phi(lam_hat))

    linear       w = B lam + b
    relu         w = W relu(V lam + c) + b
    factorised   w = W (V lam + c) + b          (V of few rows: for a long lam)

With enough capacity and full support of p, w_phi is the best response at every lam. The simplified
form, which looks at lam_hat alone, has no such guarantee. Differs from that code: p(lam) is centred
at the task's first lam; samples beyond lam's bounds are moved to them before the network sees them;
b starts at the task's first theta, and hidden units with deviation 1 (there 0.01, where steps of
Adam larger than 1e-4 can silence every unit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.method import Context, Positive
from metabench.contract.problem import Batch, Params
from metabench.core.registry import method
from metabench.hypergradients.best_response import SLOPE, VALUE, BestResponse, Moment, part

HIDDEN = "hidden"
"""Names of V and c in phi: this and ".weight" or ".bias"."""
UNITS = {"relu": 50, "factorised": 10}


@method("hypernet")
@dataclass(frozen=True)
class Hypernet(BestResponse):
    r"""Hypernetwork (Lorraine 2018): weights as a function of lam, learned globally or locally.

    Formula:
        \phi \leftarrow \phi - \alpha\, \nabla_\phi G(\lambda, w_\phi(\lambda)), \qquad \lambda
        \sim \mathcal{N}(\hat\lambda, s^2)

        \hat\lambda \leftarrow \hat\lambda - \beta\, \nabla_{\hat\lambda} F(\hat\lambda,
        w_\phi(\hat\lambda))

    Loop:
        for t in range(inner_steps):
            at = lam + scale * normal()  # training "local"
            phi = phi - inner_lr * grad(G(at, w(phi, at)), phi)
        lam = lam - outer_lr * grad(F(lam, w(phi, lam)), lam)
    """

    training: Literal["global", "local", "simplified"] = "local"
    """Where the hypernetwork is trained: at lam ~ N(first lam, scale^2), at N(lam_hat, scale^2), or
    at lam_hat itself (once a step, whatever ``samples`` and ``scale`` say)."""
    alternate: bool = True
    """False: only the ``warmup`` trains the hypernetwork, and then only lam moves (the paper's
    global algorithm)."""
    network: Literal["linear", "relu", "factorised"] = "linear"
    units: Annotated[int, Field(ge=1)] | None = None
    """Hidden units; None: 50 of "relu", 10 of "factorised"."""
    start: Positive = 0.01
    """Deviation of the first B or W."""
    inner_steps: Annotated[int, Field(ge=1)] = 1
    """Training steps of the hypernetwork for each step of lam."""
    inner_lr: Positive = 1e-3
    scale: Positive = 0.1
    """Deviation of the samples of lam."""
    samples: Annotated[int, Field(ge=1)] = 2
    """Samples of lam in a training step. Each is one gradient."""
    squash: bool = False

    default_solver: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        if self.units is not None and self.network == "linear":
            raise ValueError("a linear hypernetwork has no hidden units: leave units out")
        if not self.alternate and (self.training != "global" or self.warmup == 0):
            raise ValueError(
                "alternate = false trains in the warm-up alone: it needs training = 'global' and "
                "a warmup of at least 1"
            )

    @property
    def needs(self) -> frozenset[str]:
        """A minimiser for each lam; few scalars where a weight answers each of them by itself."""
        own = {"small_lam"} if self.network == "linear" else set()
        return super().needs | own | ({"search_space"} if self.squash else set())

    def first_response(self, theta: Params, n: int, gen: torch.Generator) -> Params:
        """W or B normal of deviation ``start``, around theta; hidden units of deviation one."""
        like = next(iter(theta.values()))

        def drawn(size: float, *shape: int) -> Tensor:
            return size * torch.randn(shape, generator=gen, dtype=like.dtype).to(like.device)

        phi = {VALUE + k: v for k, v in theta.items()}
        if self.network != "linear":
            units = self.units or UNITS[self.network]
            phi |= {
                f"{HIDDEN}.weight": drawn(n**-0.5, units, n),
                f"{HIDDEN}.bias": drawn(1.0, units),
            }
            n = units
        return phi | {SLOPE + k: drawn(self.start, *v.shape, n) for k, v in theta.items()}

    def theta(self, phi: Params, u: Tensor) -> Params:
        """w_phi at u [n]."""
        if self.network != "linear":
            u = F.linear(u, phi[f"{HIDDEN}.weight"], phi[f"{HIDDEN}.bias"])
        if self.network == "relu":
            u = u.relu()
        return {k: v + phi[SLOPE + k] @ u for k, v in part(phi, VALUE).items()}

    def trains(self, ctx: Context) -> bool:
        """Always, or in the warm-up."""
        return self.alternate or ctx.step < self.warmup

    def noises(self, at: Moment, batch: Batch, t: int) -> list[Tensor]:
        """From u to the samples, within lam's bounds."""
        if self.training == "simplified":
            return [torch.zeros_like(at.u)]
        r = at.coordinates
        centre = r.vector(r.first) if self.training == "global" else at.u
        drawn = [centre + at.scale * e for e in at.draws("inner", None, self.samples, t)]
        return [(u if self.squash else r.vector(r.lam(u))) - at.u for u in drawn]
