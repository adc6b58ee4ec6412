"""MAML++'s options of maml: weights of the losses, what is learned for each inner step, epochs."""

from dataclasses import replace

import pytest
import torch
from oracles import F64, LinearEpisodes, SmallNet, context, differences, given, hypergradient

from metabench.contract.method import State, split
from metabench.contract.problem import GRADIENTS
from metabench.core import settings
from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

MAML = methods.get("maml")
INITIAL = (*GRADIENTS, "lam_is_initialisation", "episodes")
BOTH = {"layer_step_rates": True, "multi_step_epochs": 10, "epoch_steps": 3}


@pytest.mark.parametrize(
    ("epoch", "early", "last"),
    [(0, 0.2, 0.2), (5, 0.1, 0.6), (9, 0.02, 0.92), (10, 0.0, 1.0), (40, 0.0, 1.0)],
)
def test_the_weights_of_the_losses(epoch, early, last):
    method = MAML(inner_steps=5, multi_step_epochs=10, epoch_steps=500)
    for step in (500 * epoch, 500 * epoch + 499):
        assert method.loss_weights(step) == pytest.approx([early] * 4 + [last], abs=1e-15)


def test_equal_step_sizes_and_the_last_loss_alone_are_maml():
    ctx = given(SmallNet(), *INITIAL)
    plain = hypergradient(ctx, "maml", inner_steps=3, inner_lr=0.1)
    found = hypergradient(ctx, "maml", inner_steps=3, inner_lr=0.1, layer_step_rates=True)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-13, atol=1e-14)


def test_rates_and_losses_on_linear_regression_by_hand():
    """One tensor, three steps with step sizes a_t: phi_{t+1} = phi_t - a_t g_t, A = X'X."""
    ctx = given(LinearEpisodes(), *INITIAL)
    ctx.step = 15  # epoch 5 of 10
    method = MAML(inner_steps=3, inner_lr=0.2, **BOTH)
    lam, episode = method.init(ctx).lam, ctx.problem.episode("train", 0)
    rates = torch.tensor([0.1, 0.3, 0.2], dtype=F64)
    outer = {**lam, "learned/rate.phi": rates}
    x, y, xq, yq = *episode.inner.values(), *episode.outer.values()
    a, eye = x.T @ x, torch.eye(4, dtype=F64)
    phis, gs = [lam["phi"]], []
    for rate in rates:
        gs.append(x.T @ (x @ phis[-1] - y))
        phis.append(phis[-1] - rate * gs[-1])
    v = [1 / 6, 1 / 6, 2 / 3]
    value, bar, slopes = torch.zeros((), dtype=F64), torch.zeros(4, dtype=F64), []
    for t in (2, 1, 0):
        gap = xq @ phis[t + 1] - yq
        value = value + v[t] * 0.5 * gap.square().sum()
        bar = bar + v[t] * xq.T @ gap
        slopes.append(-gs[t] @ bar)
        bar = (eye - rates[t] * a) @ bar
    found = method.hypergradient(ctx, outer, None, episode)
    assert float(found.value) == pytest.approx(float(value), abs=1e-12)
    torch.testing.assert_close(found.theta["phi"], phis[-1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.grad["phi"], bar, rtol=1e-11, atol=1e-12)
    expected = torch.stack(slopes[::-1])
    torch.testing.assert_close(found.grad["learned/rate.phi"], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("anil", [False, True])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_network_against_differences(solver, anil):
    ctx = given(SmallNet(), *INITIAL, solver=solver)
    ctx.step = 3
    method = MAML(inner_steps=3, inner_lr=0.1, anil=anil, **BOTH)
    episode = ctx.problem.episode("train", 0)
    outer = method.init(ctx).outer
    outer["learned/rate.head.weight"] = torch.tensor([0.1, 0.05, 0.2], dtype=F64)
    weights = method.loss_weights(3)

    def f(outer):
        lam, learned = split(outer)
        total = 0.0
        for t, weight in enumerate(weights):
            plain = MAML(inner_steps=3, test_steps=t + 1, anil=anil, **BOTH)
            theta = plain.adapt(ctx, State(lam, learned=learned), episode)
            total += weight * float(ctx.problem.outer_loss(lam, theta, episode.outer))
        return total

    found = method.hypergradient(ctx, outer, None, episode).grad
    for name, value in differences(f, outer, h=1e-4).items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-8)


def test_first_order_has_no_products_and_still_slopes_of_step_sizes():
    ctx = given(SmallNet(), *INITIAL)
    found = hypergradient(ctx, "maml", inner_steps=3, order="first", **BOTH)
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.outer_gradients, counts.hvps) == (3, 3, 0)
    assert all(bool(found[f"learned/rate.{k}"].all()) for k in ("head.weight", "body.weight"))
    second = given(SmallNet(), *INITIAL)
    hypergradient(second, "maml", inner_steps=3, **BOTH)
    assert second.meter.counts.hvps == 3


