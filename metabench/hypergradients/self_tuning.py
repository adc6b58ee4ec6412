"""Self-tuning networks: rows of theta that answer lam, and perturbations that tune themselves.

MacKay, Vicol, Lorraine, Duvenaud, Grosse: Self-Tuning Networks, ICLR 2019, arXiv 1903.03088; Bae,
Grosse: Delta-STN, NeurIPS 2020, arXiv 2010.13514. Every tensor of theta answers u by rows:

    theta(u) = theta0 + diag(V u) theta1,    for vectors and scalars of theta entry by entry.

So nothing is asked of the model but the names and shapes of its parameters: a bias has rows of one
entry, and a theta that belongs to no layer is affine in u. V may be a product of two thin matrices
where lam is long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.by_examples.per_example_weights import Gated
from metabench.contract.method import Context, Positive, State
from metabench.contract.problem import Params
from metabench.core import settings
from metabench.hypergradients.best_response import (
    SLOPE,
    VALUE,
    BestResponse,
    Moment,
    part,
    softplus_inverse,
)

BiasSlopes = Literal["ones", "uniform"]
GATE, PROJECTION = "gate/", "projection"
"""Names of V in a response's parameters: prefix and theta's name, and its second factor."""


def begin(
    theta: Params,
    n: int,
    gen: torch.Generator,
    *,
    rank: int | None = None,
    gates: float = 0.0,
    bias_slopes: BiasSlopes = "ones",
) -> Params:
    """A response's first parameters for u of n entries: value theta, rows that hardly answer.

    V is normal with deviation ``gates``. theta1 is uniform within 1 / sqrt(inputs) for tensors
    with rows. For vectors and scalars it is one, or with ``bias_slopes`` "uniform" drawn within the
    bound of their layer's weight ("a.weight" for "a.bias"), and within 1 where there is none.
    """
    phi = {VALUE + k: v for k, v in theta.items()}
    width = n
    if rank is not None:
        some = next(iter(theta.values()))
        phi[PROJECTION] = torch.randn(rank, n, generator=gen, dtype=some.dtype).to(some) / n**0.5
        width = rank
    for k, v in theta.items():
        slope = torch.ones_like(v)
        if v.dim() > 1 or bias_slopes == "uniform":
            drawn = torch.rand(v.shape, generator=gen, dtype=v.dtype).to(v)
            layer = v if v.dim() > 1 else theta.get(f"{k.rpartition('.')[0]}.weight", v[..., None])
            slope = (2 * drawn - 1) * (len(layer) / layer.numel()) ** 0.5
        phi[SLOPE + k] = slope
        rows = len(v) if v.dim() else 1
        phi[GATE + k] = gates * torch.randn(rows, width, generator=gen, dtype=v.dtype).to(v)
    return phi


def respond(phi: Params, at: Tensor) -> Params:
    """theta at u [n], or at a row of u [k, n] for each of k examples: gated tensors."""
    if PROJECTION in phi:
        at = F.linear(at, phi[PROJECTION])
    theta: Params = {}
    for k, value in part(phi, VALUE).items():
        gate, slope = F.linear(at, phi[GATE + k]), phi[SLOPE + k]
        if at.dim() > 1:
            theta[k] = Gated(value, slope, gate)
        else:
            shape = [-1] + [1] * (value.dim() - 1) if value.dim() else []
            theta[k] = value + gate.view(shape) * slope
    return theta


def entropy(scale: Tensor) -> Tensor:
    """Of a normal distribution with these deviations [n]: sum_i log(scale_i sqrt(2 pi e))."""
    return scale.log().sum() + scale.numel() * 0.5 * math.log(2 * math.pi * math.e)


@dataclass(frozen=True)
class SelfTuning(BestResponse):
    """A gated response, under perturbations whose scale is tuned too."""

    tune_scale: bool = True
    """Learn the scale by the expected outer loss and the entropy; u is then perturbed in its own
    steps too."""
    scale_lr: Positive | None = None
    """None: as ``outer_lr``."""
    entropy_weight: Annotated[float, Field(ge=0)] = 1e-3
    """What the entropy of the perturbations counts beside the outer loss (tau)."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Gates see this many learned projections of u: for a long lam. None: u itself."""
    bias_slopes: BiasSlopes = settings.later("ones")
    """What theta1 of biases starts from: ones, or, as in the authors' codes, uniform draws within
    1 / sqrt(inputs) of their layer."""

    kind: ClassVar[str] = "a self-tuning network"
    gates: ClassVar[float] = 0.0
    """Deviation of V's first entries."""

    @property
    def needs(self) -> frozenset[str]:
        """One inner minimiser for each lam, and few scalars unless the gates are of low rank."""
        own = set()
        if self.rank is None:
            own.add("small_lam")
        elif self.squash:
            own.add("search_space")
        return super().needs | own

    def centre(self, u: Tensor) -> Tensor:
        """What is taken from u before the gates see it."""
        raise NotImplementedError

    def first_response(self, theta: Params, n: int, gen: torch.Generator) -> Params:
        """Value theta, gates that hardly answer."""
        return begin(theta, n, gen, rank=self.rank, gates=self.gates, bias_slopes=self.bias_slopes)

    def theta(self, phi: Params, u: Tensor) -> Params:
        """The gated response at u."""
        return respond(phi, u - self.centre(u))

    def first_moved(self, u: Tensor) -> Params:
        """u, and the scale before softplus."""
        if not self.tune_scale:
            return {"u": u}
        return {"u": u, "scale": softplus_inverse(torch.full_like(u, self.scale))}

    def step_size(self, name: str) -> float:
        """The scale can have its own."""
        return (self.scale_lr or self.outer_lr) if name == "scale" else self.outer_lr

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """With the mean scale in the log."""
        new, log = super().step(ctx, state)
        return new, log and {**log, "scale": float(self.deviations(state.memory).mean())}

    def tune(self, at: Moment, phi: Params, moved: Params) -> tuple[Tensor, Params]:
        """Expected outer loss, and its gradient in u and the scale, less the entropy's part."""
        draws: Sequence[Tensor | None] = [None]
        if "scale" in moved:
            draws = at.draws("outer", at.episode.outer, self.samples)

        def objective(x: Params) -> tuple[Tensor, Tensor]:
            lam, scale = at.coordinates.lam(x["u"]), self.deviations(x)
            seen = x["u"] - self.centre(at.u)
            thetas = (respond(phi, seen if e is None else seen + scale * e) for e in draws)
            losses = [at.ctx.outer_loss(lam, t, at.episode.outer) for t in thetas]
            loss = torch.stack(losses).mean()
            free = self.entropy_weight * entropy(scale) if "scale" in x else 0.0
            return loss - free, loss

        _, g, loss = autodiff.grad_and_rest(objective, moved)
        return loss, g

    def deviations(self, held: Mapping[str, Tensor]) -> Tensor:
        """Standard deviation of each entry of the perturbations [n]."""
        return F.softplus(held["scale"]) if "scale" in held else super().deviations(held)
