"""The closed-form check problem: a quadratic inner and outer loss, every hypergradient known.

Inner G(lam, w) = 1/2 (w - B lam)' A (w - B lam), outer F(w) = 1/2 |w - c|^2, with A symmetric
positive definite. w*(lam) = B lam, exact hypergradient B' (B lam - c). In the formulation "init"
the inner target is a constant t, and the outer variable is the initial w (MAML). In "prior" it is
the centre of a Gaussian prior (iMAML), and w starts there too:

    G(lam, w) = 1/2 (w - t)' A (w - t) + mu/2 |w - lam|^2,   w*(lam) = (A + mu I)^-1 (A t + mu lam),

with the exact hypergradient mu (A + mu I)^-1 (w*(lam) - c).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core import settings
from metabench.core.registry import task

from .families.no_data import NoData


@task("quadratic")
@dataclass(frozen=True)
class Quadratic(Task):
    """The closed-form check problem: a quadratic inner and outer loss, every answer known."""

    dim: Annotated[int, Field(ge=1)] = 1
    """1: the scalar problem with the constants below; more: random A, B, c of that size, with
    eigenvalues of A in [0.5, 3] and the best lam within [-2, 2]."""
    a: Annotated[float, Field(gt=0)] = 2.0
    b: float = 1.5
    c: float = 0.7
    lam: float = 0.4
    """Scalar problem: the first value of lam; in other formulations than "target" the constant t is
    B times this."""
    w0: float = -1.0
    """First value of w; in other formulations than "target" that of the outer variable."""
    formulation: Literal["target", "init", "prior"] = "target"
    carried: bool = False
    prior_precision: Annotated[float, Field(gt=0)] = settings.later(2.0)
    """mu of the formulation "prior"."""

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.carried and self.formulation == "init":
            raise ValueError("a carried w has one start, too long ago to be learned")

    @property
    def offers(self) -> frozenset[str]:
        """Everything but a network; lam is small up to 16 dimensions."""
        own = {"lam_in_inner_loss", "best_response", "full_batch", "strongly_convex"}
        if self.formulation == "init":
            own = {"lam_is_initialisation"}
        if not self.carried:
            own.add("episodes")
        if self.dim <= 16:
            own |= {"small_lam", "search_space"}
        return GRADIENTS | own | {"prediction"}

    def build(self, seeds: Seeds, device: torch.device) -> QuadraticProblem:
        """Draw A, B and c (more than one dimension) and fix the start."""
        return QuadraticProblem(self, seeds, device)


class QuadraticProblem(NoData):
    """``A`` [d, d], ``B`` [d, d], ``c`` [d], float64."""

    def __init__(self, task: Quadratic, seeds: Seeds, device: torch.device) -> None:
        self.task, self.carried, self.device = task, task.carried, device
        self.starts_at_lam = task.formulation == "prior"
        d = task.dim
        if d == 1:
            a, b, c = (torch.tensor([[x]], dtype=torch.float64) for x in (task.a, task.b, task.c))
            lam = torch.tensor([task.lam], dtype=torch.float64)
        else:
            gen = generator(seeds.data, "quadratic")
            q, _ = torch.linalg.qr(torch.randn(d, d, generator=gen, dtype=torch.float64))
            a = q @ torch.diag(torch.linspace(0.5, 3.0, d, dtype=torch.float64)) @ q.T
            a = (a + a.T) / 2
            q, _ = torch.linalg.qr(torch.randn(d, d, generator=gen, dtype=torch.float64))
            b = q @ torch.diag(torch.linspace(0.5, 1.5, d, dtype=torch.float64))
            best = 4 * torch.rand(d, generator=gen, dtype=torch.float64) - 2
            c = b @ best
            lam = torch.randn(d, generator=gen, dtype=torch.float64)
        self.A, self.B, self.c, self.lam = (x.to(device) for x in (a, b, c.reshape(d), lam))
        self.w0 = torch.full((d,), task.w0, dtype=torch.float64, device=device)
        if d <= 16:
            self.hypers = (
                Hyper(
                    "lam",
                    (d,),
                    -4.0,
                    4.0,
                    meaning="B lam is the inner target, or lam a start or centre",
                ),
            )

    def init_outer(self) -> Params:
        """lam [d]."""
        return {"lam": (self.lam if self.task.formulation == "target" else self.w0).clone()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """w [d]: constant, or lam itself."""
        return {"w": self.w0 if self.task.formulation == "target" else lam["lam"]}

    def target(self, lam: Params) -> Tensor:
        """What data draws w to [d]: B lam or t."""
        return self.B @ (lam["lam"] if self.task.formulation == "target" else self.lam)

    def minimiser(self, lam: Params) -> Tensor:
        """w*(lam) [d]."""
        t = self.target(lam)
        if self.task.formulation != "prior":
            return t
        right = self.A @ t + self.task.prior_precision * lam["lam"]
        found: Tensor = torch.linalg.solve(self.hessian, right)
        return found

    @cached_property
    def hessian(self) -> Tensor:
        """Of the inner loss in w [d, d]: A, with a prior A + mu I."""
        if self.task.formulation != "prior":
            return self.A
        return self.A + self.task.prior_precision * torch.eye(
            len(self.A), dtype=self.A.dtype, device=self.A.device
        )

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 (w - B lam)' A (w - B lam), or with t for B lam; with a prior also its term."""
        return self.loss_of_prediction(lam, theta, theta["w"], batch)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """w itself [d]."""
        return theta["w"]

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """:meth:`inner_loss` of w [d]."""
        gap = prediction - self.target(lam)
        fit = 0.5 * (gap * (self.A @ gap)).sum()
        if self.task.formulation != "prior":
            return fit
        return fit + 0.5 * self.task.prior_precision * (prediction - lam["lam"]).square().sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |w - c|^2."""
        return 0.5 * (theta["w"] - self.c).square().sum()

    @cached_property
    def bounds(self) -> Moduli:
        """The same at every lam: all derivatives of second order are constants."""
        values = torch.linalg.eigvalsh(self.hessian)
        mixed = self.task.prior_precision
        if self.task.formulation != "prior":
            mixed = float(torch.linalg.matrix_norm(self.A @ self.B, 2))
        return Moduli(
            float(values[0]), float(values[-1]), outer_smooth=1.0, mixed=lambda theta: mixed,
            mixed_lipschitz=0.0, hessian_lipschitz=0.0, direct_lipschitz=0.0, outer_convex=True,
        )  # fmt: skip

    def moduli(self, lam: Params) -> Moduli:
        """Eigenvalues of the Hessian, and the norm of AB or mu (not in the formulation "init")."""
        return self.bounds

    def exact_hypergradient(self, lam: Params) -> Tensor:
        """At the exact inner minimiser [d] (not in the formulation "init")."""
        v = self.minimiser(lam) - self.c
        if self.task.formulation != "prior":
            return self.B.T @ v
        found: Tensor = self.task.prior_precision * torch.linalg.solve(self.hessian, v)
        return found
