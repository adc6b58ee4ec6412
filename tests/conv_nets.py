"""Small convolutional classifiers, their weights, and MAML on them written out."""

from __future__ import annotations

import torch
from torch.nn import functional as F

EXACT = 1e-10


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights_of(net, signs):
    """Initial values; "mixed" gives scales of both signs and an exact zero."""
    params = net.init_params(torch.Generator().manual_seed(1))
    if signs == "mixed":
        for i, name in enumerate(params):
            if name.startswith("norm"):
                params[name] = draw(*params[name].shape, seed=i).to(params[name].dtype)
                if name.endswith("weight"):
                    params[name][0] = 0.0
    return params


def whole_loss(net, params, x, y):
    return net.loss(params, x, y)


def by_features(net, params, x, y):
    return F.cross_entropy(net.apply_params(params, x), y)


def meta_gradient(net, params, support, query, steps, loss=whole_loss, first_order=False, lr=0.4):
    """MAML's outer loss and gradient, written out."""
    lam = {k: v.detach().clone().requires_grad_() for k, v in params.items()}
    theta = lam
    for _ in range(steps):
        grads = torch.autograd.grad(
            loss(net, theta, *support), list(theta.values()), create_graph=not first_order
        )
        theta = {k: v - lr * g for (k, v), g in zip(theta.items(), grads, strict=True)}
    value = loss(net, theta, *query)
    return value.detach(), torch.autograd.grad(value, list(lam.values()))


def relative_error(got, want):
    """Largest error of a tensor, relative to its largest entry."""
    scale = max(float(w.abs().max()) for w in want)
    return max(
        float((g - w).abs().max()) / max(float(w.abs().max()), 1e-6 * scale)
        for g, w in zip(got, want, strict=True)
    )
