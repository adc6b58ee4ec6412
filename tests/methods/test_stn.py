"""Self-tuning networks against what is known of them in closed form, in float64."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import F64, context, given
from torch.nn import functional as F

from metabench.contract.problem import Episode, Hyper, Problem
from metabench.core.costs import Counts
from metabench.core.errors import Diverged
from metabench.core.registry import methods, tasks
from metabench.hypergradients.best_response import Coordinates, Moment, part
from metabench.hypergradients.self_tuning import respond
from metabench.hypergradients.unrolled import load_forward_mode

STN, DeltaSTN = methods.get("stn"), methods.get("delta_stn")
Quadratic, Shrinkage = tasks.get("quadratic"), tasks.get("shrinkage")
SCALES = (0.05, 0.5, 1.0)
RAW = {"squash": False, "tune_scale": False}


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=F64).reshape(found.shape),
        rtol=tolerance, atol=tolerance,
    )  # fmt: skip


def moment(method, ctx, u=None):
    """What a step starts from, at u."""
    state = method.init(ctx)
    u = state.memory["u"] if u is None else torch.as_tensor(u, dtype=F64).reshape(-1)
    scale = method.deviations({**state.memory, "u": u})
    at = Moment(ctx, Coordinates(ctx.problem, squash=method.squash), u, scale, episode(ctx))
    return at, state.memory["response"]


def episode(ctx):
    return ctx.problem.episode("train", 0)


def normal(n, degree=24):
    """Nodes [k, n] and weights [k] of Gauss-Hermite quadrature under N(0, I)."""
    x, w = np.polynomial.hermite_e.hermegauss(degree)
    nodes = list(itertools.product(x, repeat=n))
    weights = [np.prod(each) for each in itertools.product(w / np.sqrt(2 * np.pi), repeat=n)]
    return torch.tensor(nodes, dtype=F64), torch.tensor(weights, dtype=F64)


def fitted(loss, phi, names):
    """phi at the minimum of ``loss`` over these names, on which it depends quadratically."""
    sizes = [phi[k].numel() for k in names]

    def placed(flat):
        parts = flat.split(sizes)
        return phi | {k: v.view(phi[k].shape) for k, v in zip(names, parts, strict=True)}

    start = torch.cat([phi[k].reshape(-1) for k in names])
    slope = torch.autograd.functional.jacobian(lambda x: loss(placed(x)), start)
    bend = torch.autograd.functional.hessian(lambda x: loss(placed(x)), start)
    return placed(start - torch.linalg.solve(bend, slope))


def fitted_response(method, at, phi, degree=24):
    """Value and gates where the method's expected training loss is least; the slopes stay one."""
    nodes, weights = normal(len(at.u), degree)

    def loss(p):
        batch = at.episode.batch(0)
        each = [method.loss(at, p, at.scale * e, batch) for e in nodes]
        return (weights * torch.stack(each)).sum()

    if isinstance(method, STN):
        return fitted(loss, phi, ["value/w", "gate/w"])
    phi = fitted(
        lambda p: at.ctx.problem.inner_loss(
            at.coordinates.lam(at.u), part(p, "value/"), at.episode.batch(0)
        ),
        phi,
        ["value/w"],
    )
    return fitted(loss, phi, ["gate/w"])


# The exact affine best response: the hypergradient is H* for every scale.


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("cls", [STN, DeltaSTN])
def test_the_fitted_response_of_a_quadratic_is_exact(cls, dim, scale):
    method, ctx = cls(scale=scale, **RAW), context(Quadratic(dim=dim))
    ctx.problem.hypers = ()  # quadrature reaches beyond the bounds
    at, phi = moment(method, ctx)
    phi = fitted_response(method, at, phi, degree=4)
    lam = at.coordinates.lam(at.u)
    close(phi["gate/w"], ctx.problem.B)
    close(respond(phi, at.u - method.centre(at.u))["w"], ctx.problem.B @ at.u)
    _, g = method.tune(at, phi, {"u": at.u})
    close(g["u"], ctx.problem.exact_hypergradient(lam))
    if dim == 1:
        assert float(g["u"]) == pytest.approx(-0.15, abs=1e-12)


