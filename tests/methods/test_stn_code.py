"""Self-tuning networks as the authors' codes train them: layers and loops written out, torch.optim
in float64."""

import pytest
import torch
from oracles import F64, given
from torch.nn import functional as F

from metabench.contract.problem import Episode, Hyper, Problem
from metabench.core.registry import methods, solvers
from metabench.hypergradients.best_response import Coordinates, Moment
from metabench.hypergradients.unrolled import load_forward_mode

STN, DeltaSTN = methods.get("stn"), methods.get("delta_stn")
NEEDS = ("outer_gradient", "best_response", "small_lam", "prediction", "per_example_lam")
SIZES = {"layer0": (5, 3), "head": (2, 5)}
CODE = {"inner_steps": 3, "inner_lr": 0.05, "warmup": 1, "bias_slopes": "uniform"}


def loss_of(prediction, y):
    return (prediction - y).square().mean()


class Layers(Problem):
    """Two linear layers, tanh between, dropout of the input at a rate for each pixel."""

    hypers = (Hyper("rate", (3,), 0.0, 0.9),)
    carried = True

    def init_outer(self):
        return {"rate": torch.tensor([0.1, 0.3, 0.5], dtype=F64)}

    def init_inner(self, lam, episode):
        gen = torch.Generator().manual_seed(0)
        return {
            f"{name}.{kind}": torch.randn(shape, generator=gen, dtype=F64)
            for name, size in SIZES.items()
            for kind, shape in (("weight", size), ("bias", size[:1]))
        }

    def predict(self, lam, theta, batch):
        x = dropped(lam["rate"], batch)
        x = F.linear(x, theta["layer0.weight"], theta["layer0.bias"]).tanh()
        return F.linear(x, theta["head.weight"], theta["head.bias"])

    def loss_of_prediction(self, lam, theta, prediction, batch):
        return loss_of(prediction, batch["y"])

    def inner_loss(self, lam, theta, batch):
        return loss_of(self.predict(lam, theta, batch), batch["y"])

    def outer_loss(self, lam, theta, batch):
        return self.inner_loss({"rate": torch.zeros(3, dtype=F64)}, theta, batch)

    def episode(self, split, index):
        def batch(t):
            gen = torch.Generator().manual_seed(t)
            x, y = (torch.randn(6, k, generator=gen, dtype=F64) for k in (3, 2))
            return {"x": x, "y": y, "numbers": torch.rand(6, 3, generator=gen, dtype=F64)}

        return Episode(batch, batch(-1), index)


def dropped(rate, batch):
    return batch["x"] * (batch["numbers"] >= rate) / (1 - rate)


def network(phi, at, x):
    """The authors' layers: W0 x + b0 + (V u) W1 x + (C u) b1, with a u [examples, n] each."""
    for name in SIZES:
        if name == "head":
            x = x.tanh()
        w, b = f"{name}.weight", f"{name}.bias"
        value = F.linear(x, phi[f"value/{w}"], phi[f"value/{b}"])
        answer = F.linear(at, phi[f"gate/{w}"]) * F.linear(x, phi[f"slope/{w}"])
        x = value + answer + F.linear(at, phi[f"gate/{b}"]) * phi[f"slope/{b}"]
    return x


def begun(method):
    """A context, the state at the start, what a step sees, and phi as leaves."""
    ctx = given(Layers(), *NEEDS, solver=solvers.get("momentum")())
    state = method.init(ctx)
    u, episode = state.memory["u"], ctx.problem.episode("train", 0)
    at = Moment(ctx, Coordinates(ctx.problem, squash=True), u,
                method.deviations(state.memory), episode)  # fmt: skip
    phi = {k: v.clone().requires_grad_() for k, v in state.memory["response"].items()}
    return ctx, state, at, phi


def sgd(phi, *kinds):
    some = [v for k, v in phi.items() if k.startswith(kinds)]
    return torch.optim.SGD(some, lr=CODE["inner_lr"], momentum=0.9)


def same(found, phi):
    for k, v in phi.items():
        torch.testing.assert_close(found[k], v.detach(), rtol=1e-12, atol=1e-12)


def test_stn_trains_as_the_layers_of_the_code_do():
    method = STN(**CODE)
    ctx, state, at, phi = begun(method)
    found = method.step(ctx, state)[0].memory["response"]
    optimiser = sgd(phi, "value/", "slope/", "gate/")
    for t in range(3):
        batch = at.episode.batch(t)
        (eps,) = at.draws("inner", batch, 1, t)
        there = at.u + at.scale * eps
        optimiser.zero_grad()
        x = dropped(at.coordinates.lam(there)["rate"], batch)
        loss_of(network(phi, there, x), batch["y"]).backward()
        optimiser.step()
    same(found, phi)
    assert not any(torch.equal(found[k], state.memory["response"][k]) for k in phi)


@pytest.mark.parametrize("order", ["value_first", "together"])
def test_delta_stn_takes_the_gradient_of_the_response_where_the_value_has_stepped_to(order):
    load_forward_mode()
    method = DeltaSTN(**CODE, order=order)
    ctx, state, at, phi = begun(method)
    found = method.step(ctx, state)[0].memory["response"]
    general, answering = sgd(phi, "value/"), sgd(phi, "slope/", "gate/")
    for t in range(3):
        batch = at.episode.batch(t)
        before = {k: v.detach().clone() for k, v in phi.items() if k.startswith("value/")}
        general.zero_grad()
        x = dropped(at.coordinates.lam(at.u)["rate"], batch)
        loss_of(network(phi, torch.zeros(6, 3, dtype=F64), x), batch["y"]).backward()
        general.step()
        (eps,) = at.draws("inner", batch, 1, t)
        noise = at.scale * eps
        answering.zero_grad()
        x = dropped(at.coordinates.lam(at.u + noise)["rate"], batch)
        seen = phi if order == "value_first" else {**phi, **before}
        f, change = torch.func.jvp(
            lambda s, seen=seen, noise=noise, x=x: network(seen, s * noise, x),
            (torch.zeros((), dtype=F64),), (torch.ones((), dtype=F64),),
        )  # fmt: skip
        loss_of(f + change, batch["y"]).backward()
        answering.step()
    same(found, phi)


def test_the_two_orders_differ_in_the_response_alone():
    ends = []
    for order in ("value_first", "together"):
        method = DeltaSTN(**CODE, order=order)
        ctx, state, _, _ = begun(method)
        ends.append(method.step(ctx, state)[0].memory["response"])
    gaps = {k: float((ends[0][k] - v).abs().max()) for k, v in ends[1].items()}
    assert all(gap == 0 for k, gap in gaps.items() if k.startswith("value/"))
    assert all(gap > 1e-6 for k, gap in gaps.items() if k.startswith("gate/"))
