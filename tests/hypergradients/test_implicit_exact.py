"""Implicit and one-step hypergradients where they are known in closed form, in float64."""

import json
import os
import subprocess
import sys

import pytest
import torch
from oracles import (
    F64,
    LinearEpisodes,
    SmallNet,
    context,
    differences,
    given,
    hypergradient,
    quadratic_end,
    quadratic_unrolled,
)

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Episode, Problem
from metabench.core.environment import optional_packages
from metabench.core.registry import methods, solvers, tasks

Quadratic, Ridge = tasks.get("quadratic"), tasks.get("ridge")
INITIAL = (*GRADIENTS, "lam_is_initialisation", "episodes")
INNER = (*GRADIENTS, "lam_in_inner_loss")
ETA, STEPS = 0.1, 7


def close(found, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected, dtype=F64).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# The check problem: a = 2, b = 1.5, c = 0.7, eta = 0.1, T = 7.

RHO = 1 - ETA * 2.0
W_T = 1.5 * 0.4 + RHO**STEPS * (-1.0 - 1.5 * 0.4)


def scalar(name="ift", **set_):
    return hypergradient(context("quadratic"), name, inner_steps=STEPS, inner_lr=ETA, **set_)["lam"]


@pytest.mark.parametrize("terms", [0, 1, 4, 30])
@pytest.mark.parametrize("alpha", [None, 0.1, 0.3])
def test_scalar_neumann(alpha, terms):
    a = ETA if alpha is None else alpha
    found = scalar(terms=terms, alpha=alpha)
    close(found, 1.5 * (W_T - 0.7) * (1 - (1 - a * 2.0) ** (terms + 1)))


def test_scalar_identity_with_and_without_the_step():
    close(scalar(inverse="identity"), 2.0 * 1.5 * (W_T - 0.7))
    close(scalar(inverse="identity", alpha=0.3), 0.3 * 2.0 * 1.5 * (W_T - 0.7))
    close(scalar(inverse="identity", alpha=ETA), scalar(terms=0))


@pytest.mark.parametrize("terms", [1, 2, 10])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_scalar_conjugate_gradient(terms, damping):
    found = scalar(inverse="cg", terms=terms, damping=damping)
    close(found, 1.5 * (W_T - 0.7) * 2.0 / (2.0 + damping))


def test_scalar_at_the_minimum_is_the_exact_hypergradient():
    ctx = context("quadratic")
    exact = ctx.problem.exact_hypergradient(ctx.problem.init_outer())
    close(exact, -0.15)
    for set_ in ({"terms": 200}, {"inverse": "cg"}):
        close(hypergradient(ctx, "ift", inner_steps=200, inner_lr=ETA, **set_)["lam"], exact)


