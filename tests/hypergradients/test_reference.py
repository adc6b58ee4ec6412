"""The dense reference against closed forms and differences, and what first steps are judged by."""

import importlib
import math

import pytest
import torch
from oracles import F64, context, given

from metabench.contract import autodiff
from metabench.contract.problem import Episode
from metabench.contract.seeds import Seeds
from metabench.core.errors import Diverged
from metabench.core.registry import methods, tasks
from metabench.hypergradients import reference

ExactDecay = tasks.get("exact_decay")
Problem = importlib.import_module("metabench.tasks.exact_decay").ExactDecayProblem
GEN = torch.Generator().manual_seed(0)
IMAGES = {"train": (torch.rand(60, 1, 8, 8, generator=GEN), torch.arange(60) % 10)}
FIRST_STEP = {"outer_solver": "sgd", "outer_lr": 1.0}
GLYPHS = {"images": "glyphs", "ways": 3, "shots": 2, "queries": 2, "filters": 2, "meta_batch": 2}


def made(seed=0, **set_):
    task = ExactDecay(**{"n_train": 20, "n_valid": 20, "shrink": 2, "hidden": 3, **set_})
    return Problem(task, Seeds.of(seed), torch.device("cpu"), IMAGES)


def on(problem, solver="sgd"):
    return given(problem, *problem.task.offers, solver=solver)


def judged(ctx, name, **set_):
    """Metrics after the method's own first step, as the suite takes it."""
    method = methods.get(name)(**{**FIRST_STEP, **set_})
    state, _ = method.step(ctx, method.init(ctx))
    episode = ctx.problem.episode("valid", 0)
    return ctx.problem.metrics(state.lam, method.adapt(ctx, state, episode), episode)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def slope(f, lam, way, h=2e-3):
    """The derivative of f along a direction, by central differences of the sixth order."""
    weights = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
    return (
        sum(
            w * (f(autodiff.axpy(n * h, way, lam)) - f(autodiff.axpy(-n * h, way, lam)))
            for n, w in weights.items()
        )
        / h
    )


def way(lam, seed=0):
    gen = torch.Generator().manual_seed(seed)
    flat = torch.randn(sum(v.numel() for v in lam.values()), generator=gen, dtype=F64)
    return autodiff.unflatten(flat / flat.norm(), lam)


def test_ridge_has_a_closed_form():
    problem = context("ridge").problem
    lam = {"log_penalty": torch.linspace(-2, 1, 10, dtype=F64)}
    episode = problem.episode("train", 0)
    known = reference.exact(problem, lam, problem.init_inner(lam, episode), episode)
    close(known.theta["w"], problem.solve(lam))
    close(known.grad["log_penalty"], problem.exact_hypergradient(lam))


@pytest.mark.parametrize(
    "set_",
    [{}, {"decays": "weight", "start": "warm"}, {"network": "mlp", "start": "warm", "spread": 0.5}],
    ids=["logistic", "weights", "mlp"],
)
def test_trained_again_at_other_decays(set_):
    problem = made(**set_)
    lam, episode = problem.init_outer(), problem.episode("train", 0)

    def trained(p):
        def inner(flat):
            return problem.inner_loss(p, autodiff.unflatten(flat, start), episode.inner)

        start = problem.known.theta
        end = reference.minimiser(inner, autodiff.flatten(start))
        return float(problem.outer_loss(p, autodiff.unflatten(end, start), episode.outer))

    for seed in range(3):
        towards = way(lam, seed)
        assert float(autodiff.dot(problem.known.grad, towards)) == pytest.approx(
            slope(trained, lam, towards), rel=1e-8, abs=1e-9
        )


def test_heads_trained_again_on_another_body():
    problem = tasks.get("exact_representation")(**GLYPHS).build(Seeds.of(0), torch.device("cpu"))
    lam = problem.init_outer()
    episodes = [problem.episode("train", i) for i in range(2)]

    def trained(p):
        total = 0.0
        for e in episodes:
            start = problem.init_inner(p, e)
            ready = problem.prepare(p, e)

            def inner(flat, start=start, p=p, ready=ready):
                return problem.inner_loss(p, autodiff.unflatten(flat, start), ready.inner)

            end = autodiff.unflatten(reference.minimiser(inner, autodiff.flatten(start)), start)
            total += float(problem.outer_loss(p, end, e.outer)) / 2
        return total

    # Kinks of the rectifiers are nowhere near so short a step.
    towards = way(lam)
    found = float(autodiff.dot(problem.known, towards))
    assert found == pytest.approx(slope(trained, lam, towards, h=1e-5), rel=1e-8)


@pytest.mark.parametrize("set_", [{}, {"network": "mlp", "spread": 0.5}], ids=["logistic", "mlp"])
def test_at_the_minimiser_implicit_differentiation_is_exact(set_):
    problem = made(start="warm", nearby=0.0, **set_)
    found = judged(on(problem), "ift", inverse="cg", terms=400, inner_steps=0, inner_lr=0.1)
    assert found["inner_error"] < 1e-11
    assert found["relative_error"] < 1e-9 and found["one_minus_cosine"] < 1e-18
    assert found["cosine"] == pytest.approx(1.0, abs=1e-15)


def test_few_shot_heads_trained_to_the_end():
    task = tasks.get("exact_representation")(**GLYPHS)
    found = judged(context(task), "ift", inverse="cg", terms=60, inner_steps=1500, inner_lr=0.5)
    assert found["relative_error"] < 1e-8 and found["one_minus_cosine"] < 1e-15


