"""SGLD's estimators: exact on given noise, right on average, and what they cost."""

import math
import weakref

import pytest
import torch
from oracles import F64, context, given, hypergradient

from metabench.api.describe import settings_of
from metabench.conformance.kit import method_checks
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.core import settings
from metabench.core.capabilities import why_not
from metabench.core.cell import make_cell
from metabench.core.costs import Counts
from metabench.core.errors import NotApplicable, SettingError
from metabench.core.registry import methods, solvers, tasks
from metabench.run.runner import run_cell

SGLD = methods.get("sgld")
Langevin = solvers.get("langevin")
Quadratic = tasks.get("quadratic")
OFFERS = (*GRADIENTS, "lam_in_inner_loss", "small_lam")


def close(found, expected, tolerance=1e-12):
    expected = torch.as_tensor(expected, dtype=F64).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def kept_of(steps, burn_in, thin):
    """Numbers of steps done (from 1) whose samples count."""
    return [t for t in range(1, steps + 1) if t > int(burn_in * steps) and (steps - t) % thin == 0]


def chain(ctx, eta, steps, episode, w):
    """Every state of the quadratic's chain, by its matrices."""
    problem, lam = ctx.problem, ctx.problem.init_outer()["lam"]
    size = math.sqrt(2 * eta * ctx.solver.sampled_temperature)
    states = []
    for t in range(steps):
        xi = ctx.noise(episode, t, {"w": w})["w"]
        w = w - eta * problem.A @ (w - problem.B @ lam) + size * xi
        states.append(w)
    return states


# Given the noise, everything is deterministic.


@pytest.mark.parametrize(("burn_in", "thin"), [(0.0, 1), (0.5, 1), (0.3, 3), (0.0, 7)])
@pytest.mark.parametrize("dim", [1, 4])
def test_forward_on_the_quadratic(dim, burn_in, thin):
    """Mean over kept t of B' (I - (I - eta A)^t) (w_t - c)."""
    ctx, eta, steps = context(Quadratic(dim=dim), Langevin(temperature=0.3)), 0.1, 7
    episode = ctx.problem.episode("train", 0)
    states = chain(ctx, eta, steps, episode, ctx.problem.w0)
    eye = torch.eye(dim, dtype=F64)
    expected = 0.0
    kept = kept_of(steps, burn_in, thin)
    for t in kept:
        decay = torch.linalg.matrix_power(eye - eta * ctx.problem.A, t)
        gap = states[t - 1] - ctx.problem.c
        expected = expected + ctx.problem.B.T @ (eye - decay) @ gap / len(kept)
    set_ = {"burn_in": burn_in, "thin": thin, "inner_steps": steps, "inner_lr": eta}
    close(hypergradient(ctx, "sgld", estimator="forward", **set_)["lam"], expected, 1e-10)


@pytest.mark.parametrize("task", ["quadratic", "ridge"])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_forward_keeping_the_last_sample_is_reverse_mode_along_the_same_path(task, noise):
    ctx = context(task, Langevin(temperature=0.05, noise=noise))
    set_ = {"inner_steps": 9, "inner_lr": 0.2}
    found = hypergradient(ctx, "sgld", estimator="forward", thin=9, **set_)
    reverse = hypergradient(ctx, "bilevel", memory="graph", **set_)
    for k, v in reverse.items():
        close(found[k], v)


@pytest.mark.parametrize("task", ["quadratic", "ridge"])
def test_without_noise_it_collapses_to_unrolling(task):
    """Also with the solver sgd, which is noted."""
    set_ = {"inner_steps": 9, "inner_lr": 0.2}
    plain = context(task)
    expected = hypergradient(plain, "bilevel", mode="forward", **set_)
    for ctx in (plain, context(task, Langevin(noise=0.0)), context(task, Langevin(temperature=0))):
        found = hypergradient(ctx, "sgld", estimator="forward", thin=9, **set_)
        for k, v in expected.items():
            close(found[k], v)
        SGLD().init(ctx)
        assert ctx.notes["langevin_noise"].startswith("none: inner solver")


