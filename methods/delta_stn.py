"""Delta-STN: a self-tuning network centred on the current hyperparameters, trained linearised.

Bae, Grosse: Delta-STN: Efficient Bilevel Optimization for Neural Networks using Structured Response
Jacobians, NeurIPS 2020, arXiv 2010.13514. The response is theta0 + diag(V d) theta1 with d the
distance from the current u, and

    value     min over theta0          G(r(u), theta0)
    response  min over V, theta1  E_eps  l(r(u + eps), f + J diag(V eps) theta1)

with f the model's predictions at theta0 under the regulariser r(u + eps), J their derivative in
theta (one forward-mode product) and l the inner loss of predictions. Terms of the inner loss that
are no function of the predictions see theta0 + diag(V eps) theta1. Value and response have a solver
each. Differs from the authors' code by default: both step from the same point, where theirs takes
the response's gradient at the theta0 that the value's step has just left (``order =
"value_first"``); theta1 of biases starts at one (``bias_slopes = "uniform"`` is theirs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.method import Context
from metabench.contract.problem import Batch, Params
from metabench.core import settings
from metabench.core.registry import method
from metabench.hypergradients.best_response import VALUE, Moment, part
from metabench.hypergradients.self_tuning import SelfTuning, respond
from metabench.hypergradients.unrolled import load_forward_mode


@method("delta_stn")
@dataclass(frozen=True)
class DeltaSTN(SelfTuning):
    r"""Delta-STN (Bae 2020): the value trained as usual, the response on linearised predictions.

    Formula:
        \theta_\phi(u + \varepsilon) = \theta_0 + \mathrm{diag}(V \varepsilon)\, \theta_1

        \min_{\theta_0}\; G(r(u), \theta_0), \qquad \min_{V,\, \theta_1}\;
        \mathbb{E}_{\varepsilon}\; \ell\left( r(u + \varepsilon),\; f + J\, \mathrm{diag}(V
        \varepsilon)\, \theta_1 \right)

    Loop:
        for t in range(inner_steps):
            eps = sigma * normal()
            f, change = jvp(lambda s: predict(theta0 + s * diag(V @ eps) @ theta1), 0.0, 1.0)
            d_value = grad(G(r(u), theta0), theta0)
            d_V, d_theta1 = grads(loss_of(r(u + eps), f + change), (V, theta1))
            theta0, V, theta1 = descend((theta0, V, theta1), (d_value, d_V, d_theta1), inner_lr)
        u, sigma = descend((u, sigma), grads(expected_outer_loss(u, sigma), (u, sigma)), outer_lr)
    """

    order: Literal["together", "value_first"] = settings.later("together")
    """Where a training step takes the response's gradient: at the theta0 from which the value steps
    too, or at the one to which it has stepped."""

    @property
    def needs(self) -> frozenset[str]:
        """What `stn` needs, and a model whose predictions can be seen."""
        return super().needs | {"prediction"}

    def centre(self, u: Tensor) -> Tensor:
        """u itself, as a constant: the gates see eps."""
        return u.detach()

    def first_solver_state(self, ctx: Context, phi: Params) -> Any:
        """One for the value, one for the response."""
        return {name: ctx.solver.init(group) for name, group in groups(phi).items()}

    def loss(self, at: Moment, phi: Params, noise: Tensor, batch: Batch) -> Tensor:
        """l(r(u + eps), f + J diag(V eps) theta1); noise [n] or [examples, n]."""
        load_forward_mode()
        problem, lam = at.ctx.problem, at.coordinates.lam(at.u + noise)
        f, change = torch.func.jvp(  # type: ignore[misc]
            lambda s: problem.predict(lam, respond(phi, s * noise), batch),
            (noise.new_zeros(()),),
            (noise.new_ones(()),),
        )
        return at.ctx.loss_of_prediction(lam, respond(phi, noise), f + change, batch, hvps=1)

    def train(self, at: Moment, phi: Params, solver_state: Any, t: int) -> tuple[Params, Any]:
        """A step of each: the value's, then the response's."""
        ctx, batch, parts = at.ctx, at.episode.batch(t), groups(phi)
        states = dict(solver_state)
        slope = ctx.inner_grad(
            at.coordinates.lam(at.u), part(phi, VALUE), batch, create_graph=False
        )
        value, states["value"] = ctx.solver.update(
            parts["value"], {VALUE + k: v for k, v in slope.items()}, states["value"], self.inner_lr
        )
        seen = value if self.order == "value_first" else parts["value"]
        draws = at.draws("inner", batch, self.samples, t)
        _, g = autodiff.grad(
            lambda p: torch.stack(
                [self.loss(at, seen | p, at.scale * e, batch) for e in draws]
            ).mean(),
            parts["response"],
        )
        response, states["response"] = ctx.solver.update(
            parts["response"], g, states["response"], self.inner_lr
        )
        return value | response, states


def groups(phi: Params) -> dict[str, Params]:
    """theta0, and all that answers u."""
    value = {k: v for k, v in phi.items() if k.startswith(VALUE)}
    return {"value": value, "response": {k: v for k, v in phi.items() if k not in value}}