def test_later_steps_at_evaluation_have_the_last_step_size():
    ctx = given(LinearEpisodes(), *INITIAL)
    method = MAML(inner_steps=2, test_steps=4, layer_step_rates=True)
    lam, episode = ctx.problem.init_outer(), ctx.problem.episode("test", 0)
    rates = torch.tensor([0.1, 0.3], dtype=F64)
    found = method.adapt(ctx, State(lam, learned={"rate.phi": rates}), episode)["phi"]
    x, y = episode.inner.values()
    phi = lam["phi"]
    for rate in (0.1, 0.3, 0.3, 0.3):
        phi = phi - rate * x.T @ (x @ phi - y)
    torch.testing.assert_close(found, phi, rtol=1e-13, atol=1e-13)


def test_step_sizes_are_learned_and_saved_with_the_state():
    ctx = given(SmallNet(), *INITIAL)
    method = MAML(inner_steps=2, inner_lr=0.1, layer_step_rates=True)
    first = method.init(ctx)
    assert first.learned["rate.body.weight"].tolist() == [0.1, 0.1]
    state, _ = method.step(ctx, first)
    assert all(bool((state.learned[k] != v).all()) for k, v in first.learned.items())


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"meta_sgd": True, "layer_step_rates": True}, "not both"),
        ({"inner_steps": 0, "multi_step_epochs": 2}, "needs an inner step at least"),
        ({"memory": "states", "layer_step_rates": True}, "keeps the whole graph"),
        ({"memory": "checkpoints", "step_norms": True}, "not there for step_norms"),
        ({"inner_steps": 0, "step_norms": True}, "step_norms needs an inner step at least"),
        ({"anil": True, "step_norms": True}, "step_norms changes the body"),
        ({"order": "first", "first_order_epochs": 1}, "come before others"),
    ],
)
def test_what_does_not_go_together_is_refused(own, said):
    with pytest.raises(SettingError, match=said):
        settings.build(MAML, own, "method maml")


# A scale and a shift of batch norm for each inner step.


class NormedNet(SmallNet):
    """With batch norm before the tanh; its scale and shift are in theta."""

    batch_norms = ("norm.weight", "norm.bias")

    def init_outer(self):
        lam = super().init_outer()
        near_one = torch.tensor([1.2, 0.7, 0.9, 1.1], dtype=F64)
        return {**lam, "norm.weight": near_one, "norm.bias": near_one - 0.8}

    def init_inner(self, lam, episode):
        return dict(lam)

    def fit(self, theta, batch):
        x = batch["x"] @ theta["body.weight"].T
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        hidden = torch.tanh(x * theta["norm.weight"] + theta["norm.bias"])
        return (hidden @ theta["head.weight"] - batch["y"]).square().mean()


NORMED = (*INITIAL, "batch_norms")
NORMS = NormedNet.batch_norms


