"""Solvers against dense ones, costs, memory, engines; diagnostics, and what they end."""

import math

import pytest
import torch
from oracles import F64, SmallNet, context, given, hypergradient
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from metabench.conformance.test_problems import Counting
from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Episode, Problem
from metabench.core.costs import Meter
from metabench.core.errors import Diverged, SettingError
from metabench.core.registry import methods, tasks
from metabench.core.settings import build
from metabench.hypergradients import implicit

IFT, IMAML, OneStep = (methods.get(name) for name in ("ift", "imaml", "one_step"))
INNER = (*GRADIENTS, "lam_in_inner_loss")


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def equal(one, other, tolerance=1e-10):
    assert list(one) == list(other)
    for k in one:
        close(one[k], other[k], tolerance)


def system(n=8, low=0.3, high=3.0, dtype=F64):
    """A symmetric H with known eigenvalues and eigenvectors, and a right-hand side."""
    gen = torch.Generator().manual_seed(n)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=gen, dtype=F64))
    mu = torch.linspace(low, high, n, dtype=F64)
    h = (q * mu) @ q.T
    return ((h + h.T) / 2).to(dtype), mu, q, torch.randn(n, generator=gen, dtype=F64).to(dtype)


class Times:
    """The product with a matrix, counted; it reuses its buffer, as the real one does."""

    def __init__(self, matrix):
        self.matrix, self.calls, self.out = matrix, 0, torch.empty_like(matrix[0])

    def __call__(self, v):
        self.calls += 1
        return torch.mv(self.matrix, v, out=self.out)


# Conjugate gradient.


def textbook(h, v, terms):
    """Every iterate: x_k minimises 1/2 x'Hx - v'x over span{v, Hv, ...}, by dense least squares."""
    out, basis = [torch.zeros_like(v)], [v / v.norm()]
    for _ in range(terms):
        k = torch.stack(basis, 1)
        out.append(k @ torch.linalg.solve(k.T @ h @ k, k.T @ v))
        w = h @ basis[-1]
        for b in basis * 2:
            w = w - (b @ w) * b
        basis.append(w / w.norm())
    return out


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_every_iterate_of_conjugate_gradient(damping):
    h, _, _, v = system()
    h = h + damping * torch.eye(8, dtype=F64)
    for k, expected in enumerate(textbook(h, v, 7)):
        product = Times(h)
        x, diagnostics = implicit.conjugate_gradient(product, v, terms=k)
        assert product.calls == k
        close(x, expected)
        close(diagnostics["residual"], (v - h @ x).norm() / v.norm())
        assert diagnostics["negative_curvature"] == 0


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("terms", [8, 9, 30, 200])
def test_conjugate_gradient_is_the_dense_solve_and_stays_there(terms, damping):
    h, _, _, v = system()
    h = h + damping * torch.eye(8, dtype=F64)
    x, diagnostics = implicit.conjugate_gradient(Times(h), v, terms=terms)
    close(x, torch.linalg.solve(h, v))
    assert diagnostics["residual"] < 1e-12 and diagnostics["negative_curvature"] == 0


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-10])
def test_an_early_stop_gives_the_iterate_that_was_good_enough(tolerance):
    h, _, _, v = system(40, 0.5, 2.0)
    product = Times(h)
    x, diagnostics = implicit.conjugate_gradient(product, v, terms=40, tolerance=tolerance)
    k = product.calls
    assert 0 < k < 40 and k % implicit.CHECK_EVERY == 0
    fixed, _ = implicit.conjugate_gradient(Times(h), v, terms=k)
    assert torch.equal(x, fixed)
    residual = float((h @ x - v).norm() / v.norm())
    assert residual <= tolerance and float(diagnostics["residual"]) == pytest.approx(
        residual, rel=1e-2
    )
    before, _ = implicit.conjugate_gradient(Times(h), v, terms=k - implicit.CHECK_EVERY)
    assert float((h @ before - v).norm() / v.norm()) > tolerance
    close(x, torch.linalg.solve(h, v), 4 * tolerance)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_more_terms_than_directions_do_no_harm(dtype):
    """A singular H, a right-hand side in its range: the residual reaches zero and stays."""
    h, _, q, _ = system(6, 0.0, 2.0)
    v = (h @ q.sum(1)).to(dtype)
    x, diagnostics = implicit.conjugate_gradient(Times(h.to(dtype)), v, terms=100)
    close(h.to(dtype) @ x, v, 1e-10 if dtype == F64 else 1e-3)
    assert diagnostics["negative_curvature"] == 0
    zero, diagnostics = implicit.conjugate_gradient(Times(h.to(dtype)), 0 * v, terms=5)
    assert not zero.any() and not any(w.any() for w in diagnostics.values())


