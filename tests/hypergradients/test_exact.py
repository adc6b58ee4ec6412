"""Every method on problems whose hypergradient is known in closed form, in float64."""

import pytest
import torch
from oracles import (
    F64,
    LinearEpisodes,
    SmallNet,
    after_training,
    context,
    differences,
    given,
    hypergradient,
    quadratic_end,
    quadratic_unrolled,
)

from metabench.contract.problem import GRADIENTS
from metabench.core.registry import methods, tasks

MODES = ("graph", "states", "checkpoints")
UNROLLED = [{"memory": m} for m in MODES] + [{"mode": "forward"}]
INITIAL = (*GRADIENTS, "lam_is_initialisation", "head", "episodes")
Quadratic = tasks.get("quadratic")


def close(found, expected, tolerance=1e-12):
    expected = torch.as_tensor(expected, dtype=F64).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def named(set_):
    return "-".join(str(v) for v in set_.values())


# One check problem for every gradient method: a = 2, b = 1.5, c = 0.7, eta = 0.1, T = 7.

RHO = 1 - 0.1 * 2.0
W_T = 1.5 * 0.4 + RHO**7 * (-1.0 - 1.5 * 0.4)


@pytest.mark.parametrize("set_", UNROLLED, ids=named)
def test_scalar_full_unroll(set_):
    found = hypergradient(context("quadratic"), "bilevel", inner_steps=7, inner_lr=0.1, **set_)
    close(found["lam"], 1.5 * (W_T - 0.7) * (1 - RHO**7))
    assert float(found["lam"]) == pytest.approx(-0.51630608373, abs=5e-12)


@pytest.mark.parametrize("kept", range(1, 8))
@pytest.mark.parametrize("mode", MODES)
def test_scalar_truncated(mode, kept):
    set_ = {"inner_steps": 7, "inner_lr": 0.1, "truncate": kept, "memory": mode}
    found = hypergradient(context("quadratic"), "bilevel", **set_)
    close(found["lam"], 1.5 * (W_T - 0.7) * (1 - RHO**kept))


def test_scalar_unroll_tends_to_the_exact_hypergradient():
    ctx = context("quadratic")
    exact = ctx.problem.exact_hypergradient(ctx.problem.init_outer())
    close(exact, -0.15)
    close(hypergradient(ctx, "bilevel", inner_steps=200, inner_lr=0.1)["lam"], exact)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dim", [1, 5])
def test_maml_and_first_order_on_the_quadratic(dim, mode):
    ctx = context(Quadratic(dim=dim, formulation="init"))
    w0 = ctx.problem.init_outer()["lam"]
    w_t = quadratic_end(ctx.problem, ctx.problem.lam, w0, 0.1, 7)
    decay = torch.linalg.matrix_power(torch.eye(dim, dtype=F64) - 0.1 * ctx.problem.A, 7)
    set_ = {"inner_steps": 7, "inner_lr": 0.1, "memory": mode}
    second = hypergradient(ctx, "maml", **set_)["lam"]
    first = hypergradient(ctx, "maml", order="first", **set_)["lam"]
    close(second, decay @ (w_t - ctx.problem.c))
    close(first, w_t - ctx.problem.c)
    assert float((second - first).norm()) > 0.1 * float(first.norm())


@pytest.mark.parametrize("set_", UNROLLED, ids=named)
def test_vector_full_unroll(set_):
    ctx = context(Quadratic(dim=5))
    lam = ctx.problem.init_outer()["lam"]
    found = hypergradient(ctx, "bilevel", inner_steps=7, inner_lr=0.1, **set_)
    close(found["lam"], quadratic_unrolled(ctx.problem, lam, ctx.problem.w0, 0.1, 7))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kept", [1, 3, 6, 7])
def test_vector_truncated(kept, mode):
    ctx = context(Quadratic(dim=5))
    lam = ctx.problem.init_outer()["lam"]
    set_ = {"inner_steps": 7, "inner_lr": 0.1, "truncate": kept, "memory": mode}
    found = hypergradient(ctx, "bilevel", **set_)
    close(found["lam"], quadratic_unrolled(ctx.problem, lam, ctx.problem.w0, 0.1, 7, kept))


