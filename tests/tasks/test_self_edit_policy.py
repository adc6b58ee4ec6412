"""SEAL's loop on a language model: samples, likelihoods, batched rewards, a round, contract."""

import itertools

import pytest
import torch
from optional import needs
from oracles import F64, context

from metabench.conformance.kit import task_checks
from metabench.contract import autodiff
from metabench.contract.method import State, inner_loop
from metabench.contract.seeds import generator
from metabench.core.errors import MetabenchError, SettingError
from metabench.core.registry import methods, tasks
from metabench.core.settings import build
from metabench.tasks.models.language import lora

needs("transformers")
from self_edits import small_world  # noqa: E402

Task, ReSTEM = tasks.get("self_edit_policy"), methods.get("restem")
SIZES = {"rank": 1, "policy_rank": 2, "targets": ("q", "down"), "question_tokens": 40,
         "edit_tokens": 40, "questions": 2, "sample_tokens": 12, "documents": 3,
         "adapt_epochs": 3, "adapt_lr": 0.05}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with small_world(tmp_path_factory.mktemp("data")) as model:
        yield model


def small(world, **more):
    return Task(**{**SIZES, "model": world, "dtype": "float64", **more})


def moved(problem, seed=0):
    gen = generator("moved", seed)
    return {k: v + 0.1 * torch.randn(v.shape, generator=gen, dtype=F64)
            for k, v in problem.init_outer().items()}  # fmt: skip


def test_likelihoods_are_those_of_the_tokens_that_were_sampled(world):
    problem = context(small(world)).problem
    lam, episode = moved(problem), problem.episode("train", 0)
    actions = problem.sample(lam, episode, 4, generator("edits"))
    found = problem.log_likelihood(lam, episode, actions)
    prompt = problem.prompt(problem.passage_of(episode), "implications")
    for i in range(4):
        text, total = list(prompt), 0.0
        for token, counts in zip(actions["ids"][i].tolist(), actions["mask"][i], strict=True):
            logits = problem.lm.decoder.logits(torch.tensor([text]), [problem.writer(lam)])
            total += float(counts * logits[0, -1].log_softmax(-1)[token])
            text.append(token)
        assert float(found[i]) == pytest.approx(total, rel=1e-10)
    first = problem.log_likelihood(problem.init_outer(), episode, actions)
    assert not torch.allclose(first, found)


def test_texts_to_train_on_are_the_passage_and_the_lines_with_their_title(world):
    problem = context(small(world, edit_tokens=200)).problem
    passage = problem.passage("train", 0)
    ids, mask = problem.training_texts(passage, "one\n\n  two \nthree")
    texts = [problem.lm.decode(row.tolist()) for row in ids]
    title = passage.title
    assert texts == [f"{title}\n{passage.context}", f"{title}\none", f"{title}\ntwo"]
    assert mask[:, 0].tolist() == [0.0] * 3
    assert mask.sum(1).tolist() == [len(text.encode()) for text in texts]


@pytest.mark.parametrize("at_once", [16, 4])
def test_rewards_of_a_batch_are_those_of_one_training_after_another(world, at_once):
    """Inner steps by the harness's own loop, judged by hand: the mean of two repetitions."""
    ctx = context(small(world, repeats=2, at_once=at_once), "adam")
    problem = ctx.problem
    lam, episode = moved(problem), problem.episode("train", 1)
    actions = problem.sample(lam, episode, 3, generator("edits"))
    found = problem.rewards(lam, episode, actions)
    thetas = problem.adapted(lam, episode, actions)
    ids, mask = problem.edits(episode, actions)
    for i in range(3):
        expected = []
        for r in range(2):
            texts = type(episode)({"ids": ids[i], "mask": mask[i]}, episode.outer)
            start = problem.fresh(r)
            theta, _ = inner_loop(ctx, lam, start, texts, steps=3, lr=0.05)
            expected.append(problem.metrics(lam, theta, episode)["log_likelihood"])
            if r == 0:
                for k, v in theta.items():
                    torch.testing.assert_close(thetas[k][i], v.detach(), rtol=1e-10, atol=1e-10)
                assert float(autodiff.norm(autodiff.axpy(-1.0, start, theta))) > 1e-2
        assert float(found[i]) == pytest.approx(sum(expected) / 2, rel=1e-10)
    assert len({round(x, 8) for x in found.tolist()}) == 3