class Still(MAML):
    """MAML that leaves the batch norms alone, and has them for all steps."""

    def only(self, ctx):
        return tuple(k for k in ctx.problem.init_outer() if k not in NORMS)


def steps_of(outer, n, k):
    """What a parameter of a batch norm is at each of n inner steps."""
    return torch.cat([outer[k][None], outer[f"learned/norm.{k}"]])[:n]


def by_hand(problem, outer, episode, rates, weights):
    """sum_t v_t F(theta_t), and theta_S, without the code under test."""
    lam, _ = split(outer)
    at = {k: v.detach().clone() for k, v in lam.items()}
    moving = [k for k in at if k not in NORMS]
    total = torch.zeros((), dtype=F64)
    for t, (rate, weight) in enumerate(zip(rates, weights, strict=True)):
        at |= {k: steps_of(outer, len(weights), k)[t] for k in NORMS}
        leaves = {k: at[k].clone().requires_grad_() for k in moving}
        loss = problem.inner_loss(lam, {**at, **leaves}, episode.batch(t))
        g = torch.autograd.grad(loss, [leaves[k] for k in moving], allow_unused=True)
        at |= {k: at[k] - (0 if d is None else rate * d) for k, d in zip(moving, g, strict=True)}
        total += weight * problem.outer_loss(lam, at, episode.outer)
    return total, at


def moved_apart(outer):
    """Norms of the steps that differ."""
    gen = torch.Generator().manual_seed(3)
    return {
        k: v + 0.2 * torch.randn(v.shape, generator=gen, dtype=F64) if "norm" in k else v
        for k, v in outer.items()
    }


@pytest.mark.parametrize("epoch", [0, 10])
def test_norms_of_the_steps_against_differences(epoch):
    ctx = given(NormedNet(batches=True), *NORMED)
    ctx.step = 3 * epoch
    method = MAML(inner_steps=3, inner_lr=0.3, step_norms=True, multi_step_epochs=10, epoch_steps=3)
    outer, episode = moved_apart(method.init(ctx).outer), ctx.problem.episode("train", 0)
    assert {k: v.shape[0] for k, v in outer.items() if k.startswith("learned/")} == dict.fromkeys(
        [f"learned/norm.{k}" for k in NORMS], 2
    )
    rates, weights = [0.3] * 3, method.loss_weights(ctx.step)

    def f(outer):
        return by_hand(ctx.problem, outer, episode, rates, weights)[0]

    found = method.hypergradient(ctx, outer, None, episode)
    value, theta = by_hand(ctx.problem, outer, episode, rates, weights)
    torch.testing.assert_close(found.value, value, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.theta, theta, rtol=1e-12, atol=1e-13)
    for name, value in differences(f, outer, h=1e-4).items():
        torch.testing.assert_close(found.grad[name], value, rtol=1e-7, atol=1e-8)
    for name in ("norm.weight", "learned/norm.norm.weight"):
        assert bool(found.grad[name].all()), "every step's counts"


def test_norms_equal_in_all_steps_are_maml_with_norms_that_stay():
    ctx = given(NormedNet(), *NORMED)
    own = {"inner_steps": 3, "inner_lr": 0.3}
    method, episode = MAML(step_norms=True, **own), ctx.problem.episode("train", 0)
    outer = method.init(ctx).outer
    found = method.hypergradient(ctx, outer, None, episode)
    plain = Still(**own).hypergradient(ctx, split(outer)[0], None, episode)
    torch.testing.assert_close(found.value, plain.value, rtol=1e-14, atol=0)
    for name, value in plain.grad.items():
        of_steps = found.grad.get(f"learned/norm.{name}", torch.zeros(0, *value.shape, dtype=F64))
        whole = found.grad[name] + of_steps.sum(0)
        torch.testing.assert_close(whole, value, rtol=1e-11, atol=1e-13)