def test_conjugate_gradient_stops_at_negative_curvature_and_says_so():
    h, _, q, _ = system(4, -1.0, 3.0)
    v = q[:, 1:].sum(1)
    x, diagnostics = implicit.conjugate_gradient(Times(h), v, terms=3)
    assert diagnostics["negative_curvature"] == 0  # of its own, v has nothing in that direction
    close(h @ x, v)
    x, diagnostics = implicit.conjugate_gradient(Times(h), v + 0.1 * q[:, 0], terms=5)
    assert diagnostics["negative_curvature"] > 0 and torch.isfinite(x).all()
    kept = [implicit.conjugate_gradient(Times(h), v + 0.1 * q[:, 0], terms=k)[0] for k in range(6)]
    last = next(k for k in range(1, 6) if torch.equal(kept[k], kept[k - 1])) - 1
    assert last >= 1 and all(torch.equal(x, k) for k in kept[last:])
    only, diagnostics = implicit.conjugate_gradient(Times(h), q[:, 0], terms=5)
    assert not only.any()
    close(diagnostics["negative_curvature"], torch.tensor(1.0, dtype=F64))


# The whole matrix.


def test_dense_inverse():
    h, _, _, v = system()
    product = Times(h)
    close(implicit.dense_inverse(product, v).x, torch.linalg.solve(h, v))
    assert product.calls == 8
    h, _, q, _ = system(5, 0.0, 2.0)
    x = implicit.dense_inverse(Times(h), q.sum(1)).x
    close(h @ x, q[:, 1:].sum(1))
    assert abs(float(q[:, 0] @ x)) < 1e-8


def test_dense_inverse_of_too_much(monkeypatch):
    monkeypatch.setattr(implicit, "DENSE_LIMIT", 4)
    with pytest.raises(SettingError, match="theta has 5 numbers, at most 4"):
        implicit.dense_inverse(Times(torch.eye(5)), torch.ones(5))


def test_exact_is_what_conjugate_gradient_ends_at():
    set_ = {"damping": 2.0, "inner_steps": 2, "inner_lr": 0.1}
    ctx = given(Decayed("penalty"), *INNER)
    exact = hypergradient(ctx, "ift", inverse="exact", **set_)
    assert ctx.meter.counts.hvps == 20
    equal(exact, hypergradient(ctx, "ift", inverse="cg", terms=30, **set_))


# The series.


@pytest.mark.parametrize("terms", [0, 1, 5, 40])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_series_against_its_dense_sum(alpha, terms):
    h, _, _, v = system()
    step = torch.eye(8, dtype=F64) - alpha * h
    powers = [torch.linalg.matrix_power(step, j) @ v for j in range(terms + 1)]
    product = Times(h)
    x, diagnostics = implicit.neumann(product, v, alpha=alpha, terms=terms)
    close(x, alpha * torch.stack(powers).sum(0))
    close(diagnostics["growth"], powers[-1].norm() / v.norm())
    assert product.calls == terms


def test_series_converges_at_its_rate():
    """|H^-1 v - p_K| <= max_i |1 - alpha mu_i|^{K+1} |H^-1 v|, reached where the worst leads."""
    h, mu, _, v = system()
    exact, alpha = torch.linalg.solve(h, v), 0.6
    rho = float((1 - alpha * mu).abs().max())
    errors = []
    for terms in range(60):
        error = implicit.neumann(Times(h), v, alpha=alpha, terms=terms).x - exact
        errors.append(float(error.norm()))
        assert errors[-1] <= rho ** (terms + 1) * float(exact.norm()) * (1 + 1e-12)
    assert errors[-1] / errors[-2] == pytest.approx(rho, rel=1e-3)


