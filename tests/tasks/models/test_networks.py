"""The few-shot network: shapes, initial values, and one meta-gradient by every way to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metabench.tasks.models import networks
from metabench.tasks.models.networks import ConvNet, ResNet12

EXACT = 1e-10


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def library_net(net, channels, filters, blocks, downsample):
    """The same network out of torch.nn, as a stranger would write it."""
    layers: list[tuple[str, nn.Module]] = []
    for i in range(blocks):
        stride = 2 if downsample == "stride" else 1
        conv = nn.Conv2d(channels if i == 0 else filters, filters, 3, stride, 1, bias=False)
        norm = nn.BatchNorm2d(filters, track_running_stats=False)
        layers += [(f"conv{i + 1}", conv), (f"norm{i + 1}", norm), (f"relu{i + 1}", nn.ReLU())]
        if downsample == "pool":
            layers.append((f"pool{i + 1}", nn.MaxPool2d(2)))
    if downsample == "stride":
        layers.append(("mean", nn.AdaptiveAvgPool2d(1)))
    layers += [("flat", nn.Flatten()), ("head", nn.Linear(net.feature_size, 5))]
    from collections import OrderedDict

    return nn.Sequential(OrderedDict(layers)).double()


def params_of(net):
    """Initial values moved off the ones and zeros that hide faults."""
    params = net.init_params(torch.Generator().manual_seed(3))
    for i, (name, value) in enumerate(params.items()):
        if "norm" in name:
            params[name] = value + 0.5 * draw(*value.shape, seed=i)
    return params


def unrolled(loss, params, support, query, steps, lr=0.3):
    """MAML's outer loss as a function of the initial values, for autograd."""
    theta = params
    for _ in range(steps):
        grads = torch.autograd.grad(loss(theta, *support), list(theta.values()), create_graph=True)
        theta = {k: v - lr * g for (k, v), g in zip(theta.items(), grads, strict=True)}
    return loss(theta, *query)


@pytest.mark.parametrize(
    "downsample, size, channels",
    [("stride", 28, 1), ("stride", 15, 3), ("pool", 17, 1), ("pool", 20, 3)],
)
@pytest.mark.parametrize("elementary", [False, True])
def test_meta_gradient_equals_that_of_a_torch_nn_network(downsample, size, channels, elementary):
    blocks, filters = 3, 4
    net = ConvNet(
        channels,
        size,
        5,
        filters=filters,
        blocks=blocks,
        downsample=downsample,
        elementary=elementary,
        dtype=torch.float64,
    )
    library = library_net(net, channels, filters, blocks, downsample)
    start = params_of(net)
    assert {k: v.shape for k, v in library.named_parameters()} == {
        k: v.shape for k, v in start.items()
    }
    support = draw(5, channels, size, size, seed=1), torch.arange(5)
    query = draw(10, channels, size, size, seed=2), torch.arange(10) % 5
    found = []
    for loss in (
        net.loss,
        lambda p, x, y: F.cross_entropy(net.apply_params(p, x), y),
        lambda p, x, y: F.cross_entropy(functional_call(library, p, (x,)), y),
    ):
        lam = {k: v.clone().requires_grad_() for k, v in start.items()}
        value = unrolled(loss, lam, support, query, 2)
        found.append([value.detach(), *torch.autograd.grad(value, list(lam.values()))])
    for other in found[:2]:
        for got, want in zip(other, found[2], strict=True):
            assert float((got - want).abs().max()) < EXACT * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("kind", ["stride", "pool", "resnet12"])
