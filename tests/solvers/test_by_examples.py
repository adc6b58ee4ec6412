"""Solvers by single examples: exact steps, the invariants of their tables, and where they end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import F64, context, given

from metabench.conformance.harness import snapshot, stored, unchanged
from metabench.contract import autodiff
from metabench.contract.by_examples.solver import Differentiated, Draws, finite_sum
from metabench.contract.method import inner_loop
from metabench.contract.seeds import Seeds
from metabench.core.errors import Diverged, SettingError
from metabench.core.registry import methods, solvers
from metabench.tasks.spectral_risk import SpectralRisk, SpectralRiskProblem

CPU = torch.device("cpu")
NAMES = ("prospect", "lsvrg", "saddle_saga", "srda", "spectral_sgd")


def problem(**settings):
    """40 invented rows of three inputs, 32 of them for training."""
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, dtype=F64, generator=gen)
    y = x[:, 0] - 0.5 * x[:, 1] + 0.3 * torch.randn(40, dtype=F64, generator=gen)
    return SpectralRiskProblem(SpectralRisk(dataset="concrete", **settings), CPU, x, y)


def summed(p, **settings):
    lam, episode = p.init_outer(), p.episode("train", 0)
    theta = p.init_inner(lam, episode)
    return finite_sum(p, lam, theta, list(theta))


class Fixed:
    """Draws that a test says."""

    def __init__(self, chosen):
        self.chosen = chosen

    def examples(self, n):
        return self.chosen

    def order(self, n):
        return np.array(self.chosen)


def exact_gradient(p, w):
    """Of the risk without its penalty, by autograd."""
    train, lam = p.parts["train"], p.init_outer()
    _, g = autodiff.grad(lambda t: p.unpenalised_loss(lam, t, train), {"w": torch.from_numpy(w)})
    return g["w"].numpy()


@pytest.mark.parametrize("name", ["prospect", "saddle_saga", "lsvrg"])
def test_the_mean_direction_is_the_exact_gradient_where_tables_are(name):
    """One step for each possible draw: eta times the mean of v is what w moves by."""
    p, rate = problem(), 0.01
    loss, w = summed(p), np.array([0.3, -0.2, 0.1])
    solver, shrink = solvers.get(name)(), 1 + rate * loss.penalty
    moved = []
    for i in range(loss.n):
        tables = solver.begin(loss, w)
        if name == "saddle_saga":
            tables["q"] = loss.weights(tables["losses"])  # it begins elsewhere
        end = solver.run(loss, w, tables, rate, Fixed([i]))
        moved.append(w - (end + rate * loss.penalty * w if name == "lsvrg" else end * shrink))
    np.testing.assert_allclose(np.mean(moved, 0), rate * exact_gradient(p, w), rtol=0, atol=1e-15)


def test_prospect_step_by_step():
    """Against the algorithm in plain words, and gbar = sum rho_i g_i after every step."""
    p, rate = problem(spectrum="esrm"), 0.05
    loss, w = summed(p), np.zeros(3)
    solver = solvers.get("prospect")()
    tables = solver.begin(loss, w)
    losses, g = loss.all(w)
    q = loss.weights(losses)
    rho, at, mean = q.copy(), w, q @ g
    draws = [3, 7, 3, 0, 31, 7]
    for k, i in enumerate(draws):
        value, slope = loss.examples.one(i, at)
        v = loss.n * q[i] * slope - loss.n * rho[i] * g[i] + mean
        new = (at - rate * v) / (1 + rate / loss.n)
        mean = mean + q[i] * slope - rho[i] * g[i]
        losses[i], g[i], rho[i], at = value, slope, q[i], new
        q = loss.weights(losses)
        np.testing.assert_allclose(mean, rho @ g, rtol=0, atol=1e-15)
        tables = solver.begin(loss, w)
        end = solver.run(loss, w, tables, rate, Fixed(draws[: k + 1]))
        np.testing.assert_allclose(end, at, rtol=0, atol=1e-14)
        for name, known in (("losses", losses), ("gradients", g), ("rho", rho)):
            np.testing.assert_allclose(tables[name], known, rtol=0, atol=1e-14)


def test_a_uniform_spectrum_gives_saga():
    """Level 0 of the superquantile: q = 1/n, and both solvers take SAGA's steps."""
    p, rate = problem(level=0.0), 0.05
    loss, draws = summed(p), [5, 1, 5, 30, 2, 2]
    _, g = loss.all(np.zeros(3))
    w, mean = np.zeros(3), g.mean(0)
    for i in draws:
        slope = loss.examples.one(i, w)[1]
        w = (w - rate * (slope - g[i] + mean)) / (1 + rate / loss.n)
        mean = mean + (slope - g[i]) / loss.n
        g[i] = slope
    for name in ("prospect", "saddle_saga"):
        solver = solvers.get(name)()
        start = np.zeros(3)
        end = solver.run(loss, start, solver.begin(loss, start), rate, Fixed(draws))
        np.testing.assert_allclose(end, w, rtol=0, atol=1e-14)


