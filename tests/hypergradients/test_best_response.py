"""Coordinates of lam, and responses: rows, entries and scalars that answer u."""

from dataclasses import dataclass

import pytest
import torch
from oracles import F64, context

from metabench.contract.by_examples.per_example_weights import Gated
from metabench.contract.problem import Hyper
from metabench.core.capabilities import check_applicable, why_not
from metabench.core.errors import NotApplicable
from metabench.core.registry import methods, tasks
from metabench.hypergradients.best_response import MARGIN, Coordinates
from metabench.hypergradients.self_tuning import begin, entropy, respond

HYPERS = (
    Hyper("rate", (2,), 0.0, 0.95),
    Hyper("decay", (), 1e-4, 1.0, log=True),
    Hyper("above", (), 2.0, None),
    Hyper("below", (), None, 1.0),
    Hyper("holes", (), choices=(0, 1, 2, 3)),
)
LAM = {
    "rate": torch.tensor([0.05, 0.9], dtype=F64),
    "decay": torch.tensor(0.01, dtype=F64),
    "above": torch.tensor(2.5, dtype=F64),
    "below": torch.tensor(-3.0, dtype=F64),
    "holes": torch.tensor(2.0, dtype=F64),
    "free": torch.tensor([[1.0, -7.0]], dtype=F64),
}


@dataclass
class Described:
    """What coordinates ask of a problem."""

    hypers: tuple[Hyper, ...] = HYPERS

    def init_outer(self):
        return dict(LAM)

    def project(self, lam):
        return {k: v.clamp(max=5.0) for k, v in lam.items()}


def same(found, expected, tolerance=1e-12):
    assert list(found) == list(expected)
    for k, v in expected.items():
        torch.testing.assert_close(found[k], v, rtol=tolerance, atol=tolerance)


def test_lam_to_u_and_back():
    at = Coordinates(Described(), squash=True)
    u = at.vector(LAM)
    assert u.shape == (8,)
    same(at.lam(u), LAM)


def test_lam_stays_within_its_bounds_wherever_u_goes():
    at = Coordinates(Described(), squash=True)
    far = torch.tensor([[-1e3], [1e3]], dtype=F64).expand(2, 8)
    low, high = ({k: v[i] for k, v in at.lam(far).items()} for i in (0, 1))
    assert low["rate"].tolist() == [0, 0] and high["rate"].tolist() == [0.95, 0.95]
    assert float(low["decay"]) == pytest.approx(1e-4) and float(high["decay"]) == 1.0
    assert float(low["above"]) == 2.0 and float(high["below"]) == pytest.approx(-999.0)
    assert (float(low["holes"]), float(high["holes"])) == (0.0, 3.0)
    assert high["free"].tolist() == [[1e3, 1e3]]


def test_a_value_on_its_bound_starts_just_inside():
    at = Coordinates(Described(), squash=True)
    lam = at.lam(at.vector({**LAM, "rate": torch.tensor([0.0, 0.95], dtype=F64)}))
    assert lam["rate"].tolist() == pytest.approx([0.95 * MARGIN, 0.95 * (1 - MARGIN)])


def test_choices_have_no_derivative_and_the_rest_has():
    at = Coordinates(Described(), squash=True)
    jacobian = torch.func.jacrev(at.lam)(at.vector(LAM))
    assert not jacobian["holes"].any()
    for name in set(LAM) - {"holes"}:
        assert (jacobian[name].reshape(-1, len(at.vector(LAM))).abs().sum(1) > 0).all(), name


def test_without_squashing_u_is_lam_projected():
    at = Coordinates(Described(), squash=False)
    u = at.vector(LAM)
    assert u.tolist() == [0.05, 0.9, 0.01, 2.5, -3.0, 2.0, 1.0, -7.0]
    assert float(at.lam(u + 4)["above"]) == 5.0
    same(at.lam(torch.stack([u, u])), {k: torch.stack([v, v]) for k, v in LAM.items()})


THETA = {"weight": (4, 3), "kernel": (2, 3, 3, 3), "bias": (4,), "scalar": ()}


@pytest.mark.parametrize("rank", [None, 2])
def test_every_tensor_of_theta_answers_by_rows(rank):
    gen = torch.Generator().manual_seed(0)
    theta = {k: torch.randn(shape, generator=gen, dtype=F64) for k, shape in THETA.items()}
    phi = begin(theta, 3, gen, rank=rank, gates=0.5)
    u = torch.randn(6, 3, generator=gen, dtype=F64)
    same(respond(phi, torch.zeros(3, dtype=F64)), theta)
    each = [respond(phi, row) for row in u]
    seen = u if rank is None else u @ phi["projection"].T
    for name, value in theta.items():
        v, slope = phi[f"gate/{name}"], phi[f"slope/{name}"]
        for row, found in zip(seen, each, strict=True):
            scaled = torch.diag(v @ row) @ slope.reshape(len(v), -1)
            torch.testing.assert_close(found[name], value + scaled.reshape(value.shape))
    for name, gated in respond({k: v for k, v in phi.items() if "scalar" not in k}, u).items():
        assert isinstance(gated, Gated)
        for i, found in enumerate(each):
            torch.testing.assert_close(gated.of(i), found[name])


