"""A bilevel least-squares problem whose optimum is known in closed form.

Inner h = 1/2 |A2 x + A3 lam - b2|^2, outer g = 1/2 |A1 x - b1|^2, the quadratic problem of Salehi,
Mukherjee, Roberts, Ehrhardt, SIAM J. Math. Data Sci. 7(3), 2025, arXiv 2308.10098: matrices 1000 x
10 uniform in [0, 1), right sides those of true values in [0, 1) with noise 0.01, lam starts at
ones. ``condition`` puts another condition number on A2 in the place of the one that is drawn. With

    xhat(lam) = (A2' A2)^-1 A2' (b2 - A3 lam) ,   B = A1 (A2' A2)^-1 A2' A3

the hypergradient is -B' (A1 xhat - b1), and the best lam solves a least-squares problem in B.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.no_data import NoData


@task("least_squares")
@dataclass(frozen=True)
class LeastSquares(Task):
    """Bilevel least squares with a condition number, the optimum in closed form."""

    rows: Annotated[int, Field(ge=2)] = 1000
    dim: Annotated[int, Field(ge=1)] = 10
    """Numbers in lam, and in theta."""
    condition: Annotated[float, Field(ge=1)] | None = None
    """Of A2: its singular values fall from the largest, by equal ratios, to this part of it. None:
    as they are drawn. The inner Hessian has the square of it."""
    noise: Annotated[float, Field(ge=0)] = 0.01
    first: float = 1.0
    """Every number of the first lam."""
    carried: bool = False

    metric: ClassVar[str] = "gap"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("gap", "exact_loss", "loss", "inner_error")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[dict[str, str]] = {
        "search_space": "lam has no bounds to search between",
        "small_lam": "lam has more than 16 numbers (dim)",
    }

    def __post_init__(self) -> None:
        if self.rows < self.dim:
            raise ValueError(
                f"rows is {self.rows} and dim {self.dim}: with fewer rows than numbers the inner "
                "problem has many minimisers"
            )

    @property
    def offers(self) -> frozenset[str]:
        """A quadratic inner problem without bounds on lam."""
        own = {"lam_in_inner_loss", "best_response", "full_batch", "strongly_convex"}
        own |= set() if self.carried else {"episodes"}
        return GRADIENTS | own | ({"small_lam"} if self.dim <= 16 else set())

    def build(self, seeds: Seeds, device: torch.device) -> LeastSquaresProblem:
        """Draw the matrices."""
        return LeastSquaresProblem(self, seeds, device)


class LeastSquaresProblem(NoData):
    """``A1``, ``A2``, ``A3`` [rows, dim], ``b1``, ``b2`` [rows], float64. theta: "x", lam: "lam",
    both [dim]."""

    def __init__(self, task: LeastSquares, seeds: Seeds, device: torch.device) -> None:
        self.task, self.carried, self.device = task, task.carried, device
        gen = generator(seeds.data, "least_squares")
        n, d = task.rows, task.dim
        a1, a2, a3 = torch.rand(3, n, d, generator=gen, dtype=torch.float64)
        x, lam = torch.rand(2, d, generator=gen, dtype=torch.float64)
        if task.condition is not None:
            u, s, v = torch.linalg.svd(a2, full_matrices=False)
            spread = torch.linspace(0, 1, d, dtype=torch.float64)
            a2 = u @ torch.diag(s[0] * task.condition**-spread) @ v
        noise = task.noise * torch.randn(2, n, generator=gen, dtype=torch.float64)
        b1, b2 = a1 @ x + noise[0], a2 @ x + a3 @ lam + noise[1]
        self.A1: Tensor = a1.to(device)
        self.A2: Tensor = a2.to(device)
        self.A3: Tensor = a3.to(device)
        self.b1: Tensor = b1.to(device)
        self.b2: Tensor = b2.to(device)

    def init_outer(self) -> Params:
        """lam [dim]."""
        return {"lam": self.b1.new_full((self.task.dim,), self.task.first)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """x [dim], zero."""
        return {"x": self.b1.new_zeros(self.task.dim)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |A2 x + A3 lam - b2|^2."""
        return 0.5 * (self.A2 @ theta["x"] + self.A3 @ lam["lam"] - self.b2).square().sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |A1 x - b1|^2."""
        return 0.5 * (self.A1 @ theta["x"] - self.b1).square().sum()

    @cached_property
    def bounds(self) -> Moduli:
        """The same at every lam: all second derivatives are constants."""
        inner, outer = (torch.linalg.eigvalsh(a.T @ a) for a in (self.A2, self.A1))
        mixed = float(torch.linalg.matrix_norm(self.A2.T @ self.A3, 2))
        return Moduli(
            float(inner[0]), float(inner[-1]), outer_smooth=float(outer[-1]),
            mixed=lambda theta: mixed, mixed_lipschitz=0.0, hessian_lipschitz=0.0,
            direct_lipschitz=0.0, outer_convex=True,
        )  # fmt: skip

    def moduli(self, lam: Params) -> Moduli:
        """Eigenvalues of A2' A2 and A1' A1, the norm of A2' A3."""
        return self.bounds

    def solve(self, lam: Params) -> Tensor:
        """The inner minimiser xhat(lam) [dim]."""
        right = (self.b2 - self.A3 @ lam["lam"])[:, None]
        x: Tensor = torch.linalg.lstsq(self.A2, right).solution
        return x[:, 0]

    @cached_property
    def response(self) -> Tensor:
        """B [rows, dim]: A1 xhat(lam) is a constant less B lam."""
        solution: Tensor = torch.linalg.lstsq(self.A2, self.A3).solution
        return self.A1 @ solution

    def exact_loss(self, lam: Params) -> float:
        """f(lam): the outer loss at the inner minimiser."""
        return float(0.5 * (self.A1 @ self.solve(lam) - self.b1).square().sum())

    def exact_hypergradient(self, lam: Params) -> Tensor:
        """The gradient of f [dim]."""
        return -self.response.T @ (self.A1 @ self.solve(lam) - self.b1)

    @cached_property
    def best(self) -> Params:
        """The lam of the least f."""
        rest = self.A1 @ self.solve({"lam": torch.zeros_like(self.b1[: self.task.dim])}) - self.b1
        return {"lam": torch.linalg.lstsq(self.response, rest[:, None]).solution[:, 0]}

    @cached_property
    def losses(self) -> tuple[float, float]:
        """The least f, and f at the first lam."""
        return self.exact_loss(self.best), self.exact_loss(self.init_outer())

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """``exact_loss`` f(lam) and ``gap``, (f - least f) / (first f - least f), whatever theta
        is; ``loss`` at theta; ``inner_error``: theta's distance to the inner minimiser."""
        least, first = self.losses
        exact = self.exact_loss(lam)
        return {
            "gap": (exact - least) / (first - least),
            "exact_loss": exact,
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "inner_error": float((theta["x"] - self.solve(lam)).norm()),
        }
