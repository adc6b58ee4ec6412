"""ReST-EM on the bandit of recipes, where every reward and every share is known."""

import pytest
import torch
from oracles import F64, context

from metabench.conformance.kit import check_method, check_task
from metabench.contract import autodiff
from metabench.contract.method import State
from metabench.contract.seeds import generator
from metabench.core.errors import NotApplicable
from metabench.core.registry import methods, tasks

Bandit, ReSTEM = tasks.get("recipe_bandit"), methods.get("restem")


def skewed(ctx):
    n = len(ctx.problem.recipes)
    return {"logit": torch.linspace(-1.0, 1.0, n, dtype=F64)}


def test_rewards_are_those_of_gradient_descent():
    ctx = context(Bandit())
    problem, episode = ctx.problem, ctx.problem.episode("train", 3)
    every = {"recipe": torch.arange(len(problem.recipes))}
    theta, rewards = problem.adapted({}, episode, every), problem.rewards({}, episode, every)
    for i, (rate, epochs) in enumerate(problem.recipes.tolist()):
        w = problem.init_inner({}, episode)
        for _ in range(int(epochs)):
            g = autodiff.grad(lambda t: problem.inner_loss({}, t, episode.batch(0)), w)[1]
            w = autodiff.axpy(-rate, g, w)
        torch.testing.assert_close(theta["w"][i], w["w"], rtol=1e-10, atol=1e-10)
        loss = problem.outer_loss({}, w, episode.outer)
        torch.testing.assert_close(rewards[i], -loss, rtol=1e-10, atol=1e-10)
    success = context(Bandit(reward="success")).problem
    found = success.rewards({}, episode, every)
    assert found.tolist() == [float(-r < 0.05) for r in rewards]
    assert 0 < float(found.sum()) < len(found)


def test_best_of_m_keeps_each_recipe_as_often_as_the_closed_form_says():
    ctx = context(Bandit(spread=0.0))
    problem, lam, m, n = ctx.problem, skewed(ctx), 3, 6000
    episode = problem.episode("train", 0)
    expected = problem.best_of(lam, episode, m)
    torch.testing.assert_close(expected.sum(), torch.ones((), dtype=F64), rtol=1e-10, atol=1e-10)
    method, gen = ReSTEM(samples=m), generator("draws")
    actions = problem.sample(lam, episode, n * m, gen)["recipe"].view(n, m)
    table = problem.table(episode)
    kept = torch.tensor([int(row[method.chosen(table[row])[0]]) for row in actions])
    shares = torch.bincount(kept, minlength=len(expected)) / n
    assert float((shares - expected).abs().max()) < 4 * 0.5 / n**0.5


def test_best_of_one_is_the_policy_and_of_very_many_the_best_recipe():
    ctx = context(Bandit(spread=0.0))
    episode, lam = ctx.problem.episode("train", 0), skewed(ctx)
    share = lam["logit"].softmax(0)
    torch.testing.assert_close(ctx.problem.best_of(lam, episode, 1), share, rtol=1e-10, atol=1e-10)
    best = int(ctx.problem.table(episode).argmax())
    assert float(ctx.problem.best_of(lam, episode, 2000)[best]) == pytest.approx(1.0, abs=1e-9)


def test_the_m_step_is_cloning():
    """Its fixed point is the share of each action among the kept: pi' = pi r / sum pi r."""
    ctx = context(Bandit(spread=0.0))
    episode = ctx.problem.episode("train", 0)
    chosen = torch.tensor([0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7])
    kept = [(episode, {"recipe": i[None]}) for i in chosen]
    method = ReSTEM(epochs=400, batch=20, outer_solver="sgd", outer_lr=1.0)
    lam = method.fit(ctx, skewed(ctx), kept)
    expected = torch.bincount(chosen).double() / len(chosen)
    torch.testing.assert_close(lam["logit"].softmax(0), expected, rtol=1e-10, atol=1e-10)
    assert ctx.meter.counts.outer_gradients == 400 * len(chosen)


def test_one_small_step_goes_where_the_policy_gradient_goes():
    """With every draw rewarded by 0 or 1, the M-step's slope is -(1/n) sum r grad log p."""
    ctx = context(Bandit(spread=0.0, reward="success", meta_batch=1))
    problem, lam, lr = ctx.problem, skewed(ctx), 1e-2
    method = ReSTEM(samples=40, select="above", epochs=1, batch=1000, outer_solver="sgd",
                    outer_lr=lr)  # fmt: skip
    episode = ctx.training_episodes()[0]
    actions, rewards = method.explore(ctx, lam, episode)
    leaf = autodiff.leaf(lam)
    log_p = problem.log_likelihood(leaf, episode, actions)
    surrogate = (rewards * log_p).sum() / rewards.sum()
    (g,) = torch.autograd.grad(surrogate, leaf["logit"])
    state, log = method.step(ctx, State(lam))
    torch.testing.assert_close(state.lam["logit"], lam["logit"] + lr * g, rtol=1e-10, atol=1e-10)
    assert log["kept"] == float(rewards.sum()) > 0
    assert log["outer_loss"] == pytest.approx(-float(rewards.mean()))
    assert ctx.meter.counts.trainings == 80


def test_rounds_raise_the_reward_and_nothing_kept_changes_nothing():
    ctx = context(Bandit(meta_batch=20))
    method = ReSTEM(outer_lr=0.3, epochs=5)
    episode, state = ctx.problem.episode("test", 0), method.init(ctx)
    rewards = []
    for _ in range(6):
        rewards.append(ctx.problem.metrics(state.lam, {"w": torch.ones(())}, episode))
        state, _ = method.step(ctx, state)
        ctx.step += 1
    values = [r["expected_reward"] for r in rewards]
    assert values[-1] > 0.5 * values[0] and values[0] < values[2] < 0
    assert rewards[-1]["best_reward"] >= values[-1]
    nothing = ReSTEM(select="above", threshold=1.0)
    same, log = nothing.step(ctx, state)
    assert log["kept"] == 0 and torch.equal(same.lam["logit"], state.lam["logit"])


def test_both_keep_the_contract_and_gradients_are_refused_with_the_reason():
    check_method("restem")
    check_task("recipe_bandit")
    from metabench.core.capabilities import check_applicable

    with pytest.raises(NotApplicable, match="rewards, and no derivatives"):
        check_applicable(Bandit(), methods.get("bilevel")())
    with pytest.raises(NotApplicable, match="restem needs a policy"):
        check_applicable(tasks.get("ridge")(), ReSTEM())
    with pytest.raises(ValueError, match="at least one"):
        Bandit(rates=())