@pytest.mark.parametrize("cls", [STN, DeltaSTN])
@pytest.mark.parametrize("carried", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_finds_the_exact_response_by_itself(cls, carried):
    method = cls(scale=0.5, inner_steps=300, inner_lr=0.3, warmup=1, **RAW)
    ctx = context(Quadratic(carried=carried))
    state, log = method.step(ctx, method.init(ctx))
    assert log == {} and float(state.lam["lam"]) == 0.4
    theta = method.adapt(ctx, state, episode(ctx))
    close(theta["w"], 0.6)
    assert (state.theta is not None) == carried
    at, _ = moment(method, ctx)
    loss, g = method.tune(at, state.memory["response"], {"u": at.u})
    close(g["u"], -0.15)
    close(loss, 0.5 * 0.1**2)


@pytest.mark.parametrize("cls", [STN, DeltaSTN])
def test_gradients_under_perturbation_are_those_of_the_expected_loss_less_the_entropy(cls):
    method = cls(squash=False, scale=0.5, entropy_weight=0.1, samples=7)
    ctx = context(Quadratic(dim=2))
    ctx.problem.hypers = ()
    at, phi = moment(method, ctx)
    phi = fitted_response(method, at, phi, degree=4)
    moved = {k: method.init(ctx).memory[k] for k in ("u", "scale")}
    loss, g = method.tune(at, phi, moved)
    eps = torch.stack(at.draws("outer", at.episode.outer, 7))
    b, c, chain = ctx.problem.B, ctx.problem.c, torch.sigmoid(moved["scale"])
    gaps = (at.u + 0.5 * eps) @ b.T - c
    close(loss, 0.5 * gaps.square().sum(1).mean())
    close(g["u"], (gaps @ b).mean(0))
    close(g["scale"], ((gaps @ b * eps).mean(0) - 0.1 / 0.5) * chain)


# Another best response: an affine one fitted to it is biased, by how much is known.

U = 0.3
CARD = {0.05: (0.42560, -0.24426), 0.5: (0.42942, -0.22556), 1.0: (0.43161, -0.17622)}
"""Scale: value and slope of the affine response fitted under N(0.3, scale^2)."""
EXACT = 1 / (1 + np.exp(U))


def least_squares(scale):
    """The same by weighted least squares: weights q = 1 + e^u, target w*(u) = 1 / q."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    q = 1 + np.exp(U + scale * x)
    rows = np.stack([np.ones_like(x), scale * x], 1) * np.sqrt(w * q)[:, None]
    return np.linalg.lstsq(rows, np.sqrt(w * q) / q, rcond=None)[0]


def centred_slope(scale):
    """The slope of least squares with the value held at the minimiser, by the same weights."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    eps, q = scale * x, 1 + np.exp(U + scale * x)
    return (w * q * eps * (1 / q - EXACT)).sum() / (w * q * eps**2).sum()


@pytest.mark.parametrize("scale", SCALES)
def test_stn_is_biased_as_the_affine_fit_is(scale):
    method, ctx = STN(scale=scale, **RAW), context(Shrinkage())
    ctx.problem.hypers = ()
    at, phi = moment(method, ctx, U)
    phi = fitted_response(method, at, phi, degree=60)
    value, slope = respond(phi, at.u)["w"], phi["gate/w"] * phi["slope/w"]
    expected = least_squares(scale)
    close(value, expected[0])
    close(slope, expected[1])
    assert [round(float(x), 5) for x in (value, slope)] == list(CARD[scale])
    assert (round(EXACT, 5), round(-EXACT * (1 - EXACT), 5)) == (0.42556, -0.24446)


@pytest.mark.parametrize("scale", SCALES)
def test_delta_stn_has_the_exact_value_and_a_biased_slope(scale):
    method, ctx = DeltaSTN(scale=scale, **RAW), context(Shrinkage())
    ctx.problem.hypers = ()
    at, phi = moment(method, ctx, U)
    phi = fitted_response(method, at, phi, degree=60)
    close(respond(phi, torch.zeros(1, dtype=F64))["w"], EXACT)
    slope = centred_slope(scale)
    close(phi["gate/w"] * phi["slope/w"], slope)
    assert abs(slope + EXACT * (1 - EXACT)) > 1e-4


@pytest.mark.parametrize("cls", [STN, pytest.param(DeltaSTN, marks=pytest.mark.slow)])
def test_training_under_noise_goes_where_the_quadrature_says(cls):
    method = cls(scale=1.0, inner_steps=400, inner_lr=0.05, samples=24, warmup=1, **RAW)
    ctx = context(Shrinkage(first_log_penalty=U))
    ctx.problem.hypers = ()
    state, _ = method.step(ctx, method.init(ctx))
    phi = state.memory["response"]
    value = method.adapt(ctx, state, episode(ctx))["w"]
    wanted = CARD[1.0] if cls is STN else (EXACT, centred_slope(1.0))
    assert float(value) == pytest.approx(wanted[0], abs=0.01 if cls is STN else 1e-10)
    slope = float(phi["gate/w"] * phi["slope/w"])
    exact = -EXACT * (1 - EXACT)
    assert slope == pytest.approx(wanted[1], abs=0.02) and abs(wanted[1] - exact) > 0.05


# The paper's theorem: a linear network of two layers with a penalty on its Jacobian.


class TwoLayers(Problem):
    """f(x) = s' Q x; G = 1/2 |f(X) - y|^2 + 1/2 e^lam |Q' s|^2."""

    hypers = (Hyper("log_penalty", (1,)),)

    def __init__(self):
        gen = torch.Generator().manual_seed(0)
        self.x = torch.randn(9, 4, generator=gen, dtype=F64)
        self.y = torch.randn(9, generator=gen, dtype=F64)
        self.c = torch.randn(4, generator=gen, dtype=F64)

    def init_outer(self):
        return {"log_penalty": torch.tensor([0.4], dtype=F64)}

    def init_inner(self, lam, episode):
        return {"Q": torch.zeros(4, 4, dtype=F64), "s": torch.zeros(4, dtype=F64)}

    def inner_loss(self, lam, theta, batch):
        w = product(theta)
        penalty = lam["log_penalty"].exp() * w.square()
        return 0.5 * ((self.x @ w - self.y).square().sum() + penalty.sum())

    def outer_loss(self, lam, theta, batch):
        return 0.5 * (product(theta) - self.c).square().sum()

    def episode(self, split, index):
        return Episode({}, {}, index)


def product(theta):
    return theta["Q"].T @ theta["s"]


def test_rows_gated_by_a_sigmoid_are_an_exact_best_response_of_two_linear_layers():
    problem = TwoLayers()
    ctx = given(problem, "outer_gradient", "best_response", "small_lam")
    method = STN(**RAW)
    at, phi = moment(method, ctx)
    left, d, right = torch.linalg.svd(problem.x, full_matrices=False)
    gate = torch.sigmoid(2 * d.log() - at.u)
    bend = -gate * (1 - gate)
    phi |= {
        "value/Q": torch.diag(gate - bend * at.u) @ right,
        "slope/Q": right,
        "gate/Q": bend[:, None],
        "value/s": left.T @ problem.y / d,
        "gate/s": torch.zeros(4, 1, dtype=F64),
    }
    theta = respond(phi, at.u)
    penalty = at.u.exp()
    hessian = problem.x.T @ problem.x + penalty * torch.eye(4, dtype=F64)
    w = torch.linalg.solve(hessian, problem.x.T @ problem.y)
    close(product(theta), w)
    load_forward_mode()
    one = torch.ones(1, dtype=F64)
    _, slope = torch.func.jvp(lambda u: product(respond(phi, u)), (at.u,), (one,))
    close(slope, -penalty * torch.linalg.solve(hessian, w))
    _, g = method.tune(at, phi, {"u": at.u})
    close(g["u"], (slope @ (w - problem.c)).reshape(1))


# A lam for every example.


class Dropped(Problem):
    """A tanh network with dropout on its input, one rate for every pixel."""

    hypers = (Hyper("rate", (3,), 0.0, 0.9),)
    carried = True

    def init_outer(self):
        return {"rate": torch.tensor([0.1, 0.3, 0.5], dtype=F64)}

    def init_inner(self, lam, episode):
        gen = torch.Generator().manual_seed(0)
        shapes = {"a": (4, 3), "b": (4,), "c": (2, 4)}
        return {k: torch.randn(*s, generator=gen, dtype=F64) for k, s in shapes.items()}

    def predict(self, lam, theta, batch):
        x = batch["x"] * (batch["numbers"] >= lam["rate"]) / (1 - lam["rate"])
        return F.linear(torch.tanh(F.linear(x, theta["a"], theta["b"])), theta["c"])

    def loss_of_prediction(self, lam, theta, prediction, batch):
        return (prediction - batch["y"]).square().mean()

    def inner_loss(self, lam, theta, batch):
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def outer_loss(self, lam, theta, batch):
        clean = {**batch, "numbers": torch.ones_like(batch["numbers"])}
        return self.inner_loss({"rate": torch.zeros(3, dtype=F64)}, theta, clean)

    def episode(self, split, index):
        gen = torch.Generator().manual_seed(index)
        x, y = (torch.randn(6, k, generator=gen, dtype=F64) for k in (3, 2))
        batch = {"x": x, "y": y, "numbers": torch.rand(6, 3, generator=gen, dtype=F64)}
        return Episode(batch, batch, index)


NEEDS = ("outer_gradient", "best_response", "small_lam", "prediction")


def one_example(batch, i):
    return {k: v[i : i + 1] for k, v in batch.items()}


def with_gates(phi):
    gen = torch.Generator().manual_seed(1)
    return {
        k: torch.randn(v.shape, generator=gen, dtype=F64) if k.startswith("gate/") else v
        for k, v in phi.items()
    }


@pytest.mark.parametrize("cls", [STN, DeltaSTN])
def test_a_loss_with_a_lam_an_example_is_the_mean_of_losses_with_one_lam_each(cls):
    method, ctx = cls(), given(Dropped(), *NEEDS, "per_example_lam")
    at, phi = moment(method, ctx)
    phi, batch = with_gates(phi), at.episode.batch(0)
    (eps,) = at.draws("inner", batch, 1)
    assert eps.shape == (6, 3)
    whole = method.loss(at, phi, eps, batch)
    each = [method.loss(at, phi, e, one_example(batch, i)) for i, e in enumerate(eps)]
    close(whole, torch.stack(each).mean())


def test_linearised_training_is_the_first_order_in_the_response():
    method, ctx = DeltaSTN(), given(Dropped(), *NEEDS)
    at, phi = moment(method, ctx)
    phi, batch = with_gates(phi), at.episode.batch(0)
    eps = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
    lam = at.coordinates.lam(at.u + eps)

    def predicted(step):
        return ctx.problem.predict(lam, respond(phi, step * eps), batch)

    h = 1e-3
    near = [predicted(s * h) for s in (-2, -1, 1, 2)]
    change = (near[0] - 8 * near[1] + 8 * near[2] - near[3]) / (12 * h)
    expected = (predicted(0.0) + change - batch["y"]).square().mean()
    close(method.loss(at, phi, eps, batch), expected, 1e-9)
    assert abs(float(ctx.problem.inner_loss(lam, respond(phi, eps), batch) - expected)) > 1e-3


def test_the_value_of_delta_stn_is_trained_as_a_plain_network_is():
    method = DeltaSTN(inner_steps=3, warmup=1)
    ctx = given(Dropped(), *NEEDS, "per_example_lam")
    state = method.init(ctx)
    theta = dict(state.theta)
    for _ in range(3):
        g = ctx.inner_grad(state.lam, theta, episode(ctx).batch(0), create_graph=False)
        theta = {k: theta[k] - 0.1 * g[k] for k in theta}
    after, _ = method.step(ctx, state)
    for k, v in theta.items():
        close(after.theta[k], v)


# The schedule, its costs, its state.


def test_counts_of_a_step():
    for cls, samples, inner in ((STN, 1, 2), (STN, 3, 6), (DeltaSTN, 1, 4), (DeltaSTN, 3, 8)):
        ctx = context("quadratic")
        method = cls(inner_steps=2, samples=samples)
        method.step(ctx, method.init(ctx))
        products = 2 * samples if cls is DeltaSTN else 0  # with the predictions' Jacobian
        assert ctx.meter.counts == Counts(
            inner_gradients=inner, outer_gradients=samples, hvps=products
        )
    ctx = given(Dropped(), *NEEDS, "per_example_lam")
    STN(samples=3).step(ctx, STN(samples=3).init(ctx))
    assert ctx.meter.counts == Counts(inner_gradients=2, outer_gradients=1)


def test_warming_up_leaves_lam_and_the_scale():
    ctx, method = context("ridge"), STN(warmup=2)
    state = first = method.init(ctx)
    moved, warming = [], []
    for _ in range(4):
        state, log = method.step(ctx, state)
        ctx.step += 1
        same = torch.equal(state.memory["scale"], first.memory["scale"])
        moved.append((bool(log), not same, not torch.equal(state.memory["u"], first.memory["u"])))
        warming.append("warming_up" in ctx.notes)
    assert moved == [(False,) * 3] * 2 + [(True,) * 3] * 2
    assert warming == [True, True, False, False]  # a record says where lam never moved


def test_the_scale_grows_by_the_entropy_and_shrinks_by_the_loss():
    ctx = context("quadratic")
    for weight, grows in ((10.0, True), (0.0, False)):
        method = STN(entropy_weight=weight, scale=1.0, squash=False, samples=50)
        at, phi = moment(method, ctx)
        phi["gate/w"] = ctx.problem.B
        _, g = method.tune(at, phi, {k: method.init(ctx).memory[k] for k in ("u", "scale")})
        assert (float(g["scale"]) < 0) == grows


def test_lam_is_kept_within_its_bounds_without_squashing():
    ctx = context(Shrinkage(first_log_penalty=-5.99, target=0.999))
    method = STN(squash=False, outer_lr=0.5, warmup=0)
    state = method.init(ctx)
    for _ in range(6):
        state, _ = method.step(ctx, state)
        ctx.step += 1
        assert float(state.lam["log_penalty"]) >= -6.0
    close(state.memory["u"], state.lam["log_penalty"])


def test_a_response_that_never_answers_is_no_hypergradient():
    ctx, method = context("quadratic"), STN()
    state = method.init(ctx)
    phi = state.memory["response"]
    silent = {k: v if k.startswith("value/") else torch.zeros_like(v) for k, v in phi.items()}
    state = replace(state, memory={**state.memory, "response": silent})
    with pytest.raises(Diverged, match="exactly zero"):
        method.step(ctx, state)


def test_a_response_at_the_optimum_has_not_diverged():
    ctx = context(Quadratic(b=1.0, c=0.5, lam=0.5, w0=0.5, carried=True))
    method = DeltaSTN(scale=0.3, **RAW)
    before = ctx.meter.counts.outer_gradients
    state, log = method.step(ctx, method.init(ctx))
    assert log["hypergradient_norm"] == 0.0 and float(state.lam["lam"]) == 0.5
    assert ctx.meter.counts.outer_gradients == before + 1, "looking is not counted"


@pytest.mark.parametrize("cls", [STN, DeltaSTN])
def test_the_best_penalty_of_one_weight_is_found_online(cls):
    ctx = context(Shrinkage(target=0.3, carried=True))
    method = cls(scale=0.3, inner_steps=3, outer_lr=0.1, samples=2, **RAW)
    state = method.init(ctx)
    for _ in range(120):
        state, _ = method.step(ctx, state)
        ctx.step += 1
    found = ctx.problem.metrics(state.lam, state.theta, episode(ctx))
    assert found["lam_error"] < 0.05 and found["exact_loss"] < 1e-4
