"""The closed-form check problem: a quadratic inner and outer loss, every hypergradient known.

Inner G(lam, w) = 1/2 (w - B lam)' A (w - B lam), outer F(w) = 1/2 |w - c|^2, with A symmetric
positive definite. w*(lam) = B lam, exact hypergradient B' (B lam - c). In the formulation "init"
the inner target B lam is a constant, and the outer variable is the initial w (MAML).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Task
from metabench.contract.seeds import Seeds, generator
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
    """Scalar problem: the first value of lam; in the formulation "init" what B is applied to."""
    w0: float = -1.0
    """First value of w; in the formulation "init" the first value of the outer variable."""
    formulation: Literal["target", "init"] = "target"
    carried: bool = False

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
                    "lam", (d,), -4.0, 4.0, meaning="B lam is the inner target, or lam the start"
                ),
            )

    def init_outer(self) -> Params:
        """lam [d]."""
        return {"lam": self.w0.clone() if self.task.formulation == "init" else self.lam.clone()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """w [d]: constant, or lam itself."""
        return {"w": lam["lam"] if self.task.formulation == "init" else self.w0}

    def target(self, lam: Params) -> Tensor:
        """The inner minimiser w*(lam) [d]."""
        at = self.lam if self.task.formulation == "init" else lam["lam"]
        return self.B @ at

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 (w - B lam)' A (w - B lam)."""
        return self.loss_of_prediction(lam, theta, theta["w"], batch)

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """w itself [d]."""
        return theta["w"]

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """1/2 (w - B lam)' A (w - B lam) of w [d]."""
        gap = prediction - self.target(lam)
        return 0.5 * (gap * (self.A @ gap)).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |w - c|^2."""
        return 0.5 * (theta["w"] - self.c).square().sum()

    @cached_property
    def bounds(self) -> Moduli:
        """The same at every lam: all derivatives of second order are constants."""
        values = torch.linalg.eigvalsh(self.A)
        mixed = float(torch.linalg.matrix_norm(self.A @ self.B, 2))
        return Moduli(
            float(values[0]), float(values[-1]), outer_smooth=1.0, mixed=lambda theta: mixed,
            mixed_lipschitz=0.0, hessian_lipschitz=0.0, direct_lipschitz=0.0, outer_convex=True,
        )  # fmt: skip

    def moduli(self, lam: Params) -> Moduli:
        """Eigenvalues of A and the norm of AB (formulation "target")."""
        return self.bounds

    def exact_hypergradient(self, lam: Params) -> Tensor:
        """B' (B lam - c), at the exact inner minimiser [d] (formulation "target")."""
        return self.B.T @ (self.target(lam) - self.c)
