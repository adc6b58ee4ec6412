"""Recipes of a training on a passage: documents, likelihoods, trainings, rewards, a round."""

import importlib
import itertools
import math

import pytest
import torch
from optional import needs
from oracles import F64, context

from metabench.conformance.kit import task_checks
from metabench.contract.method import State, inner_loop
from metabench.contract.problem import Episode
from metabench.contract.seeds import generator
from metabench.core import settings
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks

needs("transformers")
from self_edits import small_world  # noqa: E402

Task, ReSTEM = tasks.get("self_edit_recipe"), methods.get("restem")
module = importlib.import_module("metabench.tasks.self_edit_recipe")
SIZES = {"rank": 1, "targets": ("q", "down"), "question_tokens": 40, "edit_tokens": 120,
         "questions": 2, "documents": 5, "rates": (0.02, 0.05), "epochs": (1, 3)}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with small_world(tmp_path_factory.mktemp("data")) as model:
        yield model


def small(world, **more):
    return Task(**{**SIZES, "model": world, "dtype": "float64", **more})


def skewed(problem):
    gen = generator("skewed")
    return {k: torch.randn(v.shape, generator=gen, dtype=F64)
            for k, v in problem.init_outer().items()}  # fmt: skip


def every(problem):
    sizes = [range(h.shape[0]) for h in problem.hypers]
    return {"choices": torch.tensor(list(itertools.product(*sizes)))}


def test_sentences_and_gaps():
    text = "The Ob flows north. In 1900 it froze! Mr. Ob said: no."
    parts = module.sentences(text)
    assert parts == ["The Ob flows north.", "In 1900 it froze!", "Mr.", "Ob said: no."]
    assert module.cloze("In 1900 it had 3,500.") == ("In 1900 it had ___.", "3,500")
    assert module.cloze("Once the New York Times came.") == ("Once the ___ came.", "New York Times")
    assert module.cloze("Nobody came.") == ("Nobody came.", "")


def test_documents_are_the_passage_and_what_the_recipe_makes_of_it(world):
    problem = context(small(world, documents=8, edit_tokens=200)).problem
    passage = next(p for p in problem.texts["train"] if p.title.startswith("Rivers"))
    title = passage.title
    recipe = module.Recipe(0.1, 1, "all", frozenset({"sentences", "reordered", "cloze"}))
    ids, mask = problem.documents(passage, recipe)
    texts = [
        problem.lm.decode(i[: int(m.sum()) + 1].tolist()) for i, m in zip(ids, mask, strict=True)
    ]
    first, second = module.sentences(passage.context)
    assert first == "The Ob flows north." and second.startswith("In 1900 it froze.")
    gap = second.replace("1900", "___")
    assert texts[:6] == [
        f"{title}\n{passage.context}",
        f"{title}\n{first}", f"{title}\n{second} {first}",
        f"Topic: {title}\nQuestion: The ___ flows north.\nAnswer: Ob\n",
        f"{title}\n{second}", f"Topic: {title}\nQuestion: {gap}\nAnswer: 1900\n",
    ]  # fmt: skip
    same, output = problem.documents(passage, module.Recipe(0.1, 1, "output", recipe.augmentations))
    assert torch.equal(same, ids)
    kept = [problem.lm.decode(i[m > 0].tolist()) for i, m in zip(ids, output, strict=True)]
    assert kept[:4] == [passage.context, first, f"{second} {first}", " Ob\n"]
    plain, _ = problem.documents(passage, module.Recipe(0.1, 1, "all", frozenset()))
    assert torch.equal(plain[0], ids[0]) and not plain[1:].any()


def test_likelihoods_are_products_of_shares_and_draws_follow_them(world):
    problem = context(small(world)).problem
    lam, episode, recipes = skewed(problem), problem.episode("train", 0), every(problem)
    p = problem.log_likelihood(lam, episode, recipes).exp()
    assert len(p) == 2 * 2 * 2 * 8
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=F64), rtol=1e-10, atol=1e-10)
    expected = math.prod(float(lam[h.name].softmax(0)[0]) for h in problem.hypers)
    assert float(p[0]) == pytest.approx(expected, rel=1e-10)
    n = 4000
    drawn = problem.sample(lam, episode, n, generator("draws"))["choices"]
    sizes = [2] * len(problem.hypers)
    weights = torch.tensor([math.prod(sizes[i + 1 :]) for i in range(len(sizes))])
    shares = torch.bincount(drawn @ weights, minlength=len(p)) / n
    assert float((shares - p).abs().max()) < 4 * 0.5 / n**0.5


def test_each_recipe_is_trained_as_it_says_in_whatever_company(world):
    """By the harness's own loop, one recipe at a time, on documents cut by hand."""
    ctx = context(small(world), "adam")
    problem, episode = ctx.problem, ctx.problem.episode("train", 1)
    lam = problem.init_outer()
    rows = torch.tensor([[0, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0],
                         [0, 1, 0, 1, 0, 0]])  # fmt: skip
    thetas = problem.adapted(lam, episode, {"choices": rows})
    rewards = problem.rewards(lam, episode, {"choices": rows})
    for i, row in enumerate(rows.tolist()):
        recipe = problem.recipe(tuple(row))
        assert recipe.rate == SIZES["rates"][row[0]] and recipe.epochs == SIZES["epochs"][row[1]]
        ids, mask = problem.documents(problem.passage_of(episode), recipe)
        texts = Episode({"ids": ids, "mask": mask}, episode.outer)
        start = problem.init_inner(lam, episode)
        theta, _ = inner_loop(ctx, lam, start, texts, steps=recipe.epochs, lr=recipe.rate)
        for k, v in theta.items():
            torch.testing.assert_close(thetas[k][i], v.detach(), rtol=1e-10, atol=1e-10)
        expected = problem.metrics(lam, theta, episode)["log_likelihood"]
        assert float(rewards[i]) == pytest.approx(expected, rel=1e-10)
    assert float(rewards[0]) == float(rewards[3]) and len(set(rewards.tolist())) == 3


def test_a_round_moves_the_policy_to_the_recipes_that_were_kept(world):
    ctx = context(small(world, meta_batch=2))
    problem, method = ctx.problem, ReSTEM(samples=4, outer_lr=0.3, epochs=3)
    first = method.init(ctx)
    kept = []
    for e in ctx.training_episodes():
        actions, rewards = method.explore(ctx, first.lam, e)
        kept.append((e, {k: v[rewards.argmax()][None] for k, v in actions.items()}))
    state, log = method.step(ctx, first)
    assert log["best_reward"] >= -log["outer_loss"] and log["kept"] == 2
    gains = [problem.log_likelihood(state.lam, *p) - problem.log_likelihood(first.lam, *p)
             for p in kept]  # fmt: skip
    assert float(torch.stack(gains).sum()) > 0.1
    theta = method.adapt(ctx, State(state.lam), problem.episode("test", 0))
    assert {k: v.shape for k, v in theta.items()} == {k: v.shape for k, v in problem.start.items()}


def test_it_keeps_the_contract_and_names_what_it_lacks(world):
    task = small(world, edit_tokens=16, question_tokens=16, targets=("v",), documents=2)
    for _, check in task_checks(task, methods=[ReSTEM(samples=2), methods.get("fixed")()]):
        check()
    for wrong in ({"rates": ()}, {"tokens": ("all", "all")}):
        with pytest.raises(SettingError, match="name each choice once"):
            settings.build(Task, {"model": world, **wrong}, "task self_edit_recipe")