@pytest.mark.parametrize("i", [0, 3, 7])
def test_series_from_an_eigenvector(i):
    h, mu, q, _ = system()
    for terms in (0, 1, 6, 25):
        x, _ = implicit.neumann(Times(h), q[:, i], alpha=0.4, terms=terms)
        close(x, (1 - (1 - 0.4 * mu[i]) ** (terms + 1)) / mu[i] * q[:, i])


def test_series_stops_where_its_terms_are_small():
    h, _, _, v = system()
    product = Times(h)
    x, diagnostics = implicit.neumann(product, v, alpha=0.5, terms=500, tolerance=1e-6)
    assert product.calls < 500 and product.calls % implicit.CHECK_EVERY == 0
    assert diagnostics["growth"] <= 1e-6
    assert torch.equal(x, implicit.neumann(Times(h), v, alpha=0.5, terms=product.calls).x)
    assert float((h @ x - v).norm() / v.norm()) <= 1e-6


def test_series_notices_that_it_diverges():
    h, _, _, v = system()
    assert implicit.neumann(Times(h), v, alpha=0.9, terms=20).diagnostics["growth"] > 1
    h, _, _, v = system(5, -0.5, 2.0)
    found = implicit.neumann(Times(h), v, alpha=0.5, terms=60).diagnostics["growth"]
    assert found > 1  # one step takes 1.25 of the negative direction, and less of the others
    assert implicit.neumann(Times(h), 0 * v, alpha=0.5, terms=3).diagnostics["growth"] == 0


@pytest.mark.parametrize("solve", [
    lambda product, v: implicit.neumann(product, v, alpha=0.3, terms=9),
    lambda product, v: implicit.conjugate_gradient(product, v, terms=5),
], ids=["neumann", "cg"])  # fmt: skip
def test_solvers_batched_are_solvers_looped(solve):
    gen = torch.Generator().manual_seed(1)
    hs = torch.stack([system(6, 0.2 + i / 10)[0] for i in range(3)])
    vs = torch.randn(3, 6, generator=gen, dtype=F64)
    for each in (vs, vs[0]):  # a right-hand side of each, and one for all
        with autodiff.functional():
            if each.dim() == 2:
                xs, diagnostics = torch.func.vmap(lambda h, v: solve(h.mv, v))(hs, each)
            else:
                xs, diagnostics = torch.func.vmap(lambda h, v=each: solve(h.mv, v))(hs)
        for i in range(3):
            x, alone = solve(Times(hs[i]), each[i] if each.dim() == 2 else each)
            close(xs[i], x)
            equal({k: w[i] for k, w in diagnostics.items()}, alone)


def test_the_right_hand_side_is_left_alone():
    h, _, _, v = system()
    held = v.clone()
    implicit.neumann(Times(h), v, alpha=0.3, terms=5)
    implicit.conjugate_gradient(Times(h), v, terms=5)
    assert torch.equal(v, held)


# A point: products against dense derivatives.