def test_more_terms_and_more_steps_are_nearer():
    def errors(ctx, name, settings):
        return [judged(ctx, name, inner_lr=0.5, **s)["relative_error"] for s in settings]

    ends = on(made(start="warm", nearby=0.0))
    budgets = [{"terms": k, "inner_steps": 0} for k in (0, 3, 10, 30, 100)]
    found = errors(ends, "ift", budgets)
    assert found == sorted(found, reverse=True) and found[-1] < 0.5 * found[0]
    found = errors(on(made()), "bilevel", [{"inner_steps": k} for k in (5, 50, 500)])
    assert found == sorted(found, reverse=True)


def test_the_penalty_method_is_off_by_one_over_gamma():
    problem = on(made(first_log_decay=-1.0))

    def error(gamma):
        return judged(
            problem, "pbgd", gamma_max=gamma, outer_lr=gamma, ramp_steps=0, inner_steps=400,
            ahead=400, inner_lr=0.5, theta_lr=0.5,
        )["relative_error"]  # fmt: skip

    assert error(1e3) / error(1e4) == pytest.approx(10, rel=0.05)


def test_comparison():
    true = {"a": torch.tensor([3.0, 0.0], dtype=F64), "b": torch.tensor([4.0], dtype=F64)}
    found = reference.compare({k: 2 * v for k, v in true.items()} | {"more": torch.ones(1)}, true)
    assert found == pytest.approx({"cosine": 1, "one_minus_cosine": 0, "relative_error": 1})
    turned = {"a": torch.tensor([0.0, 5.0], dtype=F64), "b": torch.zeros(1, dtype=F64)}
    found = reference.compare(turned, true)
    assert found == pytest.approx({"cosine": 0, "one_minus_cosine": 1, "relative_error": 2**0.5})
    tiny = {**true, "a": true["a"] + torch.tensor([0.0, 5e-12], dtype=F64)}
    gap = reference.compare(tiny, true)["one_minus_cosine"]
    assert gap == pytest.approx(0.5e-24, rel=1e-2)  # 1 - cosine itself is 0 in float64
    nothing = {k: torch.zeros_like(v) for k, v in true.items()}
    assert reference.compare(nothing, true)["cosine"] == 0.0


def test_newtons_method_past_a_saddle():
    def f(x):
        return (x[0] ** 2 - 1) ** 2 + 10 * (x[1] - x[0]) ** 2

    found = reference.minimiser(f, torch.tensor([0.01, 0.5], dtype=F64))
    close(found, torch.ones(2, dtype=F64))


def test_where_there_is_no_minimum():
    with pytest.raises(Diverged, match="not arrived after 200 steps"):
        reference.minimiser(lambda x: x.exp().sum() + x.sum(), torch.zeros(2, dtype=F64))
    problem = context("quadratic").problem

    class Flat(type(problem)):
        def inner_loss(self, lam, theta, batch):
            return 0.0 * sum(v.sum() for v in theta.values())

    flat = Flat.__new__(Flat)
    flat.__dict__.update(problem.__dict__)
    lam, episode = problem.init_outer(), Episode({}, {})
    with pytest.raises(Diverged, match="no strict minimum"):
        reference.exact(flat, lam, problem.init_inner(lam, problem.episode("train", 0)), episode)


def test_single_precision_is_refused():
    problem = tasks.get("weight_decay")
    assert problem().dtype == "float32"
    single = {"w": torch.zeros(3)}
    with pytest.raises(ValueError, match="takes float64; w is not"):
        reference.exact(context("ridge").problem, {}, single, Episode({}, {}))


def test_parts_are_apart_and_lam_is_drawn():
    problem = made(spread=0.5)
    rows = {tuple(x.tolist()) for p in problem.parts.values() for x in p["x"]}
    assert len(rows) == 40 and problem.parts["train"]["x"].dtype == F64
    assert [tuple(v.shape) for v in problem.init_outer().values()] == [(10,)]
    assert len(problem.init_outer()["log_decay.head"].unique()) == 10
    assert list(made(decays="weight", network="mlp").init_outer()) == [
        f"log_decay.{layer}.{kind}" for layer in ("hidden", "head") for kind in ("weight", "bias")
    ]
    other = made(seed=1, spread=0.5).init_outer()["log_decay.head"]
    assert not torch.equal(other, problem.init_outer()["log_decay.head"])


@pytest.mark.parametrize("network", ["linear", "mlp"])
@pytest.mark.parametrize("decays", ["unit", "weight"])
def test_losses(network, decays):
    problem = made(network=network, decays=decays, first_log_decay=-1.0)
    lam, theta = problem.init_outer(), problem.init_inner({}, None)
    batch = problem.parts["train"]
    fit = torch.nn.functional.cross_entropy(problem.predict(lam, theta, batch), batch["y"])
    size = sum(v.square().sum() for v in theta.values())
    close(problem.inner_loss(lam, theta, batch), fit + math.exp(-1) / 2 * size)
    c = problem.diagonal_penalty(lam)
    penalty = 0.5 * sum((c[k] * theta[k].square()).sum() for k in theta)
    close(problem.unpenalised_loss(lam, theta, batch) + penalty, fit + math.exp(-1) / 2 * size)


def test_the_split_of_the_heads_penalty():
    task = tasks.get("exact_representation")(**GLYPHS, decay=0.2)
    problem = task.build(Seeds.of(0), torch.device("cpu"))
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta = {k: torch.ones_like(v) for k, v in problem.init_inner(lam, episode).items()}
    c = problem.diagonal_penalty(lam)
    penalty = 0.5 * sum((c[k] * v.square()).sum() for k, v in theta.items())
    whole = problem.inner_loss(lam, theta, episode.inner)
    close(whole - problem.unpenalised_loss(lam, theta, episode.inner), penalty)
    close(penalty, torch.tensor(0.1 * 3 * (problem.net.feature_size + 1), dtype=F64))