@pytest.mark.parametrize("size", [1, 2])
def test_steps_on_some_of_the_documents_are_those_of_an_optimiser_alone(world, size):
    """torch.optim.Adam, one training after another; they have 3, 2 and 1 documents."""
    problem = context(small(world, documents_a_step=size, documents=3)).problem
    lam, episode = moved(problem), problem.episode("train", 1)
    passage = problem.passage_of(episode)
    texts = [problem.training_texts(passage, edit) for edit in ("one\ntwo two", "three", "")]
    ids, mask = (torch.stack(x) for x in zip(*texts, strict=True))
    starts, numbers, epochs = [problem.fresh(r) for r in (0, 1, 0)], [0, 1, 0], [3, 3, 2]
    found = problem.trained(lam, ids, mask, lora.stacked(starts), epochs, 0.05, numbers)
    for i, (number, n) in enumerate(zip(numbers, epochs, strict=True)):
        theta = {k: v.clone().requires_grad_() for k, v in starts[i].items()}
        rule = torch.optim.Adam(theta.values(), lr=0.05)
        plan = problem.order(range(3 - i), n, number)
        assert len(plan) == n * -(-(3 - i) // size)
        for turn in plan:
            rule.zero_grad()
            problem.inner_loss(lam, theta, {"ids": ids[i, turn], "mask": mask[i, turn]}).backward()
            rule.step()
        for k, v in theta.items():
            torch.testing.assert_close(found[k][i], v.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_a_falling_step_size_and_clipped_gradients_are_those_of_torch(world, rule):
    """LinearLR and clip_grad_norm_, one training after another: they take 9, 6 and 2 steps."""
    most, lr = 0.02, 0.05
    task = small(world, documents_a_step=1, adapt_solver=rule, adapt_decay="linear",
                 adapt_clip=most)  # fmt: skip
    problem = context(task).problem
    lam, episode = moved(problem), problem.episode("train", 1)
    passage = problem.passage_of(episode)
    texts = [problem.training_texts(passage, edit) for edit in ("one\ntwo two", "three", "")]
    ids, mask = (torch.stack(x) for x in zip(*texts, strict=True))
    starts, epochs = [problem.fresh(0)] * 3, [3, 3, 2]
    found = problem.trained(lam, ids, mask, lora.stacked(starts), epochs, lr)
    for i, n in enumerate(epochs):
        plan = problem.order(range(3 - i), n, 0)
        theta = {k: v.clone().requires_grad_() for k, v in starts[i].items()}
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule]
        optimiser, sizes, norms = kind(theta.values(), lr=lr), [], []
        falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1e-30, len(plan))
        for turn in plan:
            optimiser.zero_grad()
            problem.inner_loss(lam, theta, {"ids": ids[i, turn], "mask": mask[i, turn]}).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(theta.values(), most)))
            sizes.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            falling.step()
        assert sizes == pytest.approx([lr * (len(plan) - t) / len(plan) for t in range(len(plan))])
        assert max(norms) > most, "nothing was clipped"
        for k, v in theta.items():
            torch.testing.assert_close(found[k][i], v.detach(), rtol=1e-9, atol=1e-12)