def test_the_dual_step_of_saddle_saga():
    """q' maximises its proximal problem: no vertex of P(sigma) is better along the slope."""
    p, rate = problem(), 0.2
    loss, w = summed(p), np.zeros(3)
    solver = solvers.get("saddle_saga")()
    tables = solver.begin(loss, w)
    losses, q, size = tables["losses"].copy(), tables["q"].copy(), rate * 0.1 / loss.n
    assert np.all(q[np.argsort(losses)] == loss.sigma)
    w = w + 0.5
    value = loss.examples.one(4, w)[0]
    solver.run(loss, w, tables, rate, Fixed([4]))
    new = tables["q"]
    slope = losses - loss.scale * (new - 1 / loss.n) - (new - q) / size
    slope[4] += loss.n * (value - losses[4])
    assert np.sort(slope) @ loss.sigma - slope @ new <= 1e-9 * np.abs(slope).max()
    assert abs(new.sum() - 1) < 1e-14 and tables["losses"][4] == value


def test_batches():
    """One batch of all examples is a whole gradient; dual averaging moves w by its definition."""
    p, rate = problem(), 0.1
    loss, w = summed(p), np.array([0.3, -0.2, 0.1])
    order = list(range(loss.n))
    sgd = solvers.get("spectral_sgd")(batch=loss.n)
    end = sgd.run(loss, w, sgd.begin(loss, w), rate, Fixed(order))
    whole = exact_gradient(p, w) + w / loss.n
    np.testing.assert_allclose(end, w - rate * whole, rtol=0, atol=1e-15)
    srda = solvers.get("srda")(batch=16)
    tables, zero = srda.begin(loss, np.zeros(3)), np.zeros(3)
    end = srda.run(loss, zero, tables, rate, Fixed(order))
    first = loss.gradient(np.arange(16), zero)
    at = -first / (1 / loss.n + 1 / rate)
    mean = (first + loss.gradient(np.arange(16, 32), at)) / 2
    np.testing.assert_allclose(end, -mean / (1 / loss.n + 1 / (2 * rate)), rtol=0, atol=1e-15)


def test_the_weights_of_a_batch_have_its_own_spectrum_and_the_penalty_of_all():
    p = problem()
    loss = summed(p)
    sigma = p.spectrum(p.init_outer()).sigma(8).numpy()
    np.testing.assert_array_equal(loss.spectrum(8), sigma)
    few = np.linspace(0, 9, 8)
    q = loss.weights(few)
    scale = 32.0  # n nu, not 8 nu
    slope = few - scale * (q - 1 / 8)
    assert np.sort(slope) @ sigma - slope @ q < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_where_they_end(name):
    """Those of reduced variance at the minimum, the others above it: a batch's risk is another."""
    ctx = given(problem(), "spectral_risk", solver=name)
    p, episode = ctx.problem, ctx.problem.episode("train", 0)
    lam = p.init_outer()
    theta, _ = inner_loop(ctx, lam, p.init_inner(lam, episode), episode, steps=60, lr=0.03)
    value = p.metrics(lam, theta, episode)["suboptimality"]
    biased = name in ("srda", "spectral_sgd")
    assert (1e-5 < value < 0.1) if biased else value < 1e-7
    passes = {"prospect": 61, "saddle_saga": 61, "lsvrg": 120}
    assert ctx.meter.counts.inner_gradients == passes.get(name, 60)


