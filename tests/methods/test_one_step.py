"""One-step lookahead: Meta-Weight-Net's loop, written out with torch.optim, and SAMA's diagonal."""

import importlib
from dataclasses import replace

import pytest
import torch
from oracles import F64, context, given
from torch.nn import functional as F

from metabench.contract.method import State
from metabench.contract.problem import GRADIENTS, Episode, Problem
from metabench.contract.seeds import Seeds
from metabench.core.cell import Budget
from metabench.core.costs import Counts
from metabench.core.errors import SettingError, UnknownName
from metabench.core.registry import methods, tasks
from metabench.core.settings import build, values

OneStep, Task = methods.get("one_step"), tasks.get("loss_learning")
LossLearning = importlib.import_module("metabench.tasks.loss_learning").LossLearningProblem
CODE = {
    "inner_steps": 1, "inner_lr": 0.1, "outer_lr": 1e-3, "outer_weight_decay": 1e-4,
    "real_step": True, "real_momentum": 0.9, "real_decay": 5e-4, "inner_drops": (2 / 3, 5 / 6),
}  # fmt: skip
STEPS = 12


def images(n, seed):
    gen = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 3, 3, generator=gen), torch.arange(n) % 10


def weighing(**more):
    """A weight net over a small network, on numbers in the place of images."""
    task = Task(form="weight_net", network="mlp", width=6, n_train=40, n_valid=20, n_test=20,
                batch=10, valid_batch=8, rate=0.6, dtype="float64")  # fmt: skip
    parts = {"train": images(90, 0), "test": images(20, 1)}
    problem = LossLearning(task, Seeds.of(0), torch.device("cpu"), parts)
    return given(problem, *GRADIENTS, "lam_in_inner_loss", **more)


def classify(theta, x):
    """The small network."""
    x = F.linear(x.flatten(1), theta["layer0.weight"], theta["layer0.bias"]).relu()
    return F.linear(x, theta["head.weight"], theta["head.bias"])


def vnet(phi, cost):
    """1-100-1 of losses [n, 1]."""
    x = F.linear(cost, phi["weight.hidden"], phi["weight.hidden_bias"]).relu()
    return F.linear(x, phi["weight.end"], phi["weight.end_bias"]).sigmoid()


def weighted(theta, phi, batch, *, weights_fixed):
    """sum V(cost) cost / n."""
    cost = F.cross_entropy(classify(theta, batch["x"]), batch["y"], reduction="none")[:, None]
    v = vnet(phi, cost.detach())
    return ((v.detach() if weights_fixed else v) * cost).sum() / len(cost)


def leaves(params):
    return {k: v.clone().requires_grad_() for k, v in params.items()}


@pytest.mark.parametrize("nesterov", [False, True])
def test_real_steps_are_those_of_meta_weight_net(nesterov):
    ctx = weighing(budget=Budget(outer_steps=STEPS))
    method = OneStep(**CODE, real_nesterov=nesterov)
    state = method.init(ctx)
    theta, phi = leaves(state.theta), leaves(state.lam)
    of_model = torch.optim.SGD(theta.values(), 0.1, momentum=0.9, nesterov=nesterov,
                               weight_decay=5e-4)  # fmt: skip
    of_vnet = torch.optim.Adam(phi.values(), 1e-3, weight_decay=1e-4)
    sizes = []
    for t in range(STEPS):
        lr = 0.1 * 0.1 ** int(t >= 8) * 0.1 ** int(t >= 10)
        of_model.param_groups[0]["lr"] = lr
        episode = ctx.problem.episode("train", t)
        batch, meta = episode.batch(0), episode.outer
        loss = weighted(theta, phi, batch, weights_fixed=False)
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        ahead = {k: v - lr * g for (k, v), g in zip(theta.items(), grads, strict=True)}
        of_vnet.zero_grad()
        F.cross_entropy(classify(ahead, meta["x"]), meta["y"]).backward()
        of_vnet.step()
        of_model.zero_grad()
        weighted(theta, phi, batch, weights_fixed=True).backward()
        of_model.step()

        before = state
        state, _ = method.step(ctx, state)
        ctx.step += 1
        for ours, theirs in ((state.theta, theta), (state.lam, phi)):
            for k, v in theirs.items():
                torch.testing.assert_close(ours[k], v.detach(), rtol=1e-12, atol=1e-12)
        sizes.append(float((state.theta["head.weight"] - before.theta["head.weight"]).norm()))
    assert sizes[-1] < 0.05 * sizes[7], "the step size fell by a hundred"


