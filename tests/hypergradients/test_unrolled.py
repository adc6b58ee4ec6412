"""Memory modes, engines and threads agree; costs are counted; modes are chosen to fit."""

import subprocess
import sys
import threading
import weakref

import pytest
import torch
from oracles import F64, SmallNet, context, differences, given, hypergradient

from metabench.conformance.test_problems import Counting, Sample
from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS
from metabench.core.registry import methods, tasks
from metabench.hypergradients import unrolled

MODES = ("graph", "states", "checkpoints")
OFFERS = (*GRADIENTS, "lam_is_initialisation", "head", "episodes")


def path(ctx, **more):
    return unrolled.Path(ctx, None, ctx.problem.episode("train", 0), lambda lam: 0.1, **more)


def equal(one, other, tolerance=1e-10):
    assert list(one) == list(other)
    for k in one:
        torch.testing.assert_close(one[k], other[k], rtol=tolerance, atol=tolerance)


# Costs.


@pytest.mark.parametrize(("mode", "gradients", "hvps"), [
    ("graph", 7, 6), ("states", 14, 7), ("checkpoints", 17, 7),
])  # fmt: skip
def test_costs_of_reverse_mode(mode, gradients, hvps):
    ctx = context("quadratic")
    hypergradient(ctx, "bilevel", inner_steps=7, memory=mode)
    n = ctx.meter.counts
    # "checkpoints" keeps points 0, 2, 4, 6 and comes by 1, 3, 5 once more.
    assert (n.inner_gradients, n.hvps, n.mixed_products, n.outer_gradients) == (
        gradients, hvps, 7, 1,
    )  # fmt: skip


def test_costs_of_forward_truncated_and_first_order():
    ctx = context(tasks.get("quadratic")(dim=3))
    hypergradient(ctx, "bilevel", inner_steps=5, mode="forward")
    n = ctx.meter.counts
    assert (n.inner_gradients, n.hvps, n.mixed_products, n.outer_gradients) == (5, 15, 15, 1)
    ctx = context("quadratic")
    hypergradient(ctx, "bilevel", inner_steps=7, truncate=3, memory="graph")
    n = ctx.meter.counts
    assert (n.inner_gradients, n.hvps, n.mixed_products, n.outer_gradients) == (7, 2, 3, 1)
    ctx = given(SmallNet(), *OFFERS)
    hypergradient(ctx, "maml", inner_steps=3, memory="graph")
    hypergradient(ctx, "maml", inner_steps=3, order="first")
    n = ctx.meter.counts
    assert (n.inner_gradients, n.hvps, n.mixed_products, n.outer_gradients) == (6, 3, 0, 2)


@pytest.mark.parametrize("mode", [*MODES, "auto"])
def test_every_gradient_that_is_counted_is_taken(mode):
    problem = Counting(SmallNet())
    ctx = given(problem, *OFFERS)
    hypergradient(ctx, "maml", inner_steps=7, memory=mode)
    assert problem.calls["inner_loss"] == ctx.meter.counts.inner_gradients
    assert problem.calls["outer_loss"] == ctx.meter.counts.outer_gradients == 1


# Choosing a mode.


def test_the_mode_is_chosen_against_the_budget():
    ctx = given(SmallNet(), *OFFERS)
    ctx.problem.episodes_per_step = 4
    lam = ctx.problem.init_outer()
    chosen = unrolled.choose(path(ctx), lam, 10, 1e9)
    assert chosen == "graph" and ctx.meter.counts.inner_gradients == 1
    known = ctx.notes["unroll_bytes"]
    assert known["point"] == 8 * sum(v.numel() for v in lam.values())
    assert known["step"] > known["point"] and known["shared"] == 0

    def mode(budget):
        return unrolled.choose(path(ctx), lam, 10, 4 * budget)

    assert mode(10 * known["step"]) == "graph"
    assert mode(10 * known["step"] - 1) == "states"
    assert mode(10 * known["point"] + known["step"]) == "states"
    assert mode(10 * known["point"] + known["step"] - 1) == "checkpoints"
    assert ctx.meter.counts.inner_gradients == 1  # measured once a run