@pytest.mark.parametrize("name", ["prospect", "lsvrg"])
def test_gradients_by_differentiation(name):
    """The same iterates, though autograd gives every gradient."""
    p, solver = problem(), solvers.get(name)()
    closed, lam = summed(p), p.init_outer()
    theta = p.init_inner(lam, p.episode("train", 0))
    slow = replace(closed, examples=Differentiated(p, lam, theta, ["w"]))
    ends = []
    for loss in (closed, slow):
        w = np.zeros(3)
        ends.append(solver.run(loss, w, solver.begin(loss, w), 0.05, Fixed([0, 9, 9, 4])))
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-14)


def test_a_mean_and_its_penalties():
    """Ridge regression: no spectrum, a penalty for each weight, gradients by autograd."""
    ctx = context("ridge", "prospect")
    p, episode = ctx.problem, ctx.problem.episode("train", 0)
    lam = p.init_outer()
    start = p.init_inner(lam, episode)
    loss = finite_sum(p, lam, start, ["w"])
    assert isinstance(loss.examples, Differentiated) and loss.sigma is None
    np.testing.assert_array_equal(loss.penalty, lam["log_penalty"].exp().numpy())
    assert np.all(loss.weights(np.arange(5.0)) == 0.2)
    theta, _ = inner_loop(ctx, lam, start, episode, steps=4, lr=0.003)
    far, near = (float((t["w"] - p.solve(lam)).norm()) for t in (start, theta))
    assert near < 0.5 * far


def test_draws_are_a_function_of_their_address():
    seed = Seeds.of(0).batches
    first, again, other = (Draws(seed, "examples", 0, k) for k in (0, 0, 1))
    assert first.examples(9) == again.examples(9) != other.examples(9)
    assert sorted(first.order(9)) == list(range(9))


def test_steps_that_they_do_not_have():
    ctx = given(problem(), "spectral_risk", solver="prospect")
    p, episode = ctx.problem, ctx.problem.episode("train", 0)
    lam = p.init_outer()
    theta = p.init_inner(lam, episode)
    with pytest.raises(SettingError, match="nothing differentiates through its steps"):
        inner_loop(ctx, lam, theta, episode, steps=1, lr=0.1, create_graph=True)
    with pytest.raises(SettingError, match="one step size for all of theta"):
        inner_loop(ctx, lam, theta, episode, steps=1, lr={"w": torch.tensor(0.1)})
    with pytest.raises(SettingError, match="no step from a gradient"):
        ctx.solver.update(theta, theta, {}, 0.1)


@pytest.mark.parametrize("name", ["prospect", "saddle_saga"])
def test_a_loss_that_is_not_finite_is_divergence(name):
    loss, solver = summed(problem()), solvers.get(name)()
    tables = solver.begin(loss, np.zeros(3))
    with np.errstate(over="ignore"), pytest.raises(Diverged, match=f"inf in a pass of {name}"):
        solver.run(loss, np.full(3, 1e200), tables, 0.1, Fixed([0]))


def test_steps_that_are_too_large_are_divergence():
    ctx = given(problem(), "spectral_risk", solver="lsvrg")
    p, episode = ctx.problem, ctx.problem.episode("train", 0)
    lam = p.init_outer()
    with pytest.raises(Diverged, match="theta is not finite after a pass of lsvrg"):
        inner_loop(ctx, lam, p.init_inner(lam, episode), episode, steps=9, lr=1e200)


@pytest.mark.parametrize("name", NAMES)
def test_fixed_keeps_the_tables_and_resumes(name):
    """Stored and loaded after every step, a run ends in the same bits; other solvers, and methods
    that move lam, start anew with every outer step."""
    method, ends = methods.get("fixed")(inner_steps=1, inner_lr=0.02), []
    for cut in (False, True):
        ctx = given(problem(), "spectral_risk", solver=name)
        state = method.init(ctx)
        for _ in range(4):
            state = stored(state) if cut else state
            state, _ = method.step(ctx, state)
            ctx.step += 1
        assert int(state.memory["solver"]["count"]["passes"]) == 4
        ends.append(snapshot(state))
    assert unchanged(ends[0], state)
    first = solvers.get(name).first_passes
    assert ctx.meter.counts.inner_gradients == first + 4 * solvers.get(name).passes
    ctx = given(problem(), "spectral_risk", solver="momentum")
    assert method.step(ctx, method.init(ctx))[0].memory == {}
