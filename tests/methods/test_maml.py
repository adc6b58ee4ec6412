"""MAML++'s options of maml: weights of the losses, a step size for each layer and step."""

import pytest
import torch
from oracles import F64, LinearEpisodes, SmallNet, differences, given, hypergradient

from metabench.contract.method import State, split
from metabench.contract.problem import GRADIENTS
from metabench.core import settings
from metabench.core.errors import SettingError
from metabench.core.registry import methods

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
        ({"inner_steps": 0, "multi_step_epochs": 2}, "need an inner step at least"),
        ({"memory": "states", "layer_step_rates": True}, "keep the whole graph"),
    ],
)
def test_what_does_not_go_together_is_refused(own, said):
    with pytest.raises(SettingError, match=said):
        settings.build(MAML, own, "method maml")