def test_norms_of_one_step_are_those_of_lam():
    ctx = given(NormedNet(), *NORMED)
    method = MAML(inner_steps=1, inner_lr=0.3, step_norms=True)
    state = method.init(ctx)
    assert state.learned == {}
    episode = ctx.problem.episode("train", 0)
    found = method.hypergradient(ctx, state.outer, None, episode)
    plain = Still(inner_steps=1, inner_lr=0.3).hypergradient(ctx, state.outer, None, episode)
    torch.testing.assert_close(found.grad, plain.grad, rtol=1e-11, atol=1e-13)


def test_in_first_order_norms_learn_from_the_losses_after_their_own_step():
    ctx = given(NormedNet(), *NORMED)
    own = {"inner_steps": 3, "inner_lr": 0.3, "order": "first", "step_norms": True}
    method, episode = MAML(**own), ctx.problem.episode("train", 0)
    outer = moved_apart(method.init(ctx).outer)
    found = method.hypergradient(ctx, outer, None, episode)
    leaf = {k: v.clone().requires_grad_() for k, v in found.theta.items()}
    loss = ctx.problem.outer_loss({}, leaf, episode.outer)
    for k in NORMS:
        (last,) = torch.autograd.grad(loss, leaf[k], retain_graph=True)
        steps = found.grad[f"learned/norm.{k}"]
        torch.testing.assert_close(steps[1], last, rtol=1e-12, atol=1e-14)
        assert not bool(steps[0].any()) and not bool(found.grad[k].any())
    assert ctx.meter.counts.hvps == ctx.meter.counts.mixed_products == 0
    every = MAML(**own, multi_step_epochs=1).hypergradient(ctx, outer, None, episode)
    assert all(bool(every.grad[k].any()) and bool(every.grad[f"learned/norm.{k}"][0].any())
               for k in NORMS)  # fmt: skip


def test_products_with_the_norms_are_counted():
    ctx = given(NormedNet(), *NORMED)
    hypergradient(ctx, "maml", inner_steps=3, step_norms=True)
    counts = ctx.meter.counts
    assert (counts.inner_gradients, counts.hvps, counts.mixed_products) == (3, 3, 3)


@pytest.mark.parametrize(("steps", "last"), [(0, 0), (1, 0), (2, 1), (4, 1)])
def test_an_adaptation_has_the_norms_of_its_last_step(steps, last):
    ctx = given(NormedNet(), *NORMED)
    both = {"step_norms": True, "layer_step_rates": True}
    method = MAML(inner_steps=2, test_steps=steps, inner_lr=0.2, **both)
    state = method.init(ctx)
    assert not any("norm" in k for k in state.learned if k.startswith("rate.")), "they do not move"
    outer = moved_apart(state.outer)
    for k in [k for k in outer if k.startswith("learned/rate.")]:
        outer[k] = torch.tensor([0.1, 0.3], dtype=F64)
    lam, learned = split(outer)
    episode = ctx.problem.episode("test", 0)
    found = method.adapt(ctx, State(lam, learned=learned), episode)
    assert all(torch.equal(found[k], steps_of(outer, 2, k)[last]) for k in NORMS)
    for k in NORMS:  # two steps more, with what the last one has
        outer[f"learned/norm.{k}"] = outer[f"learned/norm.{k}"].expand(3, -1)
    rates = [0.1, 0.3, 0.3, 0.3][:steps]
    _, theta = by_hand(ctx.problem, outer, episode, rates, [0.0] * steps)
    torch.testing.assert_close(found, theta, rtol=1e-12, atol=1e-13)


