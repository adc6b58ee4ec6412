"""Ridge rider for games: branch along the directions that learning drives apart.

Lorraine et al.: Lyapunov Exponents for Diversity in Differentiable Games, AAMAS 2022, arXiv
2112.14570; after Parker-Holder et al.: Ridge Rider, NeurIPS 2020. With J_t the Jacobian of a plain
step w - lr g(w) at w_t, the exponent of a direction d after k steps is

    (1/k) log |J_{k-1} ... J_0 d|,

the more positive, the faster two starts apart along d separate. Outer steps raise the largest
exponent by gradient ascent on the start w_0 (no steps: the first start stays). From there branches
start at w_0 + distance d and w_0 - distance d for the leading directions d, and each learns to its
end. Only a summary of the paper was read: that ascent is normalised, what the directions are (the
eigenvectors of the first Jacobian, as in Ridge Rider, or the leading singular directions of the
product) and one distance for all branches are this project's choices. For a loss of one player the
field is its gradient, and eigenvectors are those of the Hessian.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import Context, InnerTraining, State
from metabench.contract.problem import Params
from metabench.contract.seeds import generator
from metabench.contract.solver import Solver
from metabench.core.errors import SettingError
from metabench.core.registry import method

MOST = 256
"""Numbers of a branch up to which whole Jacobians are made."""


def spectrum(jacobians: Iterable[Tensor]) -> Tensor:
    """Every Lyapunov exponent [d] of Jacobians [d, d] along a path, the directions made orthogonal
    at each step so that nothing overflows (Benettin et al. 1980)."""
    logs: list[Tensor] = []
    q: Tensor | None = None
    for j in jacobians:
        q, r = torch.linalg.qr(j if q is None else j @ q)
        logs.append(r.diagonal().abs().log())
    return torch.stack(logs).mean(0)


def fastest(jacobians: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The largest exponent over unit directions, differentiable, and the singular directions [d, d]
    of the product, one a row, the fastest first."""
    product: Tensor | None = None
    logs: list[Tensor] = []
    for j in jacobians:
        product = j if product is None else j @ product
        size = torch.linalg.vector_norm(product).detach()
        product = product / size
        logs.append(size.log())
    if product is None:
        raise ValueError("no Jacobian was given")
    _, s, vh = torch.linalg.svd(product)
    return (s[0].log() + torch.stack(logs).sum()) / len(logs), vh


