"""Inner solvers: torch.optim's numbers, purity, and derivatives through their updates."""

import pytest
import torch
from oracles import F64, differences

from metabench.contract import autodiff
from metabench.core.registry import solvers


def clipped_and_falling(params):
    """torch.optim.Adam as a training script calls it."""
    params = list(params)
    optimiser = torch.optim.Adam(params, lr=0.07, betas=(0.7, 0.5), eps=1e-6)
    taken = iter(range(7))

    def before(*_):
        norm = torch.nn.utils.clip_grad_norm_(params, 6.0)
        assert norm > 6.0, "nothing was clipped"
        optimiser.param_groups[0]["lr"] = 0.07 * (1 - next(taken) / 7)

    optimiser.register_step_pre_hook(before)
    return optimiser


PAIRS = {
    "sgd": (solvers.get("sgd")(), lambda p: torch.optim.SGD(p, lr=0.07)),
    "momentum": (
        solvers.get("momentum")(momentum=0.8),
        lambda p: torch.optim.SGD(p, lr=0.07, momentum=0.8),
    ),
    "nesterov": (
        solvers.get("momentum")(momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.07, momentum=0.8, nesterov=True),
    ),
    "adam": (
        solvers.get("adam")(beta1=0.7, beta2=0.95, eps=1e-6),
        lambda p: torch.optim.Adam(p, lr=0.07, betas=(0.7, 0.95), eps=1e-6),
    ),
    "momentum with decay": (
        solvers.get("momentum")(momentum=0.8, nesterov=True, weight_decay=0.3),
        lambda p: torch.optim.SGD(p, lr=0.07, momentum=0.8, nesterov=True, weight_decay=0.3),
    ),
    "adam with decay": (
        solvers.get("adam")(beta1=0.7, beta2=0.95, eps=1e-6, weight_decay=0.3),
        lambda p: torch.optim.Adam(p, lr=0.07, betas=(0.7, 0.95), eps=1e-6, weight_decay=0.3),
    ),
    "clipped and falling": (
        solvers.get("adam")(beta1=0.7, beta2=0.5, eps=1e-6, clip_norm=6.0, decay_steps=7),
        clipped_and_falling,
    ),
}


def start():
    gen = torch.Generator().manual_seed(0)
    return {k: torch.randn(n, generator=gen, dtype=F64) for k, n in (("a", 3), ("b", 2))}


def gradient(theta):
    return {"a": theta["a"] ** 3 - 1.0, "b": torch.tanh(theta["b"])}