def test_the_lookahead_is_the_step_taken_without_a_real_one():
    """lam moves alike in the first step; theta takes the lookahead, or steps under the new lam."""
    ctx = weighing()
    plain = OneStep(inner_steps=1)
    real = replace(plain, real_step=True)
    first = plain.init(ctx)
    ahead, _ = plain.step(ctx, first)
    taken, _ = real.step(ctx, real.init(ctx))
    assert all(torch.equal(ahead.lam[k], taken.lam[k]) for k in first.lam)
    batch = ctx.problem.episode("train", 0).batch(0)
    for state, lam in ((ahead, first.lam), (taken, ahead.lam)):
        g = ctx.inner_grad(lam, first.theta, batch, create_graph=False)
        for k, v in first.theta.items():
            torch.testing.assert_close(state.theta[k], v - 0.1 * g[k], rtol=1e-12, atol=1e-12)
    assert not torch.equal(ahead.theta["head.bias"], taken.theta["head.bias"])


def test_a_real_step_is_counted():
    found = []
    for real_step in (False, True):
        ctx, method = weighing(), OneStep(inner_steps=2, real_step=real_step)
        method.step(ctx, method.init(ctx))
        found.append(ctx.meter.counts)
    assert found[0] == Counts(inner_gradients=2, outer_gradients=1, mixed_products=1)
    assert found[1] == replace(found[0], inner_gradients=4)


def test_what_cannot_be_followed_is_said():
    ctx, method = context("quadratic"), OneStep(inner_steps=1, real_step=True, inner_drops=(0.5,))
    ctx.budget = Budget(seconds=60.0, outer_steps=None)
    state, _ = method.step(ctx, method.init(ctx))
    assert state.theta is None and ctx.notes["real_step"].startswith("none: every episode")
    assert ctx.notes["inner_drops"] == "none: only time limits the run"
    with pytest.raises(SettingError, match="are of the real steps: set real_step to true"):
        build(OneStep, {"real_momentum": 0.9}, "method one_step")
    with pytest.raises(UnknownName, match="outer solver sgd called 'weight_decay'"):
        OneStep(outer_solver="sgd", outer_weight_decay=0.1).init(ctx)


def test_settings_that_came_later_are_named_only_where_they_are_set():
    names = {"real_step", "real_momentum", "real_decay", "inner_drops", "outer_weight_decay"}
    assert not names & set(values(OneStep())) and names <= set(values(OneStep(**CODE)))


SAMA = {"mixed": "differences", "keep_moments": True, "inner_steps": 1, "epsilon": 1.0}


class Line(Problem):
    """G = lam w + w^2 / 2 and F = w, two of each: the hypergradient is minus D, entry by entry."""

    carried = True

    def __init__(self, lam, dtype=F64):
        self.lam = torch.tensor(lam, dtype=dtype)

    def init_outer(self):
        return {"lam": self.lam.clone()}

    def init_inner(self, lam, episode):
        return {"w": torch.zeros_like(self.lam)}

    def inner_loss(self, lam, theta, batch):
        return (lam["lam"] * theta["w"] + theta["w"].square() / 2).sum()

    def outer_loss(self, lam, theta, batch):
        return theta["w"].sum()

    def episode(self, split, index):
        return Episode({}, {}, index)


def line(lam, dtype=F64):
    ctx = given(Line(lam, dtype), *GRADIENTS, "lam_in_inner_loss", "carried", solver="adam")
    method = OneStep(**SAMA, inner_lr=1e-3, outer_solver="sgd", outer_lr=0.5)
    return ctx, method


