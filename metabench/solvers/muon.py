"""Muon: momentum whose matrices are replaced by their polar factors; Muon+ and Turbo-Muon.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Boissin, Massena,
Mamalet, Serrurier, "Turbo-Muon", arXiv 2512.04632; constants are those of their code. With B the
velocity and G the gradient of a matrix,

    B <- beta B + (1 - beta) G,   D = (1 - beta) G + beta B,
    W <- (1 - lr decay) W - lr sqrt(max(1, rows / columns)) polar(D) .

The polar factor of D = U S V' is U V', found by Newton-Schulz steps, which map every singular
value s to a s + b s^3 + c s^5: A = X X', X <- a X + (b A + c A^2) X. Muon has one triple (a, b, c)
and begins at D / |D|_F; Muon+ has a triple for each step; Turbo-Muon scales rows so that the
spectral norm is at most 1 (Prach, Lampert, arXiv 2208.03160), and takes one step less.

A tensor of more than two dimensions is taken as [first, rest], its rows / columns too, where the
authors' code takes a kernel's height over its width. What is no matrix goes to another solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.method import SolverName
from metabench.contract.problem import Params
from metabench.contract.solver import Rate, Solver, SolverState, scaled
from metabench.core.errors import SettingError, nearest
from metabench.core.registry import solver, solvers

Form = Literal["muon", "plus", "turbo"]
Triple = tuple[float, float, float]

MUON: Triple = (3.4445, -4.7750, 2.0315)
PLUS: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
EPS = 1e-7
OTHERS = "others/"
"""Prefix of the other solver's state."""
USUAL: dict[Form, int] = {"muon": 5, "plus": 5, "turbo": 4}
"""Iterations of the authors."""
MOST = {"plus": 5, "turbo": 4}
"""Iterations that there are triples for."""
PRODUCTS = 3
"""Matrix products of an iteration; Turbo-Muon's scaling shares the first with its first step."""


def triples(form: Form, iterations: int) -> tuple[Triple, ...]:
    """(a, b, c) of each step: of a short Muon+ the last ones. Raises ValueError where there are
    too few."""
    if form == "muon":
        return (MUON,) * iterations
    if iterations > MOST[form]:
        raise ValueError(f"{form} has triples for {MOST[form]} iterations at most: {iterations}")
    return PLUS[len(PLUS) - iterations :]


def polar(m: Tensor, form: Form = "muon", iterations: int | None = None) -> Tensor:
    """The polar factor of m [rows, columns], nearly: singular values come to about 1 (Muon: 0.7 to
    1.2). Zero for zero. Of a turbo form it is that of m with scaled rows (of the shorter side)."""
    wide = m if m.shape[-2] <= m.shape[-1] else m.mT
    x = wide
    steps = triples(form, USUAL[form] if iterations is None else iterations)
    gram = None
    if form == "turbo":
        gram = x @ x.mT
        s = gram.abs().sum(-1).clamp(min=EPS).rsqrt()
        x, gram = s[..., None] * x, s[..., None] * gram * s[..., None, :]
    else:
        x = x / (torch.linalg.vector_norm(x) + EPS)
    for a, b, c in steps:
        gram = x @ x.mT if gram is None else gram
        x, gram = a * x + (b * gram + c * (gram @ gram)) @ x, None
    return x if wide is m else x.mT


@solver("muon")
@dataclass(frozen=True)
class Muon(Solver):
    """Muon (Jordan 2024), Muon+ and Turbo-Muon (Boissin 2025), differentiable throughout."""

    form: Form = "muon"
    iterations: Annotated[int, Field(ge=1)] | None = None
    """Newton-Schulz steps; None: 5, of Turbo-Muon 4."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    bfloat16: bool = False
    """Compute the polar factor in bfloat16, as the authors do on a GPU."""
    others: SolverName = "adam"
    """Solver of what is no matrix, with its own defaults."""
    others_rate: Annotated[float, Field(gt=0)] = 0.015
    """The step size of ``others`` over that of matrices; the authors': 3e-4 / 0.02."""
    apart: tuple[str, ...] = ()
    """Beginnings of names of matrices that go to ``others`` too, such as a head."""

    def __post_init__(self) -> None:
        triples(self.form, self.steps)
        other: Any = solvers.get(self.others)
        if self.others == "muon" or other.noisy or other.by_examples:
            raise ValueError(f"others is {self.others!r}: it needs a solver for single numbers")

    @property
    def steps(self) -> int:
        """Newton-Schulz steps."""
        return USUAL[self.form] if self.iterations is None else self.iterations

    def matrices(self, theta: Params) -> list[str]:
        """Names of what is taken as matrices."""
        return [k for k, v in theta.items() if v.dim() > 1 and not k.startswith(self.apart or "\0")]

    def products(self, theta: Params) -> int:
        """Matrix products that an update takes."""
        return PRODUCTS * self.steps * len(self.matrices(theta))

    def init(self, theta: Params) -> SolverState:
        """Velocities of zero, and the other solver's state. Raises SettingError where ``apart`` has
        a beginning that no name has."""
        for beginning in self.apart:
            if not any(k.startswith(beginning) for k in theta):
                layers = {k.partition(".")[0] for k in theta}
                near = ", ".join(nearest(beginning, layers | theta.keys()))
                raise SettingError(
                    f"solver muon: setting apart cannot be {beginning!r}: no parameter that is "
                    "trained has a name that begins so"
                    + f"; near: {near}" * bool(near)
                    + f"; known: {', '.join(theta)}"
                )
        names = self.matrices(theta)
        rest = {k: v for k, v in theta.items() if k not in names}
        others = solvers.get(self.others)().init(rest)
        velocity = {k: torch.zeros_like(theta[k]) for k in names}
        return {"velocity": velocity, **{OTHERS + k: v for k, v in others.items()}}

    def update(
        self,
        theta: Params,
        grad: Params,
        state: SolverState,
        lr: Rate,
        noise: Params | None = None,
    ) -> tuple[Params, SolverState]:
        """One step."""
        m, names = self.momentum, self.matrices(theta)
        velocity = {k: m * state["velocity"][k] + (1 - m) * grad[k] for k in names}
        new = {}
        for k in names:
            d = (1 - m) * grad[k] + m * velocity[k] if self.nesterov else velocity[k]
            step = self.direction(d) + self.weight_decay * theta[k]
            new[k] = theta[k] - scaled(lr, k, step)
        rest = {k: v for k, v in theta.items() if k not in names}
        held = {k.removeprefix(OTHERS): v for k, v in state.items() if k.startswith(OTHERS)}
        rate = (
            {k: self.others_rate * v for k, v in lr.items()}
            if isinstance(lr, dict)
            else self.others_rate * lr
        )
        moved, held = solvers.get(self.others)().update(rest, grad, held, rate)
        new = {k: new[k] if k in new else moved[k] for k in theta}
        return new, {"velocity": velocity, **{OTHERS + k: v for k, v in held.items()}}

    def direction(self, d: Tensor) -> Tensor:
        """The step of a matrix d [rows, ...] for a step size of 1."""
        flat = d.flatten(1)
        rows, columns = flat.shape
        x = flat.bfloat16() if self.bfloat16 else flat
        o = polar(x, self.form, self.steps).to(d.dtype)
        step: Tensor = max(1.0, rows / columns) ** 0.5 * o
        return step.view_as(d)