def test_batched_over_tasks_equals_looped(kind):
    """vmap around an outer and an inner gradient: where the library's batch norm is wrong."""
    if kind == "resnet12":
        net = ResNet12(1, 16, 3, widths=(2, 3, 4, 5), dtype=torch.float64)
    else:
        net = ConvNet(1, 16, 3, filters=4, blocks=3, downsample=kind, dtype=torch.float64)
    start = params_of(net)
    x, y = draw(4, 6, 1, 16, 16), torch.arange(6).remainder(3).expand(4, 6)
    q = draw(4, 9, 1, 16, 16, seed=1)
    yq = torch.arange(9).remainder(3).expand(4, 9)

    def outer(params, x, y, q, yq):
        theta = params
        for _ in range(2):
            grads = torch.func.grad(net.loss)(theta, x, y)
            theta = {k: theta[k] - 0.3 * grads[k] for k in theta}
        return net.loss(theta, q, yq)

    batched = torch.func.vmap(torch.func.grad(outer), in_dims=(None, 0, 0, 0, 0))(
        start, x, y, q, yq
    )
    for i in range(4):
        lam = {k: v.clone().requires_grad_() for k, v in start.items()}
        value = unrolled(net.loss, lam, (x[i], y[i]), (q[i], yq[i]), 2)
        looped = torch.autograd.grad(value, list(lam.values()))
        for name, want in zip(lam, looped, strict=True):
            error = float((batched[name][i] - want).abs().max())
            assert error < EXACT * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize(
    "downsample, size, channels, filters, features",
    [
        ("stride", 28, 1, 64, 64),
        ("pool", 28, 1, 64, 64),
        ("pool", 84, 3, 32, 800),
        ("stride", 84, 3, 32, 32),
    ],
)
def test_shapes_of_the_papers_networks(downsample, size, channels, filters, features):
    net = ConvNet(channels, size, 5, filters=filters, downsample=downsample)
    assert net.feature_size == features
    x = draw(2, channels, size, size, dtype=torch.float32)
    params = net.init_params(torch.Generator().manual_seed(0))
    assert net(x).shape == (2, 5)
    assert net.features(params, x).shape == (2, features)
    body = {k: v for k, v in params.items() if not k.startswith("head")}
    assert torch.equal(net.features(body, x), net.features(params, x))
    assert torch.equal(net(x), net.apply_params(dict(net.named_parameters()), x))


def test_images_too_small_for_the_pools():
    with pytest.raises(ValueError, match="too small for 4 blocks"):
        ConvNet(1, 15, 5, downsample="pool")


def test_initial_values():
    net = ConvNet(1, 28, 5)
    a, b, c = (net.init_params(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert list(a) == [name for name, _ in net.named_parameters()]
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])
    assert bool((a["norm2.weight"] == 1).all()) and not a["norm2.bias"].any()
    bound = (6 / (64 * 9 + 64 * 9)) ** 0.5  # Glorot
    assert 0.9 * bound < float(a["conv2.weight"].abs().max()) <= bound
    before = torch.random.get_rng_state()
    ConvNet(1, 28, 5)
    assert torch.equal(before, torch.random.get_rng_state())


# --- ResNet-12 -----------------------------------------------------------------------------------

WIDTHS = (2, 3, 4, 5)


class LibraryBlock(nn.Module):
    """A residual block as a stranger would write it: activation, then pool."""

    def __init__(self, inputs, width):
        super().__init__()
        for j in (1, 2, 3):
            conv = nn.Conv2d(inputs if j == 1 else width, width, 3, padding=1, bias=False)
            self.add_module(f"conv{j}", conv)
            self.add_module(f"norm{j}", nn.BatchNorm2d(width, track_running_stats=False))
        self.skip = nn.Conv2d(inputs, width, 1, bias=False)
        self.skip_norm = nn.BatchNorm2d(width, track_running_stats=False)

    def forward(self, x):
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.1)
        y = F.leaky_relu(self.norm2(self.conv2(y)), 0.1)
        y = self.norm3(self.conv3(y)) + self.skip_norm(self.skip(x))
        return F.max_pool2d(F.leaky_relu(y, 0.1), 2)