@pytest.mark.parametrize("budget", [1e9, 1e-6])
def test_auto_gives_the_same_numbers_and_notes_its_choice(budget):
    ctx = given(SmallNet(), *OFFERS)
    found = hypergradient(ctx, "maml", inner_steps=6, memory_budget_gb=budget)
    assert ctx.notes["unroll"] == ("graph" if budget > 1 else "checkpoints")
    equal(found, hypergradient(ctx, "maml", inner_steps=6, memory="graph"))


def test_the_estimate_grows_with_what_a_step_keeps():
    small, large = (given(SmallNet(), *OFFERS) for _ in range(2))
    batch = large.problem.episode("train", 0)
    wide = {k: v.repeat(50, *[1] * (v.dim() - 1)) for k, v in batch.inner.items()}
    lam = large.problem.init_outer()
    one = unrolled.measure(path(small), lam)["step"]
    episode = type(batch)(wide, batch.outer)
    other = unrolled.measure(unrolled.Path(large, None, episode, lambda lam: 0.1), lam)["step"]
    assert 10 * one < other < 100 * one


class Kept:
    """What a graph keeps of a tensor, for as long as it does."""

    def __init__(self, tensor):
        self.tensor = tensor


def most_kept(mode, steps):
    """The largest number of tensors that graphs keep at one time."""
    ctx, alive, most = given(SmallNet(), *OFFERS), weakref.WeakSet(), [0]

    def pack(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        most[0] = max(most[0], len(alive))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        hypergradient(ctx, "maml", inner_steps=steps, memory=mode)
    return most[0]


def test_replay_keeps_the_graph_of_one_step_however_many_there_are():
    assert most_kept("graph", 40) > 3 * most_kept("graph", 10)
    for mode in ("states", "checkpoints"):
        assert most_kept(mode, 40) == most_kept(mode, 10) < most_kept("graph", 10)


# Engines and threads.


@pytest.mark.parametrize("solver", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("mode", [*MODES, "auto"])
@pytest.mark.parametrize("batches", [False, True])
def test_batched_is_looped(batches, mode, solver):
    found = {}
    for engine in ("loop", "vmap"):
        ctx = given(SmallNet(pull=0.3, batches=batches), *OFFERS, solver=solver, engine=engine)
        for name, set_ in {
            "maml": {"anil": False}, "anil": {"anil": True}, "first": {"order": "first"},
            "meta_sgd": {"meta_sgd": True},
        }.items():  # fmt: skip
            method = methods.get("maml")(inner_steps=4, inner_lr=0.1, memory=mode, **set_)
            lam = method.init(ctx).outer
            out = ctx.over_episodes(
                lambda e, m=method, p=lam, c=ctx: m.hypergradient(c, p, None, e),
                ctx.training_episodes(),
                steps=4,
            )
            found[engine, name] = out
    for (engine, name), out in found.items():
        for one, other in zip(out, found["loop", name], strict=True):
            equal(one.grad, other.grad)
            equal(one.theta, other.theta)
            torch.testing.assert_close(one.value, other.value, rtol=1e-10, atol=0)
        assert engine == "loop" or len(out) == 3


def test_forward_mode_batched():
    Ridge = tasks.get("ridge")
    out = {}
    for engine in ("loop", "vmap"):
        ctx = context(Ridge(features=3), "momentum", engine=engine)
        method = methods.get("bilevel")(mode="forward", inner_steps=4)
        episodes = [ctx.problem.episode(split, 0) for split in ("train", "test")]
        lam = ctx.problem.init_outer()
        out[engine] = ctx.over_episodes(
            lambda e, c=ctx, p=lam, m=method: m.hypergradient(c, p, None, e), episodes
        )
    for one, other in zip(out["loop"], out["vmap"], strict=True):
        equal(one.grad, other.grad)


def test_threads_measure_once_and_choose_alike():
    """The choice is made before episodes run side by side."""
    ctx = context(Sample(), workers=3)
    method = methods.get("maml")(inner_steps=5)
    measured = []
    real = unrolled.measure

    def watched(*args):
        measured.append(threading.current_thread().name)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unrolled, "measure", watched)
        method.step(ctx, method.init(ctx))
    assert measured == [threading.current_thread().name]


# What episodes share.


class Prepared(SmallNet):
    """lam is the body; features are computed once an episode."""

    def init_outer(self):
        return {k: v for k, v in super().init_outer().items() if k.startswith("body")}

    def init_inner(self, lam, episode):
        return {"head.weight": torch.zeros(4, dtype=F64)}

    def features(self, lam, batch):
        return torch.tanh(batch["x"] @ lam["body.weight"].T + lam["body.bias"])

    def inner_loss(self, lam, theta, batch):
        features = batch["features"] if "features" in batch else self.features(lam, batch)
        return (features @ theta["head.weight"] - batch["y"]).square().mean()

    outer_loss = inner_loss
    times = 0

    def prepare(self, lam, episode, only=None):
        self.times += 1
        inner, outer = (
            {"features": self.features(lam, b), "y": b["y"]} for b in (episode.inner, episode.outer)
        )
        return type(episode)(inner, outer, episode.index)


class Unprepared(Prepared):
    def prepare(self, lam, episode, only=None):
        return episode


@pytest.mark.parametrize("set_", [{"memory": m} for m in MODES] + [{"truncate": 2}])
def test_prepared_episodes_give_the_same_hypergradient(set_):
    offers = (*GRADIENTS, "lam_in_inner_loss")
    found = [
        hypergradient(given(kind(), *offers), "bilevel", inner_steps=4, inner_lr=0.3, **set_)
        for kind in (Prepared, Unprepared)
    ]
    equal(*found)


def test_prepared_episodes_are_differentiated_and_shared():
    ctx = given(Prepared(), *GRADIENTS, "lam_in_inner_loss")
    found = hypergradient(ctx, "bilevel", inner_steps=4, inner_lr=0.3, memory="graph")
    assert ctx.problem.times == 1

    def plain(lam):
        with torch.enable_grad():
            problem, episode = Unprepared(), ctx.problem.episode("train", 0)
            theta = problem.init_inner(lam, episode)
            for _ in range(4):
                _, g = autodiff.grad(lambda t: problem.inner_loss(lam, t, episode.inner), theta)
                theta = autodiff.axpy(-0.3, g, theta)
            return problem.outer_loss(lam, theta, episode.outer)

    equal(found, differences(plain, ctx.problem.init_outer(), 1e-3), 1e-8)
    notes = unrolled.measure(path(ctx), ctx.problem.init_outer())
    assert notes["shared"] > 0


@pytest.mark.slow
def test_forward_mode_warns_of_nothing_when_first_used():
    code = """
from metabench.conformance.kit import check_method
from metabench.core.registry import methods, tasks
check_method(methods.get("bilevel")(mode="forward", inner_steps=1), [tasks.get("quadratic")()])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_points_come_back_in_turn_from_pieces_that_are_used_again():
    points, n = unrolled.Iterates(70), unrolled.Iterates.PIECE

    def point(i):
        return {"w": torch.full((2,), float(i))}, {"velocity": {"w": torch.tensor(-float(i))}}

    for last in (70, 5, n + 1):
        for i in range(last):
            points.push(point(i))
        assert len(points) == last
        for i in reversed(range(last)):
            theta, memory = points.pop()
            assert theta["w"].tolist() == [i, i] and float(memory["velocity"]["w"]) == -i
    assert [len(piece[0]) for piece in points.pieces] == [n, n, 70 - 2 * n]
