"""Weights gated by example: the same as weights built one example at a time."""

import pytest
import torch
from oracles import F64
from torch.nn import functional as F

from metabench.contract.by_examples.per_example_weights import Gated
from metabench.core.errors import MetabenchError
from metabench.hypergradients.unrolled import load_forward_mode

N, ROWS = 5, 4


@pytest.fixture
def draw():
    gen = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=gen, dtype=F64)


def parameter(draw, *shape):
    return Gated(draw(ROWS, *shape), draw(ROWS, *shape), draw(N, ROWS))


def plain(value, example):
    return value.of(example) if isinstance(value, Gated) else value


def one_by_one(operation, x, weight, bias):
    return torch.cat(
        [
            operation(x[i : i + 1], plain(weight, i), None if bias is None else plain(bias, i))
            for i in range(N)
        ]
    )


OPERATIONS = {
    "linear": (F.linear, (3,), (3,)),
    "linear on sequences": (F.linear, (7, 3), (3,)),
    "conv1d": (F.conv1d, (3, 8), (3, 3)),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, 2, padding=1), (2, 6, 6), (2, 3, 3)),
    "by name": (lambda x, w, b: F.conv2d(x, bias=b, weight=w), (2, 6, 6), (2, 3, 3)),
}


@pytest.mark.parametrize("which", ["weight", "bias", "both", "no bias"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_each_example_by_itself(draw, name, which):
    operation, inputs, weights = OPERATIONS[name]
    x = draw(N, *inputs)
    weight = draw(ROWS, *weights) if which == "bias" else parameter(draw, *weights)
    bias = draw(ROWS) if which == "weight" else parameter(draw)
    bias = None if which == "no bias" else bias
    found = operation(x, weight, bias)
    torch.testing.assert_close(
        found, one_by_one(operation, x, weight, bias), rtol=1e-12, atol=1e-12
    )


def test_gradients_reach_all_three_and_the_input(draw):
    x, parts = draw(N, 3), (draw(ROWS, 3), draw(ROWS, 3), draw(N, ROWS))
    leaves = [v.requires_grad_() for v in (x, *parts)]
    gated = Gated(*leaves[1:])
    found, expected = (
        torch.autograd.grad(y.sin().sum(), leaves)
        for y in (F.linear(x, gated), one_by_one(F.linear, x, gated, None))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_forward_mode_goes_along_the_gate(draw):
    load_forward_mode()
    x, base, slope, gate = draw(N, 3), draw(ROWS, 3), draw(ROWS, 3), draw(N, ROWS)
    one = torch.ones((), dtype=F64)
    _, change = torch.func.jvp(lambda s: F.linear(x, Gated(base, slope, s * gate)), (one,), (one,))
    torch.testing.assert_close(change, gate * F.linear(x, slope), rtol=1e-12, atol=1e-12)


def test_it_is_a_parameter_to_those_who_ask_and_refuses_other_operations(draw):
    weight = parameter(draw, 3)
    assert (tuple(weight.shape), weight.dim(), weight.dtype) == ((ROWS, 3), 2, F64)
    for use in (lambda: weight + 1, lambda: draw(N, 3) @ weight.T, lambda: weight.square().sum()):
        with pytest.raises(MetabenchError, match="linear and convolution operations take them"):
            use()


def test_a_network_by_its_module_takes_gated_weights_too(draw):
    net = torch.nn.Linear(3, ROWS, dtype=F64)
    given = {"weight": parameter(draw, 3), "bias": parameter(draw)}
    x = draw(N, 3)
    found = torch.func.functional_call(net, given, (x,))
    expected = one_by_one(F.linear, x, given["weight"], given["bias"])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