class Linear(Problem):
    """G = a/2 |w - B lam|^2, F = v' w + lam' u: what first_order is exact for."""

    a = 2.0

    def __init__(self) -> None:
        gen = torch.Generator().manual_seed(0)
        self.B = torch.randn(3, 2, generator=gen, dtype=F64)
        self.v, self.u = (torch.randn(n, generator=gen, dtype=F64) for n in (3, 2))

    def init_outer(self) -> Params:
        return {"lam": torch.tensor([0.4, -0.2], dtype=F64)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        return {"w": torch.zeros(3, dtype=F64)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> torch.Tensor:
        return 0.5 * self.a * (theta["w"] - self.B @ lam["lam"]).square().sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> torch.Tensor:
        return (self.v * theta["w"]).sum() + (self.u * lam["lam"]).sum()

    def episode(self, split: str, index: int) -> Episode:
        return Episode({}, {}, index)


@pytest.mark.parametrize("thin", [1, 3, 5])
@pytest.mark.parametrize("chains", [1, 4])
def test_first_order_is_exact_for_a_linear_outer_loss(thin, chains):
    """With kappa = 1 - lr a; blocks of ``thin`` steps with one product each change nothing."""
    ctx = given(Linear(), *OFFERS, solver=Langevin(temperature=0.1))
    set_ = {"inner_steps": 11, "inner_lr": 0.1, "burn_in": 0.3, "thin": thin, "chains": chains}
    exact = hypergradient(ctx, "sgld", estimator="forward", **set_)["lam"]
    close(hypergradient(ctx, "sgld", kappa=1 - 0.1 * 2.0, **set_)["lam"], exact, 1e-10)
    kept = kept_of(11, 0.3, thin)
    reach = sum(1 - 0.8**t for t in kept) / len(kept)
    close(exact, ctx.problem.u + reach * ctx.problem.B.T @ ctx.problem.v, 1e-10)


def test_first_order_by_its_recurrence():
    """h <- kappa h - lr grad_lam <grad_theta G, s> on the scalar quadratic, by hand."""
    ctx, eta, kappa, steps = context("quadratic", Langevin(temperature=0.3)), 0.1, 0.7, 6
    states = chain(ctx, eta, steps, ctx.problem.episode("train", 0), ctx.problem.w0)
    h, kept = 0.0, []
    for t, w in enumerate(states, 1):
        h = kappa * h + eta * 2.0 * 1.5 * (float(w) - 0.7)
        if t > 3:
            kept.append(h)
    set_ = {"inner_steps": steps, "inner_lr": eta, "kappa": kappa}
    close(hypergradient(ctx, "sgld", **set_)["lam"], sum(kept) / 3, 1e-10)


def test_covariance_by_its_formula():
    """One chain: unbiased covariance of F with grad_lam G over the kept states before each step."""
    ctx, eta, steps = context("quadratic", Langevin(temperature=0.3, noise=0.5)), 0.1, 8
    w0 = ctx.problem.w0
    states = [w0, *chain(ctx, eta, steps, ctx.problem.episode("train", 0), w0)][4:8]
    w = torch.cat(states)
    f, slope = 0.5 * (w - 0.7).square(), -2.0 * 1.5 * (w - 1.5 * 0.4)
    cov = ((f - f.mean()) * (slope - slope.mean())).sum() / 3
    found = hypergradient(ctx, "sgld", estimator="covariance", inner_steps=steps, inner_lr=eta)
    close(found["lam"], -cov / (0.3 * 0.25), 1e-10)


@pytest.mark.parametrize("estimator", ["forward", "first_order"])
def test_several_chains_are_the_mean_over_single_ones(estimator):
    """Each chain with its own part of the noise."""
    ctx = context(Quadratic(dim=3), Langevin(temperature=0.3))
    set_ = {"estimator": estimator, "inner_steps": 5, "kappa": 0.8}
    together = hypergradient(ctx, "sgld", chains=4, **set_)["lam"]
    draw, alone = ctx.noise, []
    like = {"w": torch.zeros(4, 3, dtype=F64)}
    for c in range(4):
        ctx.noise = lambda e, t, _, c=c: {"w": draw(e, t, like)["w"][c]}
        alone.append(hypergradient(ctx, "sgld", **set_)["lam"])
    assert not torch.allclose(alone[0], alone[1])
    close(together, torch.stack(alone).mean(0))


# On average: laws in closed form, with chains enough to see a 1 % error.


def test_the_expected_hypergradient_of_a_gaussian_inner_problem():
    """b (b lam - c) at stationarity: the variance does not depend on lam."""
    n, temperature, eta = 60_000, 0.01, 0.2
    ctx = context("quadratic", Langevin(temperature=temperature))
    set_ = {"inner_steps": 40, "thin": 40, "inner_lr": eta, "chains": n}
    found = float(hypergradient(ctx, "sgld", estimator="forward", **set_)["lam"])
    deviation = 1.5 * math.sqrt(temperature / (2 * (1 - eta)) / n)
    assert found == pytest.approx(-0.15, abs=3 * deviation) and 3 * deviation < 0.01 * 0.15


class Precision(Problem):
    """G = e^lam theta^2 / 2, F = theta^2 / 2: theta* = 0 whatever lam is."""

    def init_outer(self) -> Params:
        return {"lam": torch.tensor(0.2, dtype=F64)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        return {"theta": torch.zeros((), dtype=F64)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> torch.Tensor:
        return 0.5 * lam["lam"].exp() * theta["theta"].square()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> torch.Tensor:
        return 0.5 * theta["theta"].square()

    def episode(self, split: str, index: int) -> Episode:
        return Episode({}, {}, index)


EPS = 0.3
A = math.exp(0.2)
S = 1 / (A * (1 - EPS**2 * A / 4))


def precision_estimate(estimator, **set_):
    ctx = given(Precision(), *OFFERS, solver=Langevin(temperature=1.0))
    set_ = {"inner_lr": EPS**2 / 2, **set_}
    return float(hypergradient(ctx, "sgld", estimator=estimator, **set_)["lam"])


def test_precision_as_hyperparameter_by_forward():
    """d S(lam) / 2 d lam = -0.409038, S = 0.841867; point estimates see nothing."""
    assert pytest.approx(0.841867, abs=5e-7) == S
    exact = -0.5 * S * (1 - EPS**2 * A / 2) / (1 - EPS**2 * A / 4)
    assert exact == pytest.approx(-0.409038, abs=5e-7)
    # 100 steps: what the start is forgotten by is rho^200 < 2e-5. Samples 30 steps apart are
    # nearly independent; one has a deviation of some 0.72.
    found = precision_estimate("forward", chains=150_000, inner_steps=160, burn_in=0.6, thin=30)
    assert found == pytest.approx(exact, rel=0.01)


def test_precision_as_hyperparameter_by_covariance():
    """-Cov(theta^2 / 2, e^lam theta^2 / 2) = -e^lam S^2 / 2, with S the chain's own variance; that
    is -e^-lam / 2 = -0.409365 in the limit of small steps, as the forward estimate is."""
    set_ = {"chains": 300_000, "inner_steps": 160, "burn_in": 0.6, "thin": 20}
    found = precision_estimate("covariance", **set_)
    assert found == pytest.approx(-A * S**2 / 2, rel=0.01)
    assert pytest.approx(-math.exp(-0.2) / 2, rel=0.06) == found


def test_point_estimates_see_no_variance():
    ctx = given(Precision(), *OFFERS, "episodes")
    method = methods.get("bilevel")()
    state = method.init(ctx)
    new, log = method.step(ctx, state)
    assert log["hypergradient_norm"] == 0 and torch.equal(new.lam["lam"], state.lam["lam"])


# Two minima.


def two_minima(seed=0, solver="sgd", **set_):
    ctx = context(tasks.get("two_minima")(**set_), solver)
    ctx.seeds = type(ctx.seeds).of(seed)
    ctx.problem.seeds = ctx.seeds
    return ctx


def test_the_expected_loss_is_smooth_and_a_point_estimate_jumps():
    problem = two_minima().problem
    grid = torch.linspace(-1.2, 1.2, 241, dtype=F64)
    values = torch.stack([problem.expected_loss({"tilt": x}) for x in grid])
    assert float(values.diff().abs().max()) < 0.03
    assert float(values.diff().diff().abs().max()) < 1e-3

    def descended(tilt, theta):
        for _ in range(400):
            theta = theta - 0.05 * (4 * theta * (theta**2 - 1) - tilt)
        return 0.5 * (theta - 0.9) ** 2

    for tilt in (-0.5, 0.0, 0.5):
        assert descended(tilt, -0.5) - descended(tilt, 0.5) > 1.4  # a good and a poor minimum


def test_covariance_estimates_the_derivative_of_the_expected_loss():
    """Across the wells, which pathwise estimators see only through chains that cross. Chains start
    from the very distribution; small steps leave it as it is."""
    ctx, n = two_minima(solver=Langevin(temperature=0.4)), 200_000
    lam = {"tilt": torch.tensor(0.3, dtype=F64)}
    grid = torch.linspace(-3, 3, 30_001, dtype=F64)
    below = torch.softmax(-ctx.problem.energy(lam["tilt"], grid) / 0.4, 0).cumsum(0)
    gen = torch.Generator().manual_seed(0)
    at = torch.searchsorted(below, torch.rand(n, generator=gen, dtype=F64))
    set_ = {"estimator": "covariance", "chains": n, "inner_lr": 0.002, "inner_steps": 21}
    start = {"theta": grid[at.clamp(max=30_000)]}
    found = hypergradient(ctx, "sgld", lam=lam, theta=start, burn_in=0.0, thin=20, **set_)["tilt"]
    exact = ctx.problem.expected_hypergradient(lam)
    assert float(found) == pytest.approx(float(exact), rel=0.01)


def found_at_the_end(name, seed, solver, outer=70, **set_):
    ctx = two_minima(seed, solver)
    method = methods.get(name)(inner_lr=0.05, outer_lr=0.03, **set_)
    state = method.init(ctx)
    for ctx.step in range(outer):
        state, _ = method.step(ctx, state)
    return float(ctx.problem.expected_loss(state.lam))


def spread_of(name, solver, **set_):
    """Over starts in either well (seed 2 right, 3 left) and two inner budgets."""
    ends = [
        found_at_the_end(name, seed, solver, inner_steps=steps, **set_)
        for seed in (2, 3)
        for steps in (5, 15)
    ]
    return max(ends) - min(ends), max(ends)


@pytest.mark.slow
def test_less_sensitive_to_start_and_budget_than_point_estimates():
    langevin = Langevin(temperature=0.4)
    point, worst_point = spread_of("bilevel", "sgd")
    assert point > 1.0 and worst_point > 1.0
    for set_ in ({"kappa": 0.6, "chains": 8},
                 {"estimator": "covariance", "chains": 8, "burn_in": 0.0}):  # fmt: skip
        spread, worst = spread_of("sgld", langevin, **set_)
        assert spread < 0.2 * point and worst < 0.3


@pytest.mark.skipif("ift" not in methods.names(), reason="method ift is not registered")
def test_less_sensitive_than_implicit_differentiation():
    point, worst = spread_of("ift", "sgd")
    assert point > 1.0 and worst > 1.0


# What it costs, and what it holds.


@pytest.mark.parametrize(("set_", "expected"), [
    ({}, Counts(6, 6, 0, 6)),
    ({"thin": 3}, Counts(6, 2, 0, 2)),
    ({"chains": 5}, Counts(30, 30, 0, 30)),
    ({"estimator": "forward"}, Counts(6, 3, 24, 24)),
    ({"estimator": "forward", "chains": 2}, Counts(12, 6, 48, 48)),
    ({"estimator": "covariance"}, Counts(6, 3)),
])  # fmt: skip
def test_counts(set_, expected):
    ctx = context(tasks.get("ridge")(features=4), Langevin())
    hypergradient(ctx, "sgld", inner_steps=6, **set_)
    assert ctx.meter.counts == expected


class Remembering(Linear):
    """Keeps watch over a tensor that the graph of each inner loss needs."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> torch.Tensor:
        gap = theta["w"] - self.B @ lam["lam"]
        self.alive.add(gap)
        self.most = max(self.most, len(self.alive))
        return gap.square().sum()


@pytest.mark.parametrize("estimator", ["forward", "first_order", "covariance"])
def test_memory_does_not_grow_with_the_steps(estimator):
    """Nothing of a step is held when the one after the next begins."""
    problem = Remembering()
    ctx = given(problem, *OFFERS, solver=Langevin())
    hypergradient(ctx, "sgld", estimator=estimator, inner_steps=30)
    assert 1 <= problem.most <= 2
    kept = Remembering()
    hypergradient(given(kept, *OFFERS), "bilevel", inner_steps=30, memory="graph")
    assert kept.most == 30


# Settings and state.


def test_settings_that_cannot_be():
    build = settings.build
    with pytest.raises(SettingError, match="covariance needs two samples"):
        build(SGLD, {"estimator": "covariance", "thin": 20}, "method sgld")
    build(SGLD, {"estimator": "covariance", "thin": 20, "chains": 2}, "method sgld")


def test_solvers_that_an_estimator_is_not_true_for_are_refused_before_anything_runs():
    task, covariance = Quadratic(), SGLD(estimator="covariance")
    for name in ("momentum", "adam"):
        reason = why_not(task, SGLD(), solvers.get(name)())
        assert f"solver {name} keeps a memory: use langevin" in reason
    for cold in (solvers.get("sgd")(), Langevin(temperature=0.0), Langevin(noise=0.0)):
        assert "divides by the temperature" in why_not(task, covariance, cold)
        assert why_not(task, SGLD(), cold) is None
    assert why_not(task, covariance, Langevin()) is None
    with pytest.raises(NotApplicable, match="keeps a memory"):
        run_cell(make_cell("quadratic", "sgld", solver="adam", set={"budget": {"outer_steps": 1}}))


def test_needs_by_estimator():
    assert SGLD().needs == GRADIENTS | {"lam_in_inner_loss", "inner_loss"}
    assert SGLD(estimator="forward").needs == SGLD().needs | {"small_lam"}
    assert "second_order" not in SGLD(estimator="covariance").needs
    assert "not found" in SGLD.reconstruction


def test_carried_chains_go_on_each_from_its_own_end():
    ctx = context(Quadratic(dim=3, carried=True), Langevin(temperature=0.5))
    method = SGLD(chains=4, inner_steps=2)
    state = method.init(ctx)
    assert state.memory["chains"]["w"].shape == (4, 3)
    for ctx.step in range(2):
        state, _ = method.step(ctx, state)
        assert torch.equal(state.theta["w"], state.memory["chains"]["w"][0])
    assert len({tuple(row.tolist()) for row in state.memory["chains"]["w"]}) == 4


@pytest.mark.parametrize(
    "estimator", [pytest.param("forward", marks=pytest.mark.slow), "first_order", "covariance"]
)
def test_several_chains_keep_the_contract(estimator):
    for _, check in method_checks(SGLD(estimator=estimator, chains=3, inner_steps=4, thin=2)):
        check()


def test_a_cell_has_the_method_s_own_solver_and_its_record_says_what_is_reconstructed():
    budget = {"outer_steps": 2, "eval_every": 2, "test_episodes": 1, "valid_episodes": 1}
    cell = make_cell("two_minima", "sgld", set={"budget": budget})
    assert cell.solver == "langevin" and cell.solver_settings["noise"] == 1.0
    assert make_cell("two_minima", "bilevel", set={"budget": budget}).solver == "sgd"
    assert make_cell("two_minima", "sgld", solver="sgd", set={"budget": budget}).solver == "sgd"
    record = run_cell(cell)
    assert record.status == "done", record.reason
    assert record.notes["reconstruction"] == SGLD.reconstruction
    assert record.metrics["test"]["expected_loss"].mean > 0


def test_show_says_that_the_covariance_estimator_is_biased():
    (estimator,) = (s for s in settings_of(SGLD) if s.name == "estimator")
    assert "bias of O(inner_lr)" in estimator.doc and "-0.4328" in estimator.doc