def test_the_diagonal_of_adam_is_samas():
    """After so many steps that the bias correction is 1, as in the authors' code there is none:
    g .3, m .1, v .05 and g 3, m .4, v .01. Their formula leaves out what eps does, about 1e-7."""
    ctx, method = line([0.3, 3.0])
    state = method.init(ctx)
    adam = {
        "mean": {"w": torch.tensor([0.1, 0.4], dtype=F64)},
        "square": {"w": torch.tensor([0.05, 0.01], dtype=F64)},
        "count": {"steps": torch.tensor(1e6, dtype=F64)},
    }
    found = method.hypergradient_from(
        ctx, State(state.lam, state.theta, {"inner": adam}), ctx.problem.episode("train", 0)
    )
    assert [-float(x) for x in found.grad["lam"]] == pytest.approx([4.4381872e-4, -3.095e-5], 1e-4)
    assert -float(found.grad["lam"][0]) == pytest.approx(4.4381872e-4, rel=2e-7)
    g, m, v = torch.tensor([[0.3, 3.0], [0.1, 0.4], [0.05, 0.01]], dtype=F64)
    new = 0.999 * v + 0.001 * g.square()
    theirs = 1e-3 * (0.1 * 0.999 * v - 0.9 * 0.001 * g * m) / (new.sqrt() + 1e-8) ** 3
    torch.testing.assert_close(-found.grad["lam"], theirs, rtol=2e-6, atol=0)
    kept = found.memory["inner"]
    torch.testing.assert_close(kept["square"]["w"], new, rtol=1e-14, atol=0)


def test_kept_moments_go_on_as_torch_adams():
    """theta takes Adam's steps across outer steps, and D is that of each step's own moments."""
    ctx, method = line([0.3, 3.0])
    state = method.init(ctx)
    theta, lam = torch.zeros(2, dtype=F64, requires_grad=True), state.lam["lam"].clone()
    adam = torch.optim.Adam([theta], 1e-3)
    m = v = torch.zeros(2, dtype=F64)
    for t in range(1, 8):
        g = (lam + theta).detach()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.square()
        first, root = 1 - 0.9**t, (v / (1 - 0.999**t)).sqrt()
        d = 0.1 / first / (root + 1e-8)
        d = d - m / first * 0.001 * g / (1 - 0.999**t) / root / (root + 1e-8) ** 2
        state, _ = method.step(ctx, state)
        ctx.step += 1
        theta.grad = g
        adam.step()
        torch.testing.assert_close(state.theta["w"], theta.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(state.lam["lam"], lam + 0.5e-3 * d, rtol=1e-12, atol=0)
        lam = state.lam["lam"]
    anew = replace(method, keep_moments=False)
    found = anew.hypergradient_from(ctx, state, ctx.problem.episode("train", 0))
    assert float(found.grad["lam"].abs().max()) < 1e-9, "Adam's first step says next to nothing"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_empty_adam_does_not_end_the_run(dtype):
    """D = lr eps / (|g| + eps)^2 at first, in float32 lost in rounding; then it is there."""
    ctx, method = line([0.3, 3.0], dtype)
    state = method.init(ctx)
    found = method.hypergradient_from(ctx, state, ctx.problem.episode("train", 0)).grad["lam"]
    expected = torch.tensor([-1e-11 / 0.09, -1e-11 / 9], dtype=dtype)
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=0 if dtype == torch.float64 else 1e-9
    )
    sizes = []
    for ctx.step in range(4):
        state, log = method.step(ctx, state)
        sizes.append(log["hypergradient_norm"])
    assert sizes[0] < 1e-9 and min(sizes[1:]) > 1e-6


def test_a_first_hypergradient_of_exactly_zero_passes(monkeypatch):
    """As SAMA's formula gives it, with no moments of earlier steps."""
    ctx, method = line([0.3, 3.0])
    exact, taken = method.hypergradient_from, []

    def formula(self, ctx, state, episode):
        found = exact(ctx, state, episode)
        taken.append(found)
        zero = {"lam": torch.zeros(2, dtype=F64)}
        return found._replace(grad=zero) if len(taken) == 1 else found

    monkeypatch.setattr(OneStep, "hypergradient_from", formula)
    state = method.init(ctx)
    for ctx.step in range(3):
        state, log = method.step(ctx, state)
    assert len(taken) == 3 and log["hypergradient_norm"] > 1e-6


def test_where_moments_cannot_be_kept():
    with pytest.raises(SettingError, match='keep_moments needs mixed = "differences"'):
        build(OneStep, {"keep_moments": True}, "method one_step")
    with pytest.raises(SettingError, match="and no real_step"):
        build(OneStep, {**SAMA, "real_step": True}, "method one_step")
    ctx, method = context("quadratic", "adam"), OneStep(**SAMA)
    state, _ = method.step(ctx, method.init(ctx))
    assert ctx.notes["keep_moments"].startswith("none: every episode") and state.theta is None