def test_a_centred_response_starts_flat_and_can_still_learn():
    theta = {"weight": torch.zeros(4, 3, dtype=F64), "bias": torch.zeros(4, dtype=F64)}
    phi = begin(theta, 2, torch.Generator().manual_seed(0))
    same(respond(phi, torch.ones(2, dtype=F64)), theta)
    assert all(bool(phi[f"slope/{k}"].abs().min() > 0) for k in theta)


def test_entropy_is_that_of_a_normal_distribution():
    scale = torch.tensor([0.3, 2.0], dtype=F64)
    expected = torch.distributions.Normal(torch.zeros(2, dtype=F64), scale).entropy().sum()
    torch.testing.assert_close(entropy(scale), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["stn", "delta_stn"])
def test_a_long_lam_needs_gates_of_low_rank(name):
    method, long = methods.get(name), tasks.get("quadratic")(dim=20)
    with pytest.raises(NotApplicable, match="a lam of few scalars"):
        check_applicable(long, method())
    with pytest.raises(NotApplicable, match="bounds on lam"):
        check_applicable(long, method(rank=3))
    check_applicable(long, method(rank=3, squash=False))


@pytest.mark.parametrize(("task", "set_"), [
    ("hyper_cleaning", {"squash": False}), ("weight_decay", {}), ("weight_decay", {"squash": False})
])  # fmt: skip
def test_a_weight_an_example_or_a_decay_a_weight_goes_through_gates_of_low_rank(task, set_):
    made, stn = tasks.get(task)(), methods.get("stn")
    assert "too many scalars" in why_not(made, stn()) and "one inner" not in why_not(made, stn())
    check_applicable(made, stn(rank=4, **set_))


def test_two_inner_minima_are_no_function_of_lam():
    assert "two inner minima" in why_not(tasks.get("two_minima")(), methods.get("stn")())


@pytest.mark.parametrize("name", ["stn", "delta_stn"])
@pytest.mark.parametrize(
    "task, set_",
    [("quadratic", {"formulation": "init"}), ("glyphs", {"formulation": "representation"})],
)
def test_there_must_be_one_solution_that_depends_on_lam(name, task, set_):
    with pytest.raises(NotApplicable, match="one inner problem"):
        check_applicable(tasks.get(task)(**set_), methods.get(name)(rank=3, squash=False))


@pytest.mark.parametrize("name", ["stn", pytest.param("delta_stn", marks=pytest.mark.slow)])
def test_a_long_lam_goes_down_by_a_few_projections(name):
    ctx = context(tasks.get("quadratic")(dim=20))
    method = methods.get(name)(rank=8, squash=False, inner_steps=20, inner_lr=0.02, outer_lr=0.02)
    state, values = method.init(ctx), []
    exact = ctx.problem.exact_hypergradient
    for _ in range(60):
        state, _ = method.step(ctx, state)
        ctx.step += 1
        values.append(float(exact(state.lam).norm()))
    assert values[-1] < 0.8 * values[0]


def test_slopes_of_biases_are_ones_or_drawn_within_the_bound_of_their_layer():
    theta = {"a.weight": torch.zeros(300, 16, dtype=F64), "a.bias": torch.zeros(300, dtype=F64),
             "conv.bias": torch.zeros(300, dtype=F64), "w": torch.zeros((), dtype=F64),
             "conv.weight": torch.zeros(300, 4, 3, 3, dtype=F64),
             "alone": torch.zeros(300, dtype=F64)}  # fmt: skip
    bounds = {"a.bias": 1 / 4, "conv.bias": 1 / 6, "alone": 1.0, "w": 1.0}
    ones, drawn = (
        begin(theta, 2, torch.Generator().manual_seed(0), bias_slopes=kind)
        for kind in ("ones", "uniform")
    )
    for k, bound in bounds.items():
        assert torch.equal(ones[f"slope/{k}"], torch.ones_like(theta[k]))
        sizes = drawn[f"slope/{k}"].abs()
        assert float(sizes.max()) <= bound
        if k != "w":
            # The largest of 300 uniform draws, and half of them on either side of 0.
            assert float(sizes.max()) > 0.95 * bound
            assert abs(int((drawn[f"slope/{k}"] > 0).sum()) - 150) < 40