ALL = {"step_norms": True, "layer_step_rates": True, "multi_step_epochs": 1, "epoch_steps": 2}


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("own", [{"step_norms": True}, {**ALL, "first_order_epochs": 1}])
def test_episodes_at_once_and_one_by_one_on_the_networks_of_the_papers(own, downsample):
    set_ = {"ways": 3, "queries": 2, "meta_batch": 3, "filters": 3, "dtype": "float64"}
    task = tasks.get("glyphs")(**set_, downsample=downsample)
    method = MAML(inner_steps=2, inner_lr=0.1, **own)
    looped, stacked = context(task), context(task, engine="vmap")
    kinds = ("weight", "bias")
    assert looped.problem.batch_norms == tuple(f"norm{i}.{k}" for i in (1, 2, 3, 4) for k in kinds)
    state = method.init(looped)
    first = state.learned
    for step in range(3):
        looped.step = stacked.step = step
        new, log = method.step(looped, state)
        other, told = method.step(stacked, state)
        torch.testing.assert_close(other.outer, new.outer, rtol=1e-9, atol=1e-10)
        assert told == pytest.approx(log, rel=1e-9)
        state = new
    assert looped.meter.counts == stacked.meter.counts
    assert all(bool((v != first[k]).any()) for k, v in state.learned.items())
    episodes = [looped.problem.episode("valid", i) for i in range(3)]
    one = [method.adapt(looped, state, e) for e in episodes]
    two = stacked.over_episodes(lambda e: method.adapt(stacked, state, e), episodes, steps=2)
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-10)


def test_the_network_of_the_papers_against_differences():
    set_ = {"ways": 3, "queries": 2, "meta_batch": 1, "filters": 2, "dtype": "float64"}
    ctx = context(tasks.get("glyphs")(**set_))
    method = MAML(inner_steps=2, inner_lr=0.1, step_norms=True)
    state, episode = method.init(ctx), ctx.problem.episode("train", 0)
    found = method.hypergradient(ctx, state.outer, None, episode).grad
    some = {k: v for k, v in state.outer.items() if "norm" in k}

    def f(norms):
        lam, learned = split(state.outer | norms)
        theta = replace(method, test_steps=2).adapt(ctx, State(lam, learned=learned), episode)
        return ctx.problem.outer_loss(lam, theta, episode.outer)

    for name, value in differences(f, some, h=1e-6).items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def test_without_batch_norms_it_does_not_apply():
    reason = why_not(tasks.get("sinusoid")(), MAML(step_norms=True))
    assert reason is not None and "batch norms whose scales and shifts are in theta" in reason
    assert why_not(tasks.get("glyphs")(), MAML(step_norms=True)) is None


# First order, then second order.


@pytest.mark.parametrize("more", [{}, {"layer_step_rates": True}])
def test_the_order_changes_after_the_first_epochs(more):
    own = {"inner_steps": 3, "inner_lr": 0.1, **more}
    annealed = {"first_order_epochs": 2, "epoch_steps": 3}
    for step, order in ((0, "first"), (5, "first"), (6, "second"), (60, "second")):
        ctx, plain = given(SmallNet(), *INITIAL), given(SmallNet(), *INITIAL)
        ctx.step = step
        found = hypergradient(ctx, "maml", **own, **annealed)
        expected = hypergradient(plain, "maml", **own, order=order, memory="graph")
        assert all(torch.equal(found[k], v) for k, v in expected.items())
        assert ctx.meter.counts.hvps == plain.meter.counts.hvps == (0 if order == "first" else 3)
        assert ctx.notes["unroll"] == ("first order" if order == "first" else "graph")


def test_second_order_then_takes_the_memory_that_was_asked_for():
    ctx = given(SmallNet(), *INITIAL)
    method = MAML(inner_steps=4, first_order_epochs=1, epoch_steps=2, memory="states")
    state = method.init(ctx)
    for ctx.step, said in enumerate(["first order", "first order", "states"]):
        state, _ = method.step(ctx, state)
        assert ctx.notes["unroll"] == said


def test_settings_that_came_later_are_not_named_where_nothing_is_set():
    new = {"step_norms", "first_order_epochs", "outer_lr_min"}
    assert not new & set(settings.values(MAML()))
    own = {"step_norms": True, "first_order_epochs": 3, "outer_lr_min": 1e-5}
    assert new <= set(settings.values(MAML(**own)))