@pytest.mark.parametrize("name", PAIRS)
def test_same_numbers_as_torch(name):
    ours, theirs = PAIRS[name]
    theta, memory = start(), ours.init(start())
    params = [v.clone().requires_grad_() for v in theta.values()]
    optimizer = theirs(params)
    for _ in range(6):
        theta, memory = ours.update(theta, gradient(theta), memory, 0.07)
        live = dict(zip("ab", params, strict=True))
        for p, g in zip(params, gradient({k: v.detach() for k, v in live.items()}).values(),
                        strict=True):  # fmt: skip
            p.grad = g
        optimizer.step()
        for one, other in zip(theta.values(), params, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_changes_nothing_that_comes_in(name):
    solver = PAIRS[name][0]
    theta, memory = solver.update(start(), gradient(start()), solver.init(start()), 0.1)
    copies = [{k: v.clone() for k, v in x.items()} for x in (theta, *memory.values())]
    solver.update(theta, gradient(theta), memory, 0.1)
    for before, after in zip(copies, (theta, *memory.values()), strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", PAIRS)
def test_differentiable_in_all_that_comes_in(name):
    solver = PAIRS[name][0]
    theta, memory = solver.update(start(), gradient(start()), solver.init(start()), 0.1)
    flat = {"lr": torch.tensor(0.1, dtype=F64)}
    for part, params in (("theta", theta), ("grad", gradient(theta)), *memory.items()):
        flat |= {f"{part}/{k}": v for k, v in params.items()}

    def f(flat):
        parts = {}
        for name, v in flat.items():
            part, _, k = name.partition("/")
            parts.setdefault(part, {})[k] = v
        held = {k: parts[k] for k in memory}
        new, after = solver.update(parts["theta"], parts["grad"], held, flat["lr"])
        return sum((v * v).sum() for x in (new, *after.values()) for v in x.values())

    leaves = {k: v.clone().requires_grad_() for k, v in flat.items()}
    found = torch.autograd.grad(f(leaves), list(leaves.values()), materialize_grads=True,
                                allow_unused=True)  # fmt: skip
    oracle = differences(f, flat, h=1e-4)
    for (k, expected), g in zip(oracle.items(), found, strict=True):
        torch.testing.assert_close(
            g, expected, rtol=1e-7, atol=1e-7, msg=lambda m, k=k: f"{k}: {m}"
        )


def test_adam_stands_still_after_the_last_step_of_a_falling_step_size():
    solver = solvers.get("adam")(decay_steps=2)
    theta, memory, gaps = start(), solver.init(start()), []
    for _ in range(3):
        before = theta
        theta, memory = solver.update(theta, gradient(theta), memory, 0.07)
        gaps.append(float(autodiff.norm(autodiff.axpy(-1.0, before, theta))))
    assert gaps[0] > gaps[1] > 0 and gaps[2] == 0


def test_adam_where_no_gradient_has_come():
    solver = solvers.get("adam")()
    theta, g = {"a": torch.ones(2, dtype=F64)}, torch.zeros(2, dtype=F64, requires_grad=True)
    new, memory = solver.update(theta, {"a": g}, solver.init(theta), 0.1)
    (slope,) = torch.autograd.grad(new["a"].sum(), [g])
    assert torch.equal(new["a"], theta["a"]) and bool(torch.isfinite(slope).all())
    new, _ = solver.update(new, {"a": g}, memory, 0.1)
    assert torch.equal(new["a"], theta["a"])


@pytest.mark.parametrize("types", [
    ("bfloat16", "float32", "float64"), ("float16", "bfloat16"), ("float32", "float64"),
    ("float64", "float32"),
])  # fmt: skip
def test_adam_moves_every_tensor_whatever_the_type_of_the_first(types):
    """With a gradient that stays, each of its steps is the step size."""
    solver = solvers.get("adam")()
    theta = {name: torch.ones(2, dtype=getattr(torch, name)) for name in types}
    g, memory = {k: torch.full_like(v, 0.5) for k, v in theta.items()}, solver.init(theta)
    for _ in range(10):
        theta, memory = solver.update(theta, g, memory, 0.0625)  # exact in half precision too
    assert memory["count"]["steps"] == 10
    for name, v in theta.items():
        assert v.dtype is getattr(torch, name)
        torch.testing.assert_close(v, torch.full_like(v, 1 - 10 * 0.0625), rtol=0, atol=1e-5)


def test_adam_of_a_float16_parameter_whose_gradient_is_tiny_or_nothing_stays_finite():
    solver = solvers.get("adam")()
    theta = {"a": torch.ones(2, dtype=torch.float16)}
    g = {"a": torch.tensor([0.0, 1e-4], dtype=torch.float16)}
    new, _ = solver.update(theta, g, solver.init(theta), 0.25)
    assert new["a"].tolist() == [1.0, 0.75]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "given", [{}, {"decay_steps": 7}, {"weight_decay": 0.3, "clip_norm": 0.5}, {"beta2": 0.5}]
)
def test_adam_of_all_parameters_by_one_call_is_that_of_each_to_the_bit(given, dtype):
    solver, generator = solvers.get("adam")(**given), torch.Generator().manual_seed(0)
    theta = {
        k: torch.randn(shape, generator=generator, dtype=dtype)
        for k, shape in {"a": (3, 2), "b": (), "c": (5,), "still": (2,), "bad": (2,)}.items()
    }
    clipped = "clip_norm" in given  # which would spread what is not finite
    one, other = (theta, solver.init(theta)), (theta, solver.init(theta))
    for step in range(9):
        g = {k: torch.randn(v.shape, generator=generator, dtype=dtype) for k, v in theta.items()}
        g["still"] = torch.zeros(2, dtype=dtype)
        if step > 4 and not clipped:
            g["bad"] = torch.tensor([float("nan"), float("inf")], dtype=dtype)
        one = solver.update(one[0], g, one[1], 0.07)
        rates = {k: torch.tensor(0.07, dtype=dtype) for k in theta}  # one by one, by name
        other = solver.update(other[0], g, other[1], rates)
        for x, y in zip((one[0], *one[1].values()), (other[0], *other[1].values()), strict=True):
            assert x.keys() == y.keys() and [*x] == [*y]
            for k in x:
                torch.testing.assert_close(x[k], y[k], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("moments", [torch.float16, F64])
def test_adam_keeps_the_type_of_theta_whatever_that_of_its_moments(moments):
    """As of a state that was loaded or cast."""
    solver, theta = solvers.get("adam")(), {"a": torch.tensor([1.0, -2.0])}
    state = {
        part: {k: v.to(moments) if part != "count" else v for k, v in held.items()}
        for part, held in solver.init(theta).items()
    }
    g = {"a": torch.tensor([0.3, 0.1])}
    new, after = solver.update(theta, g, state, 0.07)
    again, kept = solver.update(theta, g, state, {"a": torch.tensor(0.07)})
    assert new["a"].dtype == torch.float32 and torch.equal(new["a"], again["a"])
    for part, held in after.items():
        for k, v in held.items():
            assert v.dtype == kept[part][k].dtype and torch.equal(v, kept[part][k])


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_adam_of_nothing_takes_a_step(clip_norm):
    solver = solvers.get("adam")(clip_norm=clip_norm)
    new, memory = solver.update({}, {}, solver.init({}), 0.1)
    assert new == {} and memory["count"]["steps"] == 1


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_size_for_every_parameter(name):
    solver = PAIRS[name][0]
    theta = start()
    held = solver.init(theta)
    rates = {"b": torch.tensor([0.1, 0.3], dtype=F64)}
    new, _ = solver.update(theta, gradient(theta), held, rates)
    assert torch.equal(new["a"], theta["a"])  # no step size, no step
    for i, rate in enumerate((0.1, 0.3)):
        one, _ = solver.update(theta, gradient(theta), held, rate)
        torch.testing.assert_close(new["b"][i], one["b"][i], rtol=1e-12, atol=0)