@pytest.mark.parametrize("mixed", ["exact", "differences"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_scalar_one_step(steps, mixed):
    """Truncation at K = 1. The mixed derivative is constant here: differences are exact too."""
    w_t = 1.5 * 0.4 + RHO**steps * (-1.0 - 1.5 * 0.4)
    ctx = context("quadratic")
    found = hypergradient(ctx, "one_step", inner_steps=steps, inner_lr=ETA, mixed=mixed)["lam"]
    close(found, 1.5 * (w_t - 0.7) * (1 - RHO))


@pytest.mark.parametrize("damping", [0.0, 1.0])
@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_scalar_imaml(mu, damping):
    """(w* - c) mu / (a + mu) at the proximal minimiser; damping takes mu + damping in the solve."""
    ctx = context(Quadratic(formulation="init"))
    set_ = {"inner_steps": 300, "inner_lr": ETA, "mu": mu, "damping": damping, "terms": 1}
    found = hypergradient(ctx, "imaml", **set_)["lam"]
    w = (2.0 * 1.5 * 0.4 + mu * -1.0) / (2.0 + mu)
    close(found, (w - 0.7) * (mu + damping) / (2.0 + mu + damping), 1e-12)


# The same with vectors.


def power(problem, eta, k):
    eye = torch.eye(len(problem.A), dtype=F64)
    return torch.linalg.matrix_power(eye - eta * problem.A, k)


def vector():
    ctx = context(Quadratic(dim=5))
    lam = ctx.problem.init_outer()["lam"]
    w_t = quadratic_end(ctx.problem, lam, ctx.problem.w0, ETA, STEPS)
    return ctx, ctx.problem, w_t - ctx.problem.c


def vectors(ctx, name="ift", **set_):
    return hypergradient(ctx, name, inner_steps=STEPS, inner_lr=ETA, **set_)["lam"]


@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("terms", [0, 3, 25])
def test_vector_neumann(terms, alpha):
    ctx, problem, v = vector()
    eye, a = torch.eye(5, dtype=F64), alpha or ETA
    expected = problem.B.T @ (eye - power(problem, a, terms + 1)) @ v
    close(vectors(ctx, terms=terms, alpha=alpha), expected)


def test_vector_identity():
    ctx, problem, v = vector()
    close(vectors(ctx, inverse="identity"), problem.B.T @ problem.A @ v)
    close(vectors(ctx, inverse="identity", alpha=0.2), 0.2 * problem.B.T @ problem.A @ v)


@pytest.mark.parametrize("damping", [0.0, 0.6])
def test_vector_conjugate_gradient(damping):
    ctx, problem, v = vector()
    damped = problem.A + damping * torch.eye(5, dtype=F64)
    expected = problem.B.T @ problem.A @ torch.linalg.solve(damped, v)
    close(vectors(ctx, inverse="cg", terms=5, damping=damping), expected)
    series = vectors(ctx, terms=400, alpha=0.3, damping=damping)
    close(series, expected)


@pytest.mark.parametrize("terms", [0, 2, 9])
def test_a_series_of_terms_is_truncation_at_one_more(terms):
    """At a fixed point K + 1 unrolled steps of the same size and K terms are one."""
    ctx, problem, _ = vector()
    lam = problem.init_outer()
    start = {"w": problem.target(lam)}
    set_ = {"inner_lr": ETA, "theta": start}
    series = hypergradient(ctx, "ift", terms=terms, inner_steps=0, **set_)["lam"]
    unrolled = hypergradient(
        ctx, "bilevel", inner_steps=30, truncate=terms + 1, **set_
    )["lam"]  # fmt: skip
    close(series, unrolled)


@pytest.mark.parametrize("mixed", ["exact", "differences"])
def test_vector_one_step(mixed):
    ctx, problem, v = vector()
    found = vectors(ctx, "one_step", mixed=mixed)
    close(found, problem.B.T @ (ETA * problem.A) @ v)
    close(found, quadratic_unrolled(problem, problem.lam, problem.w0, ETA, STEPS, 1))


def test_a_carried_theta_goes_on():
    for name in ("ift", "one_step"):
        ctx = context(Quadratic(dim=3, carried=True))
        method = methods.get(name)(inner_steps=4, inner_lr=ETA, outer_lr=0.05)
        state, w = method.init(ctx), ctx.problem.w0
        for step in range(3):
            ctx.step, lam = step, state.lam["lam"]
            g = method.hypergradient(ctx, state.lam, state.theta, ctx.training_episodes()[0])
            w = quadratic_end(ctx.problem, lam, w, ETA, 4)
            kept = power(ctx.problem, ETA, 21 if name == "ift" else 1)
            eye = torch.eye(3, dtype=F64)
            close(g.grad["lam"], ctx.problem.B.T @ (eye - kept) @ (w - ctx.problem.c))
            state, _ = method.step(ctx, state)
            close(state.theta["w"], w)


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_vector_imaml(dim, damping):
    ctx, mu = context(Quadratic(dim=dim, formulation="init")), 1.5
    problem, eye = ctx.problem, torch.eye(dim, dtype=F64)
    lam = problem.init_outer()["lam"]
    target = problem.target({"lam": lam})
    w = torch.linalg.solve(problem.A + mu * eye, problem.A @ target + mu * lam)
    pull = mu + damping
    expected = pull * torch.linalg.solve(problem.A + pull * eye, w - problem.c)
    set_ = {"inner_steps": 400, "inner_lr": 0.2, "mu": mu, "damping": damping, "terms": dim}
    close(hypergradient(ctx, "imaml", **set_)["lam"], expected)
    if not damping and dim == 1:
        close(expected, (w - problem.c) * mu / (problem.A[0, 0] + mu))


def test_imaml_on_linear_regression_episodes():
    """(I + X'X / mu)^-1 Xq'(Xq phi - yq), phi = (X'X + mu)^-1 (X'y + mu theta)."""
    ctx, mu = given(LinearEpisodes(), *INITIAL), 0.8
    theta = ctx.problem.init_outer()["phi"]
    for index in range(3):
        episode = ctx.problem.episode("train", index)
        x, y, xq, yq = *episode.inner.values(), *episode.outer.values()
        damped = x.T @ x + mu * torch.eye(4, dtype=F64)
        phi = torch.linalg.solve(damped, x.T @ y + mu * theta)
        expected = mu * torch.linalg.solve(damped, xq.T @ (xq @ phi - yq))
        method = methods.get("imaml")(mu=mu, inner_steps=300, inner_lr=0.3, terms=4)
        found = method.hypergradient(ctx, {"phi": theta}, None, episode)
        close(found.theta["phi"], phi)
        close(found.grad["phi"], expected)
        adapted = method.adapt(ctx, method.init(ctx), episode)
        close(adapted["phi"], phi)


@pytest.mark.parametrize("pull", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_imaml_is_the_derivative_of_its_proximal_problem(pull):
    """On a network, against differences of the problem solved anew; lam also in the inner loss."""
    mu = 3.0
    offers = (*INITIAL, "lam_in_inner_loss") if pull else INITIAL
    ctx = given(SmallNet(pull), *offers)
    problem, episode = ctx.problem, ctx.problem.episode("train", 0)

    def solved(lam):
        start = {k: lam[k] for k in problem.init_inner(lam, episode)}

        def g(theta):
            gap = autodiff.axpy(-1.0, start, theta)
            near = 0.5 * mu * autodiff.dot(gap, gap)
            return problem.inner_loss(lam, theta, episode.inner) + near

        return problem.outer_loss(lam, newton(g, start), episode.outer)

    lam = problem.init_outer()
    set_ = {"mu": mu, "inner_steps": 400, "inner_lr": 0.2, "terms": 20}
    found = hypergradient(ctx, "imaml", lam=lam, **set_)
    oracle = differences(solved, lam, h=1e-3)
    for k in lam:
        close(found[k], oracle[k], 1e-8)


def newton(g, start, steps=30):
    """The minimiser of g near ``start``, by dense Newton steps."""
    flat = autodiff.flatten(start)
    f = lambda x: g(autodiff.unflatten(x, start))  # noqa: E731
    for _ in range(steps):
        slope = torch.autograd.functional.jacobian(f, flat)
        step = torch.linalg.solve(torch.autograd.functional.hessian(f, flat), slope)
        flat = flat - step
        if step.norm() < 1e-14:
            break
    return autodiff.unflatten(flat, start)


# Ridge regression with one penalty a weight.


@pytest.mark.parametrize("inverse", ["cg", "neumann"])
def test_ridge_hypergradient(inverse):
    ctx = context("ridge")
    lam = {"log_penalty": torch.linspace(-2, 1, 10, dtype=F64)}
    start = {"w": ctx.problem.solve(lam)}
    set_ = {"inverse": inverse, "terms": 10 if inverse == "cg" else 600, "inner_steps": 0}
    found = hypergradient(ctx, "ift", lam=lam, theta=start, inner_lr=0.25, **set_)["log_penalty"]
    exact = ctx.problem.exact_hypergradient(lam)
    close(found, exact)

    def solved(p):
        w = {"w": ctx.problem.solve(p)}
        return ctx.problem.outer_loss(p, w, ctx.problem.parts["valid"])

    close(exact, differences(solved, lam, 1e-3)["log_penalty"], 1e-9)


def test_ridge_series_converges_at_its_rate():
    ctx = context("ridge")
    problem, lam = ctx.problem, ctx.problem.init_outer()
    start = {"w": problem.solve(lam)}
    x = problem.parts["train"]["x"]
    hessian = x.T @ x + torch.diag(lam["log_penalty"].exp())
    mu = torch.linalg.eigvalsh(hessian)
    rho = float((1 - 0.2 * mu).abs().max())
    xv, yv = problem.parts["valid"].values()
    exact = torch.linalg.solve(hessian, xv.T @ (xv @ start["w"] - yv))
    scale = -lam["log_penalty"].exp() * start["w"]
    for terms in range(0, 30, 3):
        found = hypergradient(
            ctx, "ift", lam=lam, theta=start, inner_steps=0, alpha=0.2, terms=terms
        )["log_penalty"]  # fmt: skip
        error = (found / scale - exact).norm()
        assert error <= rho ** (terms + 1) * exact.norm() * (1 + 1e-10)


# A problem without a closed form: logistic regression with one L2 coefficient a weight.


class Logistic(Problem):
    """Mean cross-entropy and 1/2 sum e^lam w^2 inside; the cross-entropy on other rows, and an L2
    of lam itself, outside."""

    def __init__(self):
        gen = torch.Generator().manual_seed(3)
        x, way = (torch.randn(*s, generator=gen, dtype=F64) for s in ((60, 4), (4, 3)))
        y = (x @ way + torch.randn(60, 3, generator=gen, dtype=F64)).argmax(1)
        self.train, self.valid = ({"x": x[s], "y": y[s]} for s in (slice(30), slice(30, 60)))

    def init_outer(self):
        return {"log_decay": torch.linspace(-3, 0, 12, dtype=F64).reshape(3, 4)}

    def init_inner(self, lam, episode):
        return {"w": torch.zeros(3, 4, dtype=F64), "b": torch.zeros(3, dtype=F64)}

    def fit(self, theta, batch):
        logits = torch.nn.functional.linear(batch["x"], theta["w"], theta["b"])
        return torch.nn.functional.cross_entropy(logits, batch["y"])

    def inner_loss(self, lam, theta, batch):
        # Without a decay of its own the bias is determined up to a constant.
        decay = (lam["log_decay"].exp() * theta["w"].square()).sum() + theta["b"].square().sum()
        return self.fit(theta, batch) + 0.5 * decay

    def outer_loss(self, lam, theta, batch):
        return self.fit(theta, batch) + 0.01 * lam["log_decay"].square().sum()

    def episode(self, split, index):
        return Episode(self.train, self.valid, index)


@pytest.mark.parametrize("inverse", ["cg", "neumann"])
def test_logistic_regression_against_differences_of_the_solved_problem(inverse):
    problem = Logistic()
    lam, start = problem.init_outer(), problem.init_inner({}, None)

    def solution(p):
        return newton(lambda t: problem.inner_loss(p, t, problem.train), start)

    oracle = differences(lambda p: problem.outer_loss(p, solution(p), problem.valid), lam, 1e-3)
    set_ = {"terms": 15} if inverse == "cg" else {"terms": 2000, "alpha": 0.8}
    ctx = given(problem, *INNER)
    found = hypergradient(
        ctx, "ift", theta=solution(lam), inner_steps=0, inverse=inverse, **set_
    )["log_decay"]  # fmt: skip
    close(found, oracle["log_decay"], 1e-9)


# One step on a network: exact against differences of plain training; differences against exact.


@pytest.mark.parametrize("solver", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("steps", [1, 3])
def test_one_step_on_a_network(solver, steps):
    ctx = given(SmallNet(0.6, batches=True), *INNER, solver=solver)
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    theta, memory = dict(lam), ctx.solver.init(lam)
    for t in range(steps - 1):
        g = ctx.inner_grad(lam, theta, episode.batch(t), create_graph=False)
        theta, memory = ctx.solver.update(theta, g, memory, 0.1)

    def lookahead(p):
        g = ctx.inner_grad(p, theta, episode.batch(steps - 1), create_graph=False)
        end, _ = ctx.solver.update(theta, g, memory, 0.1)
        return ctx.problem.outer_loss(p, end, episode.outer)

    oracle = differences(lookahead, lam, 1e-3)
    set_ = {"inner_steps": steps, "inner_lr": 0.1}
    found = hypergradient(ctx, "one_step", lam=lam, **set_)
    by_differences = hypergradient(ctx, "one_step", lam=lam, mixed="differences", **set_)
    for k in lam:
        close(found[k], oracle[k], 1e-7)
        close(by_differences[k], found[k], 1e-7)


class Bent(SmallNet):
    """A mixed derivative that varies with theta."""

    def inner_loss(self, lam, theta, batch):
        bends = torch.stack([(lam[k] * torch.sin(theta[k])).sum() for k in theta])
        return self.fit(theta, batch) + bends.sum()


def test_differences_are_second_order_in_their_step():
    ctx = given(Bent(), *INNER)
    exact = hypergradient(ctx, "one_step", inner_lr=ETA)
    errors = []
    for e in (0.4, 0.2, 0.1):
        found = hypergradient(ctx, "one_step", inner_lr=ETA, mixed="differences", epsilon=e)
        errors.append(float(autodiff.norm(autodiff.axpy(-1.0, exact, found))))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_one_step_takes_any_inner_solver_and_no_second_derivative_by_differences():
    method = methods.get("one_step")(inner_steps=1, mixed="differences")
    ctx = context("quadratic", solvers.get("adam")())
    method.step(ctx, method.init(ctx))
    n = ctx.meter.counts
    assert (n.inner_gradients, n.outer_gradients, n.hvps, n.mixed_products) == (3, 1, 0, 0)
    method = methods.get("one_step")(inner_steps=3)
    ctx = context("quadratic")
    method.step(ctx, method.init(ctx))
    n = ctx.meter.counts
    assert (n.inner_gradients, n.outer_gradients, n.hvps, n.mixed_products) == (3, 1, 0, 1)


# TorchOpt's implicit gradients: another implementation, in its own interpreter where it has one.

TORCHOPT = """
import json, sys, torch, torchopt
given = json.load(sys.stdin)
x, y, xv, yv, lam, w = (torch.tensor(v, dtype=torch.float64) for v in given["arrays"])
solver = {
    "cg": torchopt.linear_solve.solve_cg(maxiter=given["terms"], rtol=0.0, atol=0.0),
    "neumann": torchopt.linear_solve.solve_inv(
        ns=True, maxiter=given["terms"], alpha=given["alpha"]
    ),
}[given["inverse"]]

def optimality(w, lam):
    return torch.func.grad(
        lambda v: 0.5 * ((x @ v - y).square().sum() + (lam.exp() * v.square()).sum())
    )(w)

@torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=solver)
def solve(start, lam):
    return w

lam.requires_grad_()
loss = 0.5 * (xv @ solve(w, lam) - yv).square().sum()
print(json.dumps(torch.autograd.grad(loss, lam)[0].tolist()))
"""


def torchopt_python():
    lack = optional_packages.why_not("torchopt")
    if not lack:
        return sys.executable
    peers = os.environ.get("METABENCH_PEERS")
    if peers:
        found = subprocess.run([peers, "-W", "ignore", "-c", "import torchopt"], check=False)
        if found.returncode == 0:
            return peers
    pytest.skip(
        f"{lack} ({' && '.join(optional_packages.recipe('torchopt'))}), nor "
        "does METABENCH_PEERS name an interpreter that has it"
    )


@pytest.mark.parametrize(("inverse", "terms"), [("cg", 10), ("neumann", 0), ("neumann", 25)])
def test_torchopt_gives_the_same(inverse, terms):
    python = torchopt_python()
    ctx = context("ridge")
    problem = ctx.problem
    lam = {"log_penalty": torch.linspace(-2, 1, 10, dtype=F64)}
    w = problem.solve(lam)
    train, valid = problem.parts["train"], problem.parts["valid"]
    arrays = [*train.values(), *valid.values(), lam["log_penalty"], w]
    given = {"arrays": [a.tolist() for a in arrays], "inverse": inverse, "terms": terms,
             "alpha": 0.2}  # fmt: skip
    done = subprocess.run(
        [python, "-W", "ignore", "-c", TORCHOPT], input=json.dumps(given), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = torch.tensor(json.loads(done.stdout), dtype=F64)
    alpha = {"alpha": 0.2} if inverse == "neumann" else {}
    found = hypergradient(
        ctx, "ift", lam=lam, theta={"w": w}, inner_steps=0, inverse=inverse, terms=terms, **alpha
    )["log_penalty"]  # fmt: skip
    close(found, theirs)