class Decayed(SmallNet):
    """theta a small network; lam one log decay a weight (none for the bias), a pull for all, and a
    shift of the outputs that both losses see. ``hints``: what is told of the penalty and the
    Hessian."""

    def __init__(self, hints="none"):
        super().__init__()
        self.hints = hints
        self.first = SmallNet.init_outer(self)

    def init_outer(self):
        gen = generator_of("decayed")
        first = super().init_outer()
        del first["body.bias"]
        return {
            **{k: torch.randn(v.shape, generator=gen, dtype=F64) - 1 for k, v in first.items()},
            "shift": torch.tensor(0.3, dtype=F64),
        }

    def init_inner(self, lam, episode):
        return dict(self.first)

    def decays(self, lam):
        return {"head.weight": lam["head.weight"].exp(), "body.weight": lam["body.weight"].exp()}

    def rest(self, lam, theta, batch):
        return self.fit(theta, {**batch, "y": batch["y"] - lam["shift"]})

    def inner_loss(self, lam, theta, batch):
        terms = [0.5 * (c * theta[k].square()).sum() for k, c in self.decays(lam).items()]
        return self.rest(lam, theta, batch) + sum(terms)

    def outer_loss(self, lam, theta, batch):
        return self.fit(theta, batch) + 0.1 * lam["shift"] ** 2 * theta["body.bias"].sum()

    def diagonal_penalty(self, lam):
        return self.decays(lam) if self.hints != "none" else None

    def unpenalised_loss(self, lam, theta, batch):
        loss = self.rest if self.hints != "none" else self.inner_loss
        return loss(lam, theta, batch)

    def inner_hessian(self, lam, theta, batch):
        if self.hints != "hessian":
            return None
        _, (back,) = autodiff.pullbacks(
            lambda t: autodiff.grad(lambda p: self.rest(lam, p, batch), t, create_graph=True)[1],
            theta,
        )
        return back


def generator_of(name):
    return torch.Generator().manual_seed(len(name))


def point(ctx, **more):
    problem = ctx.problem
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    lam, ready = implicit.prepared(ctx, lam, episode)
    theta = problem.init_inner(lam, episode)
    return implicit.linearise(ctx, lam, theta, episode, ready, batch=0, **more), lam, theta, episode


def dense(problem, lam, theta, episode):
    """grad_theta F, grad_lam F, H and d2G/dlam dtheta, flat, by torch's own functions."""
    lam = autodiff.detach(lam)
    x, y = autodiff.flatten(lam), autodiff.flatten(theta)

    def inner(p, t):
        return problem.inner_loss(
            autodiff.unflatten(p, lam), autodiff.unflatten(t, theta), episode.batch(0)
        )

    def outer(p, t):
        return problem.outer_loss(
            autodiff.unflatten(p, lam), autodiff.unflatten(t, theta), episode.outer
        )

    direct, v = torch.autograd.functional.jacobian(outer, (x, y))
    (_, mixed), (_, hessian) = torch.autograd.functional.hessian(inner, (x, y))
    return v, direct, hessian, mixed


@pytest.mark.parametrize("hints", ["none", "penalty", "hessian"])
@pytest.mark.parametrize("damping", [0.0, 0.25])
def test_products_of_a_point_are_the_dense_ones(hints, damping):
    ctx = given(Decayed(hints), *INNER)
    at, lam, theta, episode = point(ctx, damping=damping)
    v, direct, hessian, mixed = dense(ctx.problem, lam, theta, episode)
    close(at.v, v)
    close(autodiff.flatten(at.direct), direct)
    close(at.value, ctx.problem.outer_loss(lam, theta, episode.outer).detach())
    for u in torch.eye(len(v), dtype=F64):
        close(at.product(u).clone(), hessian @ u + damping * u)
    for u in torch.eye(len(v), dtype=F64)[::4]:
        close(autodiff.flatten(at.mixed(u)), mixed @ u)
    assert not any(x.requires_grad for x in (at.value, at.v, *at.direct.values()))


class PenaltyOnly(Decayed):
    """lam is decays alone."""

    def init_outer(self):
        lam = super().init_outer()
        del lam["shift"]
        return lam

    def rest(self, lam, theta, batch):
        return self.fit(theta, batch)

    def outer_loss(self, lam, theta, batch):
        return self.fit(theta, batch)


@pytest.mark.parametrize("kind", [Decayed, PenaltyOnly])
@pytest.mark.parametrize("inverse", ["neumann", "cg", "identity"])
def test_hints_change_no_hypergradient(kind, inverse):
    damping = 0.0 if inverse == "identity" else 2.0
    set_ = {"inverse": inverse, "terms": 8, "inner_steps": 3, "damping": damping}
    found = [
        hypergradient(given(kind(h), *INNER), "ift", **set_) for h in ("none", "penalty", "hessian")
    ]
    assert autodiff.norm(found[0]) > 1e-3
    for other in found[1:]:
        equal(other, found[0])