@pytest.mark.parametrize("set_", [*UNROLLED, {"truncate": 4}], ids=named)
def test_carried_theta_is_where_the_next_unroll_starts(set_):
    ctx = context(Quadratic(dim=3, carried=True))
    method = methods.get("bilevel")(inner_steps=6, inner_lr=0.1, outer_lr=0.05, **set_)
    state, w = method.init(ctx), ctx.problem.w0
    for step in range(3):
        lam = state.lam["lam"]
        ctx.step = step
        found = method.hypergradient(ctx, state.lam, state.theta, ctx.problem.episode("train", 0))
        kept = set_.get("truncate")
        close(found.grad["lam"], quadratic_unrolled(ctx.problem, lam, w, 0.1, 6, kept))
        state, _ = method.step(ctx, state)
        w = quadratic_end(ctx.problem, lam, w, 0.1, 6)
        close(state.theta["w"], w)
        assert state.theta is method.adapt(ctx, state, ctx.problem.episode("test", 0))


# Other inner solvers: against differences, and reverse against forward mode.


@pytest.mark.parametrize("solver", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("task", ["quadratic", "ridge", "init", "carried"])
def test_inner_solvers_against_finite_differences(task, solver):
    built = {
        "init": Quadratic(dim=3, formulation="init"),
        "carried": tasks.get("ridge")(carried=True),
    }
    ctx = context(built.get(task, task), solver)
    start = None
    if task == "carried":
        start = {"w": torch.linspace(-1, 1, 10, dtype=F64)}
    lam = ctx.problem.init_outer()
    method = methods.get("bilevel")(inner_steps=6, inner_lr=0.05)
    (name,) = lam
    oracle = differences(after_training(method, ctx, start), lam, h=1e-3)[name]
    found = {
        named(set_): hypergradient(
            ctx, "bilevel", inner_steps=6, inner_lr=0.05, theta=start, **set_
        )[name]
        for set_ in UNROLLED
    }
    for g in found.values():
        close(g, oracle, 1e-8)
        close(g, found["forward"], 1e-10)


# Ridge regression, unrolled.


def test_ridge_unrolled_is_the_derivative_of_its_closed_form():
    ctx = context("ridge")
    train, valid = ctx.problem.parts["train"], ctx.problem.parts["valid"]
    lam = {"log_penalty": torch.linspace(-2, 1, 10, dtype=F64).requires_grad_()}
    hessian = train["x"].T @ train["x"] + torch.diag(lam["log_penalty"].exp())
    best = torch.linalg.solve(hessian, train["x"].T @ train["y"])
    w = best - torch.linalg.matrix_power(torch.eye(10, dtype=F64) - 0.3 * hessian, 9) @ best
    loss = 0.5 * (valid["x"] @ w - valid["y"]).square().sum()
    (expected,) = torch.autograd.grad(loss, [lam["log_penalty"]])
    for set_ in UNROLLED:
        found = hypergradient(ctx, "bilevel", lam=lam, inner_steps=9, inner_lr=0.3, **set_)
        close(found["log_penalty"], expected, 1e-10)


def test_ridge_unrolled_tends_to_the_implicit_hypergradient_geometrically():
    ctx = context(tasks.get("ridge")(features=3))
    lam, eta = ctx.problem.init_outer(), 0.1
    exact = ctx.problem.exact_hypergradient(lam)
    close(exact, differences(lambda p: _loss_at_minimum(ctx.problem, p), lam, 1e-3)["log_penalty"],
          1e-9)  # fmt: skip
    x = ctx.problem.parts["train"]["x"]
    mu = torch.linalg.eigvalsh(x.T @ x + torch.diag(lam["log_penalty"].exp()))
    rho = float((1 - eta * mu).abs().max())

    def error(steps):
        found = hypergradient(ctx, "bilevel", inner_steps=steps, inner_lr=eta)["log_penalty"]
        return float((found - exact).norm())

    # d(I - eta H)^T / dlam brings a factor T: the error is rho^T (p T + q) once the slower modes
    # rule, so it vanishes at the rate rho and no faster.
    errors = {t: error(t) / rho**t for t in (40, 60, 80)}
    slopes = (errors[60] - errors[40], errors[80] - errors[60])
    assert slopes[0] > 0 and slopes[1] == pytest.approx(slopes[0], rel=0.05)
    for t in (60, 80):
        assert error(t + 1) / error(t) == pytest.approx(rho * (t + 1) / t, rel=0.01)


def _loss_at_minimum(problem, lam):
    return problem.outer_loss(lam, {"w": problem.solve(lam)}, problem.parts["valid"])


@pytest.mark.parametrize("set_", UNROLLED, ids=named)
def test_learned_step_size(set_):
    ctx = context(Quadratic(b=0.0, c=0.0, w0=-1.3))
    a, eta, steps = 2.0, 0.1, 5
    found = hypergradient(ctx, "bilevel", inner_steps=steps, inner_lr=eta, learn_rate=True, **set_)
    close(found["learned/inner_lr"], -a * steps * (1 - eta * a) ** (2 * steps - 1) * 1.3**2)


@pytest.mark.parametrize("solver", ["sgd", "momentum", "adam"])
def test_learned_step_size_reverse_is_forward(solver):
    ctx = context("ridge", solver)
    set_ = {"inner_steps": 8, "inner_lr": 0.05, "learn_rate": True}
    forward = hypergradient(ctx, "bilevel", mode="forward", **set_)
    assert set(forward) == {"log_penalty", "learned/inner_lr"}
    for mode in MODES:
        reverse = hypergradient(ctx, "bilevel", memory=mode, **set_)
        for name in forward:
            close(reverse[name], forward[name], 1e-10)


def test_a_learned_step_size_stays_at_or_above_zero():
    ctx = context(Quadratic(b=0.0, c=1.0, w0=1.0))  # every inner step makes the outer loss worse
    method = methods.get("bilevel")(inner_lr=0.01, learn_rate=True, outer_lr=0.1)
    state = method.init(ctx)
    state, _ = method.step(ctx, state)
    assert float(state.learned["inner_lr"]) == 0.0
    assert method.adapt(ctx, state, ctx.problem.episode("test", 0))["w"] == 1.0


# MAML on linear regression.


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_maml_on_linear_regression_episodes(mode, steps):
    ctx = given(LinearEpisodes(), *INITIAL)
    theta, episode = ctx.problem.init_outer()["phi"], ctx.problem.episode("train", 0)
    phi, decay = ctx.problem.adapted(theta, episode, 0.2, steps)
    query = episode.outer["x"].T @ (episode.outer["x"] @ phi - episode.outer["y"])
    set_ = {"inner_steps": steps, "inner_lr": 0.2, "memory": mode}
    second = hypergradient(ctx, "maml", **set_)["phi"]
    first = hypergradient(ctx, "maml", order="first", **set_)["phi"]
    close(second, decay.T @ query)
    close(first, query)
    assert torch.equal(first, second) == (steps == 0)


def test_a_step_of_maml_averages_its_episodes():
    ctx = given(LinearEpisodes(per_step=4), *INITIAL)
    method = methods.get("maml")(inner_lr=0.2, outer_lr=0.5, outer_solver="sgd")
    ctx.step = 2
    state = method.init(ctx)
    theta, total = state.lam["phi"], torch.zeros(4, dtype=F64)
    for i in range(8, 12):
        episode = ctx.problem.episode("train", i)
        phi, decay = ctx.problem.adapted(theta, episode, 0.2, 1)
        total += decay @ episode.outer["x"].T @ (episode.outer["x"] @ phi - episode.outer["y"])
    after, log = method.step(ctx, state)
    close(after.lam["phi"], theta - 0.5 * total / 4)
    close(torch.tensor(log["hypergradient_norm"], dtype=F64), (total / 4).norm())


@pytest.mark.parametrize("mode", MODES)
def test_meta_sgd_derivative_in_the_step_sizes(mode):
    ctx = given(LinearEpisodes(), *INITIAL)
    theta, episode = ctx.problem.init_outer()["phi"], ctx.problem.episode("train", 0)
    x, y, xq, yq = *episode.inner.values(), *episode.outer.values()
    g = x.T @ (x @ theta - y)
    g_query = xq.T @ (xq @ (theta - 0.2 * g) - yq)
    for order in ("second", "first"):
        set_ = {"inner_steps": 1, "inner_lr": 0.2, "meta_sgd": True, "order": order, "memory": mode}
        found = hypergradient(ctx, "maml", **set_)
        close(found["learned/rate.phi"], -g * g_query)
        through = g_query - 0.2 * x.T @ (x @ g_query) if order == "second" else g_query
        close(found["phi"], through)


def test_reptile_with_one_step_is_the_scaled_gradient():
    ctx = given(LinearEpisodes(), *INITIAL)
    theta, episode = ctx.problem.init_outer()["phi"], ctx.problem.episode("train", 0)
    x, y = episode.inner["x"], episode.inner["y"]
    found = hypergradient(ctx, "reptile", inner_steps=1, inner_lr=0.2)["phi"]
    close(found, 0.2 * x.T @ (x @ theta - y))


def test_reptile_moves_towards_the_mean_of_where_training_ends():
    ctx = given(LinearEpisodes(per_step=3), *INITIAL)
    method = methods.get("reptile")(inner_steps=6, inner_lr=0.2, outer_lr=0.25, outer_decay="none")
    state = method.init(ctx)
    theta = state.lam["phi"]
    ends = [
        ctx.problem.adapted(theta, ctx.problem.episode("train", i), 0.2, 6)[0] for i in range(3)
    ]
    after, _ = method.step(ctx, state)
    close(after.lam["phi"], theta - 0.25 * (theta - torch.stack(ends).mean(0)))


def test_reptile_answers_in_the_names_of_lam():
    ctx = context(Quadratic(dim=2, formulation="init"))
    w0 = ctx.problem.init_outer()["lam"]
    end = quadratic_end(ctx.problem, ctx.problem.lam, w0, 0.1, 5)
    close(hypergradient(ctx, "reptile", inner_lr=0.1)["lam"], w0 - end)


class FrozenBody(SmallNet):
    """The head alone is theta and lam; the body is a constant."""

    def init_outer(self):
        return {"head.weight": super().init_outer()["head.weight"]}

    def init_inner(self, lam, episode):
        return {"head.weight": lam["head.weight"]}

    def fit(self, theta, batch):
        return super().fit({**SmallNet.init_outer(self), **theta}, batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ["second", "first"])
def test_anil_with_a_frozen_body_is_maml_on_the_head(order, mode):
    set_ = {"inner_steps": 4, "inner_lr": 0.1, "order": order, "memory": mode}
    anil = hypergradient(given(SmallNet(), *INITIAL), "maml", anil=True, **set_)
    head = hypergradient(given(FrozenBody(), *INITIAL), "maml", **set_)
    close(anil["head.weight"], head["head.weight"])
    maml = hypergradient(given(SmallNet(), *INITIAL), "maml", **set_)
    assert not torch.allclose(maml["head.weight"], head["head.weight"])


# A network: no closed form, so differences of plain training.

VARIANTS = {
    "maml": {},
    "anil": {"anil": True},
    "meta-sgd": {"meta_sgd": True},
    "meta-sgd anil": {"meta_sgd": True, "anil": True},
}


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("pull", [0.0, 0.7], ids=["", "lam also in the inner loss"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_network_against_finite_differences(variant, pull, solver):
    ctx = given(SmallNet(pull, batches=True), *INITIAL, "lam_in_inner_loss", solver=solver)
    method = methods.get("maml")(inner_steps=4, inner_lr=0.1, **VARIANTS[variant])
    lam = method.init(ctx).outer
    oracle = differences(after_training(method, ctx), lam, h=1e-4)
    for mode in MODES:
        found = hypergradient(
            ctx, "maml", inner_steps=4, inner_lr=0.1, memory=mode, **VARIANTS[variant]
        )
        assert list(found) == list(lam)
        for name in lam:
            close(found[name], oracle[name], 1e-7)


def test_truncated_on_a_network_is_the_gradient_from_a_constant_later_start():
    ctx = given(SmallNet(pull=0.5, batches=True), *INITIAL, "lam_in_inner_loss", solver="momentum")
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("train", 0)
    for kept in (1, 3):
        found = [
            hypergradient(ctx, "bilevel", inner_steps=5, inner_lr=0.1, truncate=kept, memory=m)
            for m in MODES
        ]
        leaf = {k: v.clone().requires_grad_() for k, v in lam.items()}
        theta, memory = dict(lam), ctx.solver.init(lam)
        for t in range(5):
            at, live = (leaf, True) if t >= 5 - kept else (lam, False)
            theta = {k: v if v.requires_grad else v.clone().requires_grad_()
                     for k, v in theta.items()}  # fmt: skip
            loss = ctx.problem.inner_loss(at, theta, episode.batch(t))
            g = torch.autograd.grad(loss, list(theta.values()), create_graph=live)
            theta, memory = ctx.solver.update(theta, dict(zip(theta, g, strict=True)), memory, 0.1)
            if not live:
                theta = {k: v.detach() for k, v in theta.items()}
        loss = ctx.problem.outer_loss(leaf, theta, episode.outer)
        expected = torch.autograd.grad(loss, list(leaf.values()))
        for g in found:
            for one, other in zip(g.values(), expected, strict=True):
                close(one, other)
