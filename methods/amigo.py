"""Warm-started minibatch steps for theta, then for the linear system, then one of lam.

AmIGO: Arbel, Mairal: Amortized Implicit Differentiation for Stochastic Bilevel Optimization, ICLR
2022, arXiv 2111.14580. An outer step:

    theta  <-  theta - rho grad_theta G                              ``inner_steps`` times
    v      <-  v - sigma [(d2 G / dtheta2) v + grad_theta F]         ``linear_steps`` times
    lam    <-  lam - gamma [(d2 G / dlam dtheta) v + grad_lam F]

each derivative of G on a minibatch of its own; those of F are taken once an outer step, on its
outer batch, where the paper samples F for every step of v too. theta and v go on from where the
last outer step left them. Where every episode starts anew so do they, and v is the Neumann series
of ``linear_steps`` terms.
"""

from __future__ import annotations

from dataclasses import dataclass

from metabench.core.registry import method
from metabench.hypergradients.single_loop.linear_steps import LinearSteps


@method("amigo")
@dataclass(frozen=True)
class AmIGO(LinearSteps):
    r"""AmIGO (Arbel 2022): warm-started stochastic steps for theta and for the linear system.

    Formula:
        \theta \leftarrow \theta - \rho\, \nabla_\theta G

        v \leftarrow v - \sigma \left( \nabla^2_{\theta\theta} G\, v + \nabla_\theta F \right)

        \lambda \leftarrow \lambda - \gamma \left( \nabla^2_{\lambda\theta} G\, v + \nabla_\lambda
        F \right)

    Loop:
        for t in range(inner_steps):
            theta = theta - inner_lr * dG_dtheta(lam, theta)
        for t in range(linear_steps):  # v goes on from the last outer step
            v = v - linear_lr * (d2G_dtheta2(lam, theta) @ v + dF_dtheta(lam, theta))
        lam = lam - outer_lr * (d2G_dlam_dtheta(lam, theta) @ v + dF_dlam(lam, theta))
    """
