"""Sequential policy gradient (SPG): heads for training only, which see features ever less whole.

Li, Cheng, Gu: Sequential Policy Gradient for Adaptive Hyperparameter Optimization, arXiv
2506.15051, 2025; modules, masks and both losses as the authors' code has them (read for this
project in a description of it, not in the code itself). With features h_0 of a network, labels y
and a head that all t share:

    h'_t = Dropout(h_{t-1}; p_t),   h_t = h'_t + R_t(h'_t),   pi_t = softmax(head(h_t)),   t = 1..T
    o_0 = 1,   o_{t+1} = o_t 1{y is among the k most likely of pi_t}
    A:  L_t = sum_i o_t^i l_t^i / (sum_i o_t^i + 1e-6),   L = L_0 + sum_t lambda_t L_t
    B:  L = mean_i (sum_{t>=0} l_t^i) (1 + sum_t lambda_t o_t^i)
    l = -log pi(y);  o is a constant of the gradient

R_t starts at zero, so that h_t is h_0 after dropout at the rate 1 - prod_{k<=t} (1 - p_k). Two
forms: ``linear``, one Linear, as a review of the paper has it, and ``linear_relu``, Linear and
ReLU, as the code has it. The latter starts dead: the slope of ReLU at 0 is taken as 0, so R_t stays
0 and only the shared head and the network learn.

Form B as written adds the losses of all t, those after the end of the episode too; ``cut`` leaves
these out, as a sum along the episode would. The text that we have does not say which is meant.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Params

Residual = Literal["linear", "linear_relu"]

SMALL = 1e-6
"""What keeps form A's loss of nobody at 0."""


def first_modules(count: int, like: Tensor, size: int) -> Params:
    """R_1 .. R_count, zero: ``moduleT.weight`` [size, size] and ``moduleT.bias`` [size]."""
    zero = like.new_zeros
    return {
        f"module{t}.{part}": zero(shape)
        for t in range(1, count + 1)
        for part, shape in (("weight", (size, size)), ("bias", (size,)))
    }


def dropped(h: Tensor, rate: Tensor, numbers: Tensor) -> Tensor:
    """Dropout of h [n, size] by uniform numbers like it: what stays grows by 1 / (1 - rate)."""
    return h * (numbers >= rate).to(h.dtype) / (1 - rate)


def trajectory(
    theta: Params, features: Tensor, rates: Tensor, numbers: Tensor, residual: Residual
) -> Tensor:
    """h_0 .. h_T [T + 1, n, size] of features [n, size], rates [T], numbers [n, T, size]."""
    states = [features]
    for t, rate in enumerate(rates.unbind(), 1):
        h = dropped(states[-1], rate, numbers[:, t - 1])
        r = F.linear(h, theta[f"module{t}.weight"], theta[f"module{t}.bias"])
        states.append(h + (r.relu() if residual == "linear_relu" else r))
    return torch.stack(states)


def episode_masks(logits: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """o_0 .. o_T [T + 1, n] of logits [T + 1, n, classes] and labels [n]."""
    right = logits.detach().topk(top, -1).indices.eq(labels[:, None]).any(-1).to(logits.dtype)
    return torch.cat([torch.ones_like(right[:1]), right[:-1].cumprod(0)])


def form_a(losses: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """L of losses and masks [T + 1, n] and weights lambda [T]."""
    means = (masks * losses).sum(1) / (masks.sum(1) + SMALL)
    return means[0] + (weights * means[1:]).sum()


def form_b(losses: Tensor, masks: Tensor, weights: Tensor, cut: bool = False) -> Tensor:
    """L of losses and masks [T + 1, n] and weights lambda [T]."""
    returns = 1 + (weights[:, None] * masks[1:]).sum(0)
    return ((masks * losses if cut else losses).sum(0) * returns).mean()