class LibraryResNet(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        for i, (inputs, width) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False), 1):
            self.add_module(f"block{i}", LibraryBlock(inputs, width))
        self.head = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x):
        for i in range(1, 5):
            x = self.get_submodule(f"block{i}")(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_meta_gradient_of_resnet12_equals_that_of_a_torch_nn_network():
    net = ResNet12(3, 18, 5, widths=WIDTHS, dtype=torch.float64)
    library = LibraryResNet(3, 5).double()
    start = params_of(net)
    assert {k: v.shape for k, v in library.named_parameters()} == {
        k: v.shape for k, v in start.items()
    }
    support = draw(5, 3, 18, 18, seed=1), torch.arange(5)
    query = draw(10, 3, 18, 18, seed=2), torch.arange(10) % 5
    found = []
    for loss in (net.loss, lambda p, x, y: F.cross_entropy(functional_call(library, p, (x,)), y)):
        lam = {k: v.clone().requires_grad_() for k, v in start.items()}
        value = unrolled(loss, lam, support, query, 2, lr=0.05)
        found.append([value.detach(), *torch.autograd.grad(value, list(lam.values()))])
    for got, want in zip(*found, strict=True):
        assert float((got - want).abs().max()) < EXACT * max(1.0, float(want.abs().max()))


def test_resnet12_as_in_its_paper():
    net = ResNet12(3, 84, 5)
    assert net.feature_size == 640
    assert sum(v.numel() for v in net.parameters()) == 12_424_320 + 640 * 5 + 5
    assert net.names[-2:] == ["head.weight", "head.bias"]
    params = net.init_params(torch.Generator().manual_seed(0))
    fan_out = 160 * 9
    spread = float(params["block2.conv2.weight"].std())
    assert spread == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)  # He
    assert bool((params["block3.skip_norm.weight"] == 1).all())
    assert not params["block3.skip_norm.bias"].any()
    with pytest.raises(ValueError, match="too small for 4 blocks"):
        ResNet12(3, 15, 5)


def test_to_build_a_network_draws_nothing_and_imports_no_sympy():
    code = (
        "import sys, torch\n"
        "from metabench.tasks.models.networks import ConvNet, ResNet12\n"
        "before = torch.get_rng_state()\n"
        "ConvNet(1, 28, 5), ResNet12(3, 32, 5)\n"
        "print(torch.equal(before, torch.get_rng_state()), 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_without_values_has_the_parameters_of_the_layer(dtype):
    for kind, given, named in (
        (nn.Linear, (3, 4), {}),
        (nn.Conv2d, (2, 5, 3, 2, 1), {"bias": False}),
        (nn.BatchNorm2d, (6, 1e-5), {"track_running_stats": False}),
    ):
        made = networks.unfilled(kind, *given, **named, dtype=dtype)
        meant = kind(*given, **named, dtype=dtype)
        assert type(made) is kind and made.extra_repr() == meant.extra_repr()
        found, wanted = (
            {n: (p.shape, p.dtype, p.device, p.requires_grad) for n, p in m.named_parameters()}
            for m in (made, meant)
        )
        assert found == wanted and not [*made.named_buffers()]


@pytest.mark.parametrize("channels", [1, 3])
def test_pooled_features_without_a_derivative_are_the_same(channels):
    """By the library's own operations for several channels."""
    net = ConvNet(channels, 20, 3, filters=6, blocks=2, downsample="pool", dtype=torch.float64)
    params = {k: v.requires_grad_() for k, v in net.init_params(torch.Generator()).items()}
    x, y = draw(7, channels, 20, 20), torch.arange(7) % 3
    with torch.no_grad():
        features, value = net.features(params, x), net.loss(params, x, y)
    alone = {k: v.detach() for k, v in params.items()}
    assert torch.equal(net.features(alone, x), features)
    with_graph = net.features(params, x)
    assert with_graph.requires_grad
    torch.testing.assert_close(features, with_graph.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value, net.loss(params, x, y).detach(), rtol=1e-12, atol=1e-12)
