"""TAGI: a network whose weights and biases are independent Gaussians, learned in closed form.

Goulet, Nguyen, Amiri: Tractable approximate Gaussian inference for Bayesian neural networks, JMLR
22(251), 2021; conventions of the authors' code (CivML-PolyMtl/OpenTAGI). There is no loss and no
gradient: an observation y of the outputs, with a variance s_y, conditions every Gaussian.

Forward, with means mu and variances v, and products of Gaussians by their exact moments:

    mu_z = mu_a W + b,   v_z = mu_a^2 V_w + v_a (V_w + W^2) + v_b
    linearised ReLU:  mu_A = max(mu_z, 0),  J = [mu_z > 0],  v_A = J v_z
    exact ReLU:  t = mu_z / s_z,  mu_A = mu_z Phi(t) + s_z phi(t),  J = Phi(t),
                 v_A = (mu_z^2 + v_z) Phi(t) + mu_z s_z phi(t) - mu_A^2

Backward, in the form of innovations, those of a batch being summed:

    d_mu = (y - mu_o) / (v_o + s_y),   d_v = -1 / (v_o + s_y)
    W += V_w (mu_a' d_mu),   V_w += V_w^2 ((mu_a^2)' d_v);   biases as weights of an input 1
    below: d_mu <- J (d_mu W'),   d_v <- J^2 (d_v (W^2)')

All examples of a batch see the same prior, so that the variances that they take away can be more
than there is. A variance then ends at ``floor``, and is counted; a mean moves by no more than
``cap`` prior standard deviations. Neither is in the paper; later code of the authors (cuTAGI) has
both, with other constants. numpy, float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr

from .dense import Array, Dense

Relu = Literal["linearised", "exact"]


class Belief(NamedTuple):
    """Means and variances of all weights and biases, [numbers] each (:class:`Dense`)."""

    mean: Array
    var: Array


class Moments(NamedTuple):
    """Means and variances [n, units] of one layer's units after the activation; ``slope`` is J."""

    mean: Array
    var: Array
    slope: Array


@dataclass(frozen=True)
class TAGI:
    """The network, and how a belief in it changes."""

    dense: Dense
    relu: Relu = "linearised"
    floor: float = 1e-5
    cap: float | None = 1.0

    def prior(self, rng: np.random.Generator, gain: float) -> Belief:
        """He's variances gain / inputs, and means that are drawn with the same variance."""
        var = gain / self.dense.fan_in
        return Belief(np.sqrt(var) * rng.standard_normal(len(var)), var)

    def forward(self, belief: Belief, x: Array, var: Array | None = None) -> list[Moments]:
        """Moments of the inputs x [n, inputs], with variances ``var`` (None: 0), and then of every
        layer up to the outputs [n, outputs]."""
        still = np.zeros_like(x) if var is None else var
        out = [Moments(x, still, np.ones(()))]
        layers = list(zip(*map(self.dense.layers, belief), strict=True))
        for i, ((w, b), (w_var, b_var)) in enumerate(layers):
            a = out[-1]
            mean = a.mean @ w + b
            var_z = (a.mean * a.mean) @ w_var + b_var
            if i or var is not None:
                var_z += a.var @ (w_var + w * w)
            last = i == len(layers) - 1
            out.append(Moments(mean, var_z, np.ones(())) if last else self.activated(mean, var_z))
        return out

    def activated(self, mean: Array, var: Array) -> Moments:
        """The ReLU of Gaussians with these moments."""
        if self.relu == "linearised":
            slope = (mean > 0).astype(float)
            return Moments(slope * mean, slope * var, slope)
        deviation = np.sqrt(np.maximum(var, 1e-30))
        t = mean / deviation
        share, density = ndtr(t), deviation * np.exp(-0.5 * t * t) / np.sqrt(2 * np.pi)
        found = mean * share + density
        spread = (mean * mean + var) * share + mean * density - found * found
        return Moments(found, np.maximum(spread, 0.0), share)

    def update(
        self, belief: Belief, moments: list[Moments], y: Array, var: Array, seen: Array
    ) -> tuple[Belief, int]:
        """The belief after y [n, outputs] with variances ``var`` was observed where ``seen`` is 1
        (0: that output was not), and how many variances ended at the floor.

        ``moments`` are those of :meth:`forward` under the same belief.
        """
        top = moments[-1]
        total = top.var + var
        d_mean, d_var = seen * (y - top.mean) / total, -seen / total
        up, down = np.empty_like(belief.mean), np.empty_like(belief.mean)
        grown = list(zip(*map(self.dense.layers, (up, down, belief.mean)), strict=True))
        for i in reversed(range(len(grown))):
            (w_up, b_up), (w_down, b_down), (w, _) = grown[i]
            a = moments[i]
            w_up[:], b_up[:] = a.mean.T @ d_mean, d_mean.sum(0)
            w_down[:], b_down[:] = (a.mean * a.mean).T @ d_var, d_var.sum(0)
            if i:
                d_mean = a.slope * (d_mean @ w.T)
                d_var = a.slope * a.slope * (d_var @ (w * w).T)
        return self.moved(belief, up, down)

    def moved(self, belief: Belief, up: Array, down: Array) -> tuple[Belief, int]:
        """mean + v up and v + v^2 down, capped and floored; no variance grows."""
        mean, var = belief
        move = var * up
        if self.cap is not None:
            most = self.cap * np.sqrt(var)
            move = np.minimum(np.maximum(move, -most), most)
        new = var + var * var * down
        least = np.minimum(var, self.floor)
        low = int(np.count_nonzero(new < least))
        return Belief(mean + move, np.maximum(new, least) if low else new), low