@pytest.mark.parametrize(("kind", "hints", "more"), [
    (Decayed, "none", {}), (Decayed, "penalty", {}),
    (Decayed, "hessian", {"function_evaluations": 1}),
    (PenaltyOnly, "penalty", {}),
    (PenaltyOnly, "hessian", {"function_evaluations": 1, "inner_gradients": 3}),
])  # fmt: skip
@pytest.mark.parametrize(("inverse", "hvps"), [("neumann", 7), ("cg", 7), ("identity", 0)])
def test_costs(kind, hints, more, inverse, hvps):
    for engine in ("loop", "vmap"):
        problem = Counting(kind(hints))
        ctx = given(problem, *INNER, engine=engine)
        damping = 2.0 if hvps else 0.0
        method = IFT(inverse=inverse, terms=7, inner_steps=3, damping=damping)
        lam = problem.init_outer()
        ctx.over_episodes(
            lambda e, m=method, c=ctx, p=lam: m.hypergradient(c, p, None, e),
            [ctx.problem.episode("train", i) for i in range(2)],
            steps=method.inner_batches,
        )
        n = ctx.meter.counts.as_dict()
        # 3 inner steps and the gradient that is differentiated.
        expected = {"inner_gradients": 4, "outer_gradients": 1, "hvps": hvps, "mixed_products": 1,
                    "function_evaluations": 0, "trainings": 0, **more}  # fmt: skip
        assert n == {k: 2 * v for k, v in expected.items()}
        if engine == "loop":
            taken = n["inner_gradients"] + n["function_evaluations"]
            # The task's Hessian evaluates its loss behind the counter's back.
            assert problem.calls == {"inner_loss": taken, "outer_loss": 2}


def test_terms_that_are_not_taken_are_not_counted():
    ctx = context(tasks.get("quadratic")(dim=5))
    hypergradient(ctx, "ift", terms=500, inner_lr=0.3, tolerance=1e-3)
    assert 0 < ctx.meter.counts.hvps < 100
    ctx.meter = Meter()
    hypergradient(ctx, "ift", inverse="cg", terms=500, tolerance=1e-8)
    assert ctx.meter.counts.hvps == 5


# Memory.