def test_a_falling_step_size_multiplies_the_rate_of_each_recipe(world):
    task = small(world, documents_a_step=1, adapt_solver="sgd", adapt_decay="linear")
    problem = context(task).problem
    lam, episode = moved(problem), problem.episode("train", 0)
    ids, mask = problem.training_texts(problem.passage_of(episode), "one")
    two = lora.stacked([problem.start] * 2)
    rates = torch.tensor([0.05, 0.02], dtype=F64)[:, None, None]
    found = problem.trained(lam, ids.expand(2, -1, -1), mask.expand(2, -1, -1), two, [2, 3], rates)
    for i, (lr, n) in enumerate(((0.05, 2), (0.02, 3))):
        alone = problem.trained(lam, ids[None], mask[None], lora.stacked([problem.start]), [n], lr)
        for k, v in alone.items():
            torch.testing.assert_close(found[k][i], v[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("adapter", ["functional", "peft"])
def test_the_adaptation_and_the_policy_have_linear_maps_of_their_own(world, adapter):
    if adapter == "peft":
        needs("peft")
    maps = ("q", "k", "v", "o", "gate", "up", "down")
    task = small(world, dtype="float32", adapter=adapter, targets=("q", "v"), policy_targets=maps)
    ctx = context(task)
    problem, method = ctx.problem, ReSTEM(samples=2, outer_lr=1e-2)
    state, _ = method.step(ctx, method.init(ctx))

    def where(deltas):
        return {k.split(".")[1] for k in deltas}

    first = problem.init_outer()
    assert where(first) == set(maps)
    assert where(k for k, v in state.lam.items() if not torch.equal(v, first[k])) == set(maps)
    episode = problem.episode("train", 1)
    theta = method.adapt(ctx, state, episode)
    assert where(theta) == {"q", "v"}
    assert where(k for k, v in theta.items() if not torch.equal(v, problem.start[k])) == {"q", "v"}
    # What is judged is the sum of both: neither alone answers as it does.
    likely = [
        problem.metrics(a, b, episode)["log_likelihood"]
        for a, b in ((state.lam, theta), (first, theta), (state.lam, problem.start))
    ]
    assert len({round(x, 4) for x in likely}) == 3
    same = context(small(world)).problem
    assert where(same.init_outer()) == where(same.start) == {"q", "down"}


def test_an_epoch_takes_every_document_once_in_an_order_of_its_own(world):
    problem = context(small(world, documents_a_step=2)).problem
    taken = [0, 1, 2, 4, 5, 7, 8]
    plan = problem.order(taken, 3, 0)
    assert [len(turn) for turn in plan] == [2, 2, 2, 1] * 3
    plans = [*(plan[i : i + 4] for i in (0, 4, 8)), problem.order(taken, 1, 1)]
    orders = [list(itertools.chain(*turns)) for turns in plans]
    assert all(sorted(order) == taken for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert problem.order(taken, 3, 0) == plan
    whole = context(small(world)).problem
    assert whole.order(taken, 2, 0) == [taken, taken]


def test_exact_match_is_a_reward_too(world):
    problem = context(small(world, reward="exact_match")).problem
    lam, episode = moved(problem), problem.episode("train", 1)
    actions = problem.sample(lam, episode, 2, generator("edits"))
    assert problem.rewards(lam, episode, actions).tolist() == [0.0, 0.0]


def test_a_round_makes_the_best_edits_likelier(world):
    ctx = context(small(world, meta_batch=3))
    method = ReSTEM(samples=3, outer_lr=1e-2, epochs=3)
    first = method.init(ctx)
    episodes = ctx.training_episodes()
    kept = []
    for e in episodes:
        actions, rewards = method.explore(ctx, first.lam, e)
        best = method.chosen(rewards)[0]
        assert float(rewards[best]) == float(rewards.max())
        kept.append((e, {k: v[best : best + 1] for k, v in actions.items()}))
    before = ctx.meter.counts.trainings
    state, log = method.step(ctx, first)
    assert ctx.meter.counts.trainings - before == 9 and log["kept"] == 3
    problem = ctx.problem
    for pair in kept:
        gain = problem.log_likelihood(state.lam, *pair) - problem.log_likelihood(first.lam, *pair)
        assert float(gain) > 0.1
    theta = method.adapt(ctx, State(state.lam), problem.episode("test", 0))
    assert {k: v.shape for k, v in theta.items()} == {k: v.shape for k, v in problem.start.items()}


def test_training_on_the_passage_lowers_its_loss(world):
    ctx = context(small(world), "adam")
    episode, lam = ctx.problem.episode("test", 0), ctx.problem.init_outer()
    start = ctx.problem.init_inner(lam, episode)
    theta, _ = inner_loop(ctx, lam, start, episode, steps=5, lr=0.05)
    losses = [float(ctx.problem.inner_loss(lam, t, episode.batch(0))) for t in (start, theta)]
    assert losses[1] < losses[0] - 0.01


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_keeps_the_contract(world, dtype):
    task = small(world, dtype=dtype, edit_tokens=16, question_tokens=16, targets=("v",),
                 sample_tokens=6, documents=2, adapt_epochs=2)  # fmt: skip
    for _, check in task_checks(task, methods=[ReSTEM(samples=2), methods.get("fixed")()]):
        check()


def test_the_base_is_never_moved(world):
    ctx = context(small(world))
    held = {k: v.clone() for k, v in ctx.problem.lm.decoder.weights.items()}
    method = ReSTEM(samples=2)
    method.step(ctx, method.init(ctx))
    assert all(torch.equal(v, held[k]) for k, v in ctx.problem.lm.decoder.weights.items())
    assert not any(v.requires_grad for v in held.values()) and lora.ARCHITECTURES[0] == "llama"


def test_under_peft_rewards_and_trainings_are_the_same(world):
    needs("peft")
    found = []
    for adapter in ("functional", "peft"):
        task = small(world, dtype="float32", adapter=adapter, at_once=2, adapt_solver="sgd")
        problem = context(task).problem
        lam = {k: v.float() for k, v in moved(problem).items()}
        episode = problem.episode("train", 1)
        actions = problem.sample(lam, episode, 3, generator("edits"))
        thetas = problem.adapted(lam, episode, actions)
        likely = problem.log_likelihood(lam, episode, actions)
        found.append((actions, likely, thetas, problem.rewards(lam, episode, actions)))
    for ours, its in zip(*found, strict=True):
        torch.testing.assert_close(its, ours, rtol=1e-4, atol=1e-4)
    with pytest.raises(MetabenchError, match="no vmap"), autodiff.functional():
        problem.inner_loss(lam, problem.start, episode.batch(0))


def test_documents_in_passes_of_any_size_are_trained_on_alike(world):
    ends = []
    for documents_at_once in (1, 8):
        problem = context(small(world, documents_at_once=documents_at_once)).problem
        lam, episode = moved(problem), problem.episode("train", 1)
        text = "one\ntwo two\nthree"
        ids, mask = problem.training_texts(problem.passage_of(episode), text)
        assert len(problem.terms(lam, ids, mask)) == (3 if documents_at_once == 1 else 2)
        start = lora.stacked([problem.start])
        ends.append(problem.trained(lam, ids[None], mask[None], start, [3], 0.05))
    for k, v in ends[0].items():
        torch.testing.assert_close(ends[1][k], v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("adapter", ["functional", "peft"])
def test_prompts_and_edits_longer_than_the_model_reads_are_refused(world, adapter):
    if adapter == "peft":
        needs("peft")
    task = small(world, sample_tokens=400, adapter=adapter, dtype="float32")
    with pytest.raises(SettingError, match=r"edit_tokens . sample_tokens, .*reads at most 512"):
        context(task)


def test_choices_that_mean_nothing_are_refused():
    """A temperature at which logits overflow; a recipe, or a linear map, that is there twice."""
    with pytest.raises(SettingError, match=r"temperature cannot be 1e-300: .* equal to 0.001"):
        build(Task, {"temperature": 1e-300}, "task self_edit_policy")
    for maps, said in ((["q", "q"], "'q' is named twice"), ([], "name at least one linear map")):
        with pytest.raises(SettingError, match=f"policy_targets: {said}"):
            build(Task, {"policy_targets": maps}, "task self_edit_policy")
    for name, values in (("rates", [0.1, 0.1]), ("epochs", [])):
        with pytest.raises(SettingError, match=f"{name}: name each choice once, and at least one"):
            build(tasks.get("recipe_bandit"), {name: values}, "task recipe_bandit")