@method("ridge_rider")
@dataclass(frozen=True)
class RidgeRider(InnerTraining):
    r"""Branches along Lyapunov or eigen-directions from one start (Lorraine 2022).

    Formula:
        \Lambda(d) = \frac{1}{k} \log \left\| J_{k-1} \cdots J_0\, d \right\|, \qquad J_t = I -
        \eta\, \frac{\partial g}{\partial w}(w_t)

        w_0 \leftarrow w_0 + a\, \frac{\nabla \Lambda_{\max}(w_0)}{\|\nabla
        \Lambda_{\max}(w_0)\|}, \qquad \text{branches start at } w_0 \pm \text{distance} \cdot d

    Loop:
        slope = grad(largest_exponent(w0, window), w0)
        w0 = w0 + ascent * slope / norm(slope)
        starts = [w0 + sign * distance * d for d in leading_directions(w0) for sign in (1, -1)]
        ends = [train(w, inner_steps) for w in starts]
    """

    directions: Literal["eigenvectors", "singular", "random"] = "eigenvectors"
    """"random": unit directions without a meaning, to compare with."""
    distance: Annotated[float, Field(gt=0)] = 6.0
    """Of a branch's start from w_0."""
    window: Annotated[int, Field(ge=1)] = 5
    """k: inner steps of an exponent."""
    ascent: Annotated[float, Field(gt=0)] = 0.2
    """How far an outer step moves w_0."""

    @property
    def needs(self) -> frozenset[str]:
        """Starts to choose, many side by side, and a step with a derivative."""
        return frozenset({"second_order", "lam_is_initialisation", "branches"})

    def refuses(self, solver: Solver) -> str | None:
        """Anything but plain steps: their Jacobians are what is taken."""
        if solver.registered_name == "sgd":
            return None
        return f"ridge_rider follows plain steps: {solver.registered_name} takes others"

    def init(self, ctx: Context) -> State:
        """Branches around the first start of lam."""
        lam = ctx.problem.init_outer()
        sizes = sum(v[0].numel() for v in lam.values())
        if sizes > MOST:
            raise SettingError(
                f"a branch has {sizes} numbers: ridge_rider makes whole Jacobians of up to {MOST}"
            )
        state = State(lam, memory={"centre": {k: v[:1].clone() for k, v in lam.items()}})
        return self.branched(ctx, state)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """Raise the largest exponent, and branch anew."""
        centre, like = state.memory["centre"], state.lam
        flat = flattened(centre)[0].requires_grad_(True)
        exponent, _ = fastest(self.path(ctx, like, flat))
        (slope,) = torch.autograd.grad(exponent, flat)
        size = torch.linalg.vector_norm(slope)
        moved = flat.detach() + self.ascent * slope / size.clamp(min=torch.finfo(size.dtype).tiny)
        state = replace(state, memory={"centre": shaped(moved[None], like)})
        return self.branched(ctx, state), {"exponent": float(exponent.detach())}

    def path(self, ctx: Context, like: Params, w: Tensor, steps: int | None = None) -> list[Tensor]:
        """Jacobians [d, d] of the first steps from w [d], differentiable in w."""
        episode = ctx.training_episodes()[0]
        eye, found = torch.eye(len(w), dtype=w.dtype, device=w.device), []
        for t in range(self.window if steps is None else steps):
            copies = w.expand(len(w), -1)  # one of each row of the Jacobian
            theta = shaped(copies, like)
            g = flattened(ctx.inner_grad(like, theta, episode.batch(t), hvps=1))
            (slopes,) = torch.autograd.grad((g * eye).sum(), copies, create_graph=True)
            found.append(eye - self.inner_lr * slopes)
            w = w - self.inner_lr * g[0]
        return found

    def branched(self, ctx: Context, state: State) -> State:
        """The state whose lam holds a start each side of w_0 along each direction, in turn; where
        there are more rows than such starts, the others stay where they were."""
        like, centre = state.lam, flattened(state.memory["centre"])[0]
        steps = 1 if self.directions == "eigenvectors" else self.window
        path = self.path(ctx, like, centre.clone().requires_grad_(True), steps)
        d = self.unit_directions(ctx, [j.detach() for j in path])
        starts = torch.stack([centre + self.distance * d, centre - self.distance * d], 1)
        some = starts.flatten(0, 1)
        old = flattened(like)
        new = torch.cat([some, old[len(some) :]])[: len(old)]
        return replace(state, lam=autodiff.detach(shaped(new, like)))

    def unit_directions(self, ctx: Context, path: list[Tensor]) -> Tensor:
        """Unit directions [m, d], the leading ones first."""
        if self.directions == "singular":
            return fastest(path)[1]
        if self.directions == "random":
            gen = generator(ctx.seeds.method, "ridge_rider", ctx.step)
            d = torch.randn(path[0].shape, generator=gen, dtype=torch.float64).to(path[0])
        else:
            d = eigenvectors(path[0])
        lengths: Tensor = torch.linalg.vector_norm(d, dim=1, keepdim=True)
        return d / lengths


def eigenvectors(j: Tensor) -> Tensor:
    """Real directions [d, d] that span the invariant subspaces of j [d, d], by falling modulus: a
    real eigenvector, or the real and imaginary parts of one of a pair."""
    values, vectors = torch.linalg.eig(j)
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]).item(), i))
    out = [vectors[:, i].real for i in order if values[i].imag >= 0]
    pairs = [vectors[:, i].imag for i in order if values[i].imag > 0]
    return torch.stack([*out, *pairs])


def flattened(theta: Params) -> Tensor:
    """[b, d] of [b, ...] in every name."""
    return torch.cat([v.flatten(1) for v in theta.values()], 1)


def shaped(flat: Tensor, like: Params) -> Params:
    """[b, ...] in every name, of [b, d]; the other way round."""
    sizes = [v[0].numel() for v in like.values()]
    parts = flat.split(sizes, 1)
    return {
        k: part.view(len(flat), *v.shape[1:])
        for (k, v), part in zip(like.items(), parts, strict=True)
    }
