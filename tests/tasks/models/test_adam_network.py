"""The network under Adam against autograd and torch.optim, which share no code with it."""

from __future__ import annotations

import numpy as np
import torch

from metabench.tasks.models.adam_network import AdamNetwork
from metabench.tasks.models.dense import Dense


def test_steps_are_those_of_torch():
    net, rng = AdamNetwork(Dense((3, 5, 4, 2))), np.random.default_rng(0)
    at = net.start(rng)
    weights = torch.from_numpy(at.weights.copy()).requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=0.03)
    for _ in range(5):
        x, y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
        units = net.forward(at.weights, x)
        g = net.gradient(at.weights, units, 2 * (units[-1] - y) / y.size)

        a = torch.from_numpy(x)
        for i, (n, m, begin, middle, end) in enumerate(net.dense.places):
            a = a @ weights[begin:middle].reshape(n, m) + weights[middle:end]
            a = a if i == 2 else a.relu()
        optimiser.zero_grad()
        (a - torch.from_numpy(y)).square().mean().backward()
        np.testing.assert_allclose(g, weights.grad.numpy(), rtol=0, atol=1e-14)
        optimiser.step()
        at = net.moved(at, g, 0.03)
        np.testing.assert_allclose(at.weights, weights.detach().numpy(), rtol=0, atol=1e-9)
    assert at.step == 5


def test_first_weights_are_those_of_linear_layers():
    at = AdamNetwork(Dense((4, 64, 2))).start(np.random.default_rng(0))
    (w1, b1), (w2, b2) = Dense((4, 64, 2)).layers(at.weights)
    for values, bound in ((w1, 0.5), (b1, 0.5), (w2, 0.125), (b2, 0.125)):
        assert 0.2 * bound < np.abs(values).max() <= bound
