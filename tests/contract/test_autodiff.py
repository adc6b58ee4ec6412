"""Derivatives on named tensors: both ways of taking them, graphs or none, zeros where due."""

import threading

import pytest
import torch
from oracles import F64

from metabench.contract import autodiff

X = {"a": torch.tensor([1.0, -2.0], dtype=F64), "b": torch.tensor(0.5, dtype=F64)}


@pytest.fixture(params=["autograd", "functional"])
def way(request):
    if request.param == "autograd":
        yield
    else:
        with autodiff.functional():
            yield


def cubic(x):
    return (x["a"] ** 3).sum() * x["b"]


def test_gradient_and_value(way):
    value, g = autodiff.grad(cubic, X)
    assert value == -3.5 and not value.requires_grad
    assert torch.equal(g["a"], 1.5 * X["a"] ** 2) and g["b"] == -7.0
    assert list(g) == list(X) and not any(v.requires_grad for v in (*g.values(), *X.values()))


def test_zeros_where_nothing_depends(way):
    value, g = autodiff.grad(lambda x: (x["a"] * 2).sum(), X)
    assert value == -2.0 and g["b"] == 0.0
    _, g = autodiff.grad(lambda x: torch.tensor(3.0, dtype=F64), X)
    assert not any(v.any() for v in g.values())


def test_what_comes_beside_the_value(way):
    value, g, rest = autodiff.grad_and_rest(lambda x: (cubic(x), {"twice": 2 * x["a"]}), X)
    assert value == -3.5 and g["b"] == -7.0
    assert torch.equal(rest["twice"], 2 * X["a"]) and not rest["twice"].requires_grad


def test_second_derivatives(way):
    def slope(x):
        return autodiff.grad(cubic, x, create_graph=True)[1]["a"].sum()

    _, g = autodiff.grad(slope, X)
    assert torch.equal(g["a"], 3.0 * X["a"]) and g["b"] == 15.0


def test_without_a_graph_a_gradient_is_a_constant(way):
    def f(x):
        return (x["a"] * autodiff.grad(cubic, x)[1]["a"]).sum()

    _, g = autodiff.grad(f, X)
    assert torch.equal(g["a"], 1.5 * X["a"] ** 2) and g["b"] == 0.0


def test_a_second_way_in_through_the_same_tensor_is_not_followed(way):
    """theta starts as lam's own tensors: dG/dtheta must leave out dG/dlam."""

    def f(lam):
        theta = dict(lam)
        g = autodiff.grad(lambda t: (t["a"] * lam["a"] ** 2).sum(), theta, create_graph=True)[1]
        return g["a"].sum()

    value, g = autodiff.grad(f, X)
    assert value == 5.0 and torch.equal(g["a"], 2 * X["a"])


def test_pullback(way):
    def f(x, s):
        return {"y": x["a"] * s, "same": x["b"], "constant": torch.ones(2, dtype=F64)}

    s = torch.tensor(3.0, dtype=F64)
    out, back = autodiff.pullback(f, X, s)
    assert torch.equal(out["y"], 3 * X["a"]) and not out["y"].requires_grad
    ones = torch.ones(2, dtype=F64)
    x_bar, s_bar = back({"y": ones, "same": torch.tensor(2.0, dtype=F64), "constant": ones})
    assert torch.equal(x_bar["a"], 3 * ones) and x_bar["b"] == 2.0 and s_bar == -1.0


def test_pullback_of_what_depends_on_nothing(way):
    _, back = autodiff.pullback(lambda x: {"y": torch.ones(2, dtype=F64)}, X)
    (bar,) = back({"y": torch.ones(2, dtype=F64)})
    assert list(bar) == list(X) and not any(v.any() for v in bar.values())


def test_pullbacks_can_be_used_again_one_primal_at_a_time(way):
    def f(x, s):
        return {"y": x["a"] * s, "same": x["b"] ** 2}

    s = torch.tensor(3.0, dtype=F64)
    out, (to_x, to_s) = autodiff.pullbacks(f, X, s)
    assert torch.equal(out["y"], 3 * X["a"]) and not out["y"].requires_grad
    one, two = torch.ones(2, dtype=F64), torch.tensor(2.0, dtype=F64)
    for scale in (1.0, 2.0, -1.0):
        given = {"y": scale * one, "same": two}
        bar = to_x(given)
        assert torch.equal(bar["a"], 3 * scale * one) and bar["b"] == 2.0
        assert to_s(given) == -scale and not bar["a"].requires_grad


def test_pullbacks_of_what_depends_on_nothing(way):
    _, (to_x, to_y) = autodiff.pullbacks(lambda x, y: {"y": 2 * y["a"]}, X, dict(X))
    given = {"y": torch.ones(2, dtype=F64)}
    assert not any(v.any() for v in to_x(given).values())
    assert torch.equal(to_y(given)["a"], torch.full((2,), 2.0, dtype=F64))


def test_pullbacks_reach_a_leaf_through_what_was_computed_of_it():
    x = autodiff.leaf(X)
    made = x["a"] ** 2
    _, (to_x,) = autodiff.pullbacks(lambda p: (p["b"] * made).sum(), x)
    for _ in range(2):
        bar = to_x(torch.tensor(1.0, dtype=F64))
        assert torch.equal(bar["a"], X["a"]) and bar["b"] == 5.0


def test_flat_and_back():
    flat = autodiff.flatten(X)
    assert torch.equal(flat, torch.tensor([1.0, -2.0, 0.5], dtype=F64))
    again = autodiff.unflatten(flat, X)
    assert list(again) == list(X) and again["b"].shape == () and torch.equal(again["a"], X["a"])
    flat.zero_()
    assert not again["a"].any()


def test_cotangents_in_another_order_are_refused():
    _, back = autodiff.pullback(lambda x: dict(x), X)
    with pytest.raises(ValueError, match="cotangents are"):
        back({"b": X["b"], "a": X["a"]})


def test_functional_is_a_matter_of_the_thread():
    seen = []
    with autodiff.functional():
        thread = threading.Thread(target=lambda: seen.append(autodiff.is_functional()))
        thread.start()
        thread.join()
        assert autodiff.is_functional()
    assert seen == [False] and not autodiff.is_functional()


def test_arithmetic():
    y = {"a": torch.ones(2, dtype=F64), "b": torch.tensor(2.0, dtype=F64)}
    assert torch.equal(autodiff.axpy(2.0, X, y)["a"], torch.tensor([3.0, -3.0], dtype=F64))
    assert autodiff.dot(X, y) == 0.0
    assert autodiff.norm(X) == pytest.approx(5.25**0.5)
    assert autodiff.mean([X, y, y])["b"] == 1.5 and X["b"] == 0.5
    big = {"a": torch.full((2,), 1e30)}  # its square is no float32
    assert autodiff.norm(big) == pytest.approx(2**0.5 * 1e30)