class Live(TorchDispatchMode):
    """The most bytes of storage, made inside, that are alive after any operation."""

    def __init__(self):
        super().__init__()
        self.held, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.held = {k: v for k, v in self.held.items() if not v[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return out


def most_bytes(hints, **set_):
    ctx = given(Decayed(hints), *INNER)
    with Live() as live:
        hypergradient(ctx, "ift", damping=2.0, inner_steps=2, **set_)
    return live.most


@pytest.mark.parametrize("hints", ["none", "penalty"])
@pytest.mark.parametrize("inverse", ["neumann", "cg"])
def test_memory_does_not_grow_with_the_number_of_terms(inverse, hints):
    few, many = (most_bytes(hints, inverse=inverse, terms=k) for k in (3, 60))
    assert many == few > 0


class Wide(Problem):
    """G = 1/2 sum (w - 1)^2 + e^lam w^2, F = 1/2 sum w^2: n weights, a decay each, float32."""

    carried = True

    def __init__(self, n):
        self.n = n

    def init_outer(self):
        return {"log_decay": torch.linspace(-2, 0, self.n)}

    def init_inner(self, lam, episode):
        return {"w": torch.linspace(0.5, 1, self.n)}

    def diagonal_penalty(self, lam):
        return {"w": lam["log_decay"].exp()}

    def unpenalised_loss(self, lam, theta, batch):
        return 0.5 * (theta["w"] - 1).square().sum()

    def inner_loss(self, lam, theta, batch):
        penalty = lam["log_decay"].exp() * theta["w"].square()
        return self.unpenalised_loss(lam, theta, batch) + 0.5 * penalty.sum()

    def outer_loss(self, lam, theta, batch):
        return 0.5 * theta["w"].square().sum()

    def episode(self, split, index):
        return Episode({}, {}, index)


@pytest.mark.parametrize("n", [1, 1000, pytest.param(10**7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("inverse", ["neumann", "cg"])
def test_from_one_to_ten_million_hyperparameters_in_flat_memory(inverse, n):
    """-e^lam w q(mu) w with mu = 1 + e^lam and q the series' sum, or 1 / mu after enough terms of
    conjugate gradient; a whole outer step."""
    peaks = []
    for terms in (4, 16):
        method = IFT(inverse=inverse, terms=terms, inner_lr=0.4, inner_steps=2, outer_solver="sgd",
                     outer_lr=1.0)  # fmt: skip
        ctx = given(Wide(n), *INNER)
        state = method.init(ctx)
        with Live() as live:
            new, _ = method.step(ctx, state)
        peaks.append(live.most)
        lam, w = (x.double() for x in (state.lam["log_decay"], new.theta["w"]))
        mu = 1 + lam.exp()
        q = (1 - (1 - 0.4 * mu) ** (terms + 1)) / mu if inverse == "neumann" else 1 / mu
        found = (state.lam["log_decay"] - new.lam["log_decay"]).double()
        # Curvatures lie in [1.1, 2]: four terms of conjugate gradient leave less than 1e-3.
        allowed = 1e-2 if inverse == "cg" and terms == 4 else 1e-4
        torch.testing.assert_close(found, -lam.exp() * w * q * w, rtol=allowed, atol=1e-6)
    assert peaks[0] == peaks[1] <= 24 * 4 * n + 10_000


def test_the_memory_test_sees_what_is_kept():
    kept = []
    with Live() as live:
        for _ in range(10):
            kept.append(torch.zeros(100, dtype=F64) + 1)
    assert live.most >= 8000


# Prepared episodes, batches, threads.


class Body(SmallNet):
    """lam is the body, theta the head; features are computed once an episode."""

    times = 0

    def init_outer(self):
        return {k: v for k, v in super().init_outer().items() if k.startswith("body")}

    def init_inner(self, lam, episode):
        return {"head.weight": torch.full((4,), 0.2, dtype=F64)}

    def features(self, lam, batch):
        return torch.tanh(batch["x"] @ lam["body.weight"].T + lam["body.bias"])

    def inner_loss(self, lam, theta, batch):
        features = batch["features"] if "features" in batch else self.features(lam, batch)
        return (features @ theta["head.weight"] - batch["y"]).square().mean()

    outer_loss = inner_loss

    def prepare(self, lam, episode, only=None):
        self.times += 1
        inner, outer = (
            {"features": self.features(lam, b), "y": b["y"]} for b in (episode.inner, episode.outer)
        )
        return Episode(inner, outer, episode.index)


class Unprepared(Body):
    def prepare(self, lam, episode, only=None):
        return episode


@pytest.mark.parametrize("name, set_", [
    ("ift", {"damping": 0.1}), ("ift", {"inverse": "cg", "damping": 0.1}),
    ("one_step", {}), ("one_step", {"mixed": "differences"}),
])  # fmt: skip
def test_prepared_episodes_give_the_same_hypergradient(name, set_):
    found = [
        hypergradient(given(kind(), *INNER), name, inner_steps=4, inner_lr=0.3, **set_)
        for kind in (Body, Unprepared)
    ]
    equal(*found)


def test_features_are_computed_once():
    ctx = given(Body(), *INNER)
    hypergradient(ctx, "ift", inner_steps=4)
    assert ctx.problem.times == 1


ENGINES = [
    ("ift", {}), ("ift", {"inverse": "cg", "damping": 1.0}), ("ift", {"inverse": "identity"}),
    ("ift", {"inverse": "exact", "damping": 2.0}),
    ("one_step", {"inner_steps": 3}), ("one_step", {"mixed": "differences"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "set_"), ENGINES)
@pytest.mark.parametrize("kind", [
    lambda: Decayed("none"), lambda: Decayed("penalty"), lambda: Decayed("hessian"), Body,
], ids=["plain", "penalty", "hessian", "body"])  # fmt: skip
@pytest.mark.parametrize("solver", ["sgd", "momentum"])
def test_batched_and_threaded_are_looped(kind, name, set_, solver):
    method, out = methods.get(name)(**set_), {}
    for how in ({}, {"engine": "vmap"}, {"workers": 3}):
        ctx = given(kind(), *INNER, solver=solver, **how)
        lam = method.init(ctx).outer
        found = ctx.over_episodes(
            lambda e, c=ctx, p=lam: method.hypergradient(c, p, None, e),
            ctx.training_episodes(),
            steps=method.inner_batches,
        )
        out[str(how)] = found, ctx.meter.counts
    (expected, counts), *others = out.values()
    for found, other in others:
        assert other == counts
        for one, two in zip(found, expected, strict=True):
            # Conjugate gradients enlarge the round-off of sums in another order.
            equal(one.grad, two.grad, 1e-9)
            equal(one.theta, two.theta)
            equal(one.diagnostics, two.diagnostics, 1e-9)
            close(one.value, two.value)


@pytest.mark.parametrize("pull", [0.0, 0.4])
def test_imaml_batched_and_threaded_is_looped(pull):
    offers = (*GRADIENTS, "lam_is_initialisation", *(["lam_in_inner_loss"] if pull else []))
    method, out = IMAML(), []
    for how in ({}, {"engine": "vmap"}, {"workers": 3}):
        ctx = given(SmallNet(pull, batches=True), *offers, **how)
        state, log = method.step(ctx, method.init(ctx))
        out.append((state.lam, ctx.meter.counts, log))
    for lam, counts, log in out[1:]:
        equal(lam, out[0][0])
        assert counts == out[0][1] and log == pytest.approx(out[0][2], rel=1e-9)


def test_the_hessian_is_taken_on_a_batch_of_its_own():
    asked = []

    class Watching(SmallNet):
        def episode(self, split, index):
            episode = super().episode(split, index)

            def inner(t):
                asked.append(t)
                return episode.batch(t)

            return Episode(inner, episode.outer, index)

    for name, count in (("ift", 5), ("imaml", 5), ("one_step", 4)):
        asked.clear()
        method = methods.get(name)(inner_steps=4)
        ctx = given(Watching(0.3, batches=True), *INNER, "lam_is_initialisation")
        method.hypergradient(ctx, method.init(ctx).outer, None, ctx.problem.episode("train", 0))
        assert max(asked) + 1 == count == method.inner_batches


# Diagnostics.


class Saddle(Problem):
    """G = 1/2 w'Dw - lam'w with a D of any sign, F = 1/2 |w|^2, w at where it starts."""

    def __init__(self, *d):
        self.d = torch.tensor(d, dtype=F64)

    def init_outer(self):
        return {"lam": torch.ones_like(self.d)}

    def init_inner(self, lam, episode):
        return {"w": torch.ones_like(self.d)}

    def inner_loss(self, lam, theta, batch):
        w = theta["w"]
        return (0.5 * self.d * w.square() - lam["lam"] * w).sum()

    def outer_loss(self, lam, theta, batch):
        return 0.5 * theta["w"].square().sum()

    def episode(self, split, index):
        return Episode({}, {}, index)


def one_step_of(method, *d):
    ctx = given(Saddle(*d), *INNER, "lam_is_initialisation")
    return method.step(ctx, method.init(ctx))[1], ctx.notes


def test_a_series_that_grows_is_noted_then_ends_the_run():
    set_ = {"inner_steps": 0, "inner_lr": 0.5}
    log, notes = one_step_of(IFT(terms=4, **set_), 1.0, 2.0)
    assert log["growth"] == pytest.approx((0.5**8 / 2) ** 0.5) and not notes
    log, notes = one_step_of(IFT(terms=4, **set_), 1.0, -1.0)
    assert 1 < log["growth"] < 10 and notes == {"series_first_grew_at_outer_step": 0}
    with pytest.raises(Diverged, match=r"series grows: .* outer step 0 .* indefinite, or alpha"):
        one_step_of(IFT(terms=40, **set_), 1.0, -1.0)
    with pytest.raises(Diverged, match="series grows"):
        one_step_of(IFT(terms=40, **set_), 1.0, 5.0)
    log, _ = one_step_of(IFT(terms=40, damping=2.0, **{**set_, "inner_lr": 0.4}), 1.0, -1.0)
    assert log["growth"] < 1
    log, _ = one_step_of(IFT(terms=40, growth_limit=1e9, **set_), 1.0, -1.0)
    assert log["growth"] > 10


def test_conjugate_gradient_on_an_indefinite_hessian():
    set_ = {"inverse": "cg", "inner_steps": 0}
    log, notes = one_step_of(IFT(**set_), 1.0, 2.0)
    assert log["residual"] < 1e-14 and log["negative_curvature"] == 0 and not notes
    with pytest.raises(Diverged, match=r"indefinite at outer step 0.*Damping"):
        one_step_of(IFT(**set_), 1.0, -0.5)
    log, notes = one_step_of(IFT(indefinite="truncate", **set_), 1.0, -0.5)
    assert log["negative_curvature"] > 0
    assert notes == {"first_negative_curvature_at_outer_step": 0}
    log, _ = one_step_of(IFT(damping=1.0, **set_), 1.0, -0.5)
    assert log["negative_curvature"] == 0


def test_imaml_below_minus_mu():
    with pytest.raises(Diverged, match="indefinite"):
        one_step_of(IMAML(mu=1.0, inner_steps=0, indefinite="stop"), 1.0, -2.5)
    _, notes = one_step_of(IMAML(mu=1.0, inner_steps=0), 1.0, -2.5)
    assert notes == {"first_negative_curvature_at_outer_step": 0}
    assert one_step_of(IMAML(mu=1.0, inner_steps=0, indefinite="stop"), 1.0, -0.5)[1] == {}


@pytest.mark.parametrize("set_", [{}, *({"inverse": i} for i in ("cg", "identity", "exact"))])
def test_what_is_no_number_ends_the_run(set_):
    for bad in (math.nan, math.inf):
        with pytest.raises(Diverged, match="outer step 0"):
            one_step_of(IFT(inner_steps=1, **set_), 1.0, bad)


def test_the_worst_episode_is_what_is_judged():
    one = {"growth": torch.tensor(0.5), "residual": torch.tensor(2.0)}
    other = {"growth": torch.tensor(0.25), "residual": torch.tensor(math.nan)}
    from metabench.contract.gradient_method import worst

    found = worst([one, other])
    assert found["growth"] == 0.5 and math.isnan(found["residual"])
    assert worst([{}, {}]) == {}


# Settings.


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(SettingError, match="leave tolerance unset"):
        build(IFT, {"inverse": "identity", "tolerance": 1e-3}, "method ift")
    for inverse in ("cg", "exact"):
        with pytest.raises(SettingError, match=f"{inverse} has no step .* leave alpha unset"):
            build(IFT, {"inverse": inverse, "alpha": 0.1}, "method ift")
    with pytest.raises(SettingError, match="leave damping at 0"):
        build(IFT, {"inverse": "identity", "damping": 0.5}, "method ift")
    with pytest.raises(SettingError, match="needs a term at least"):
        build(IFT, {"inverse": "cg", "terms": 0}, "method ift")
    with pytest.raises(SettingError, match="terms cannot be 0"):
        build(IMAML, {"terms": 0}, "method imaml")
    assert IFT().batched and not IFT(tolerance=1e-3).batched


def test_needs():
    assert "lam_in_inner_loss" in IFT().needs and "lam_is_initialisation" in IMAML().needs
    assert "second_order" in OneStep().needs
    assert "second_order" not in OneStep(mixed="differences").needs


def test_a_penalty_that_is_not_said_to_be_diagonal_is_not_lost():
    """unpenalised_loss without diagonal_penalty: the whole inner loss is differentiated."""
    split, whole = context("ridge"), context("ridge")
    whole.problem.diagonal_penalty = lambda lam: None
    for name, set_ in (("ift", {"inverse": "cg", "terms": 10}), ("bilevel", {}), ("one_step", {})):
        found, expected = (
            hypergradient(ctx, name, inner_steps=5, inner_lr=0.2, **set_)["log_penalty"]
            for ctx in (whole, split)
        )
        assert float(expected.norm()) > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=name)
