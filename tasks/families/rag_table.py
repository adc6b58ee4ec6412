"""What every configuration of a retrieval pipeline puts before its reader, question by question.

A configuration is (K, C, E): E finds the K best passages for a question, of whose sentences the
share C that is nearest to it (by the 256 numbers of a static embedding, whatever E) is kept, in the
passages' order. Of each the table has

    tokens   of the question and the context
    found    tokens of the context up to the end of the first sentence with the answer; 0: without
    gain     log p a token of the answer given the context, less the same without (optional)

all [configuration, question], K slowest and E fastest.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metabench.contract.seeds import generator
from metabench.core.errors import SettingError
from metabench.datasets import locate

from ..data import derived
from ..models.language import retrieval
from ..models.language.pretrained import LanguageModel, Passage, development

PASSAGES = (1, 3, 5, 7, 9)
COMPRESSION = (0.3, 0.5, 0.7, 0.9, 1.0)
RETRIEVERS = ("BM25", "static-64", "static-256")
CONFIGURATIONS = tuple(itertools.product(PASSAGES, COMPRESSION, RETRIEVERS))


class Question(NamedTuple):
    """A question, its answer, and for each retriever the 9 best passages, a list of their
    sentences each (numbers in all sentences)."""

    text: str
    answer: str
    retrieved: tuple[list[list[int]], ...]


class Corpus(NamedTuple):
    """All sentences: texts, tokens int64 [n], embeddings [n, 256]; the questions and theirs."""

    sentences: list[str]
    lengths: np.ndarray
    embeddings: np.ndarray
    questions: list[Question]
    asked: np.ndarray
    asked_lengths: np.ndarray


def squad(questions: int, passages: int | None) -> derived.Arrays:
    """``tokens`` and ``found``, int32 [75, questions], of questions of SQuAD's development set,
    always the same ones; from the cache where they are.

    ``passages``: the first so many of the set alone; None: all 2,067. Raises DataMissing.
    """
    made_from = source(questions, passages)
    return derived.kept("rag-squad", made_from, lambda: counted(corpus(questions, passages)))


def source(questions: int, passages: int | None) -> dict[str, object]:
    """What the table depends on."""
    data = hashlib.sha256((locate.find("squad") / "squad_seal.parquet").read_bytes()).hexdigest()
    packages = {name: version(name) for name in retrieval.PACKAGES}
    sizes = {"questions": questions, "passages": passages, "form": 1}
    return {"data": data, **packages, **sizes}


def chosen(held: Sequence[Passage], n: int) -> list[tuple[str, str]]:
    """n questions of the passages and their answers, drawn without replacement. Raises
    SettingError where there are fewer."""
    pairs = [pair for p in held for pair in zip(p.questions, p.answers, strict=True)]
    if n > len(pairs):
        raise SettingError(
            f"task rag_squad: questions is {n // 2}: twice as many are drawn, and the {len(held)} "
            f"passages have {len(pairs)}; take at most {len(pairs) // 2}"
        )
    order = torch.randperm(len(pairs), generator=generator("rag-squad"))[:n].tolist()
    return [pairs[i] for i in order]


def corpus(questions: int, passages: int | None) -> Corpus:
    """Passages cut into sentences, and what each retriever brings up for each question."""
    held = development()[:passages]
    parts = [retrieval.sentences(p.context) for p in held]
    flat = [text for part in parts for text in part]
    ends = list(itertools.accumulate(map(len, parts)))
    numbers = [list(range(end - len(part), end)) for part, end in zip(parts, ends, strict=True)]
    pairs = chosen(held, questions)
    asked, texts = [q for q, _ in pairs], [p.context for p in held]
    whole, of_questions = retrieval.embedded(texts), retrieval.embedded(asked)
    best = [retrieval.bm25(texts, asked, PASSAGES[-1])]
    for d in (64, 256):
        near, near_to = (retrieval.truncated(x, d) for x in (whole, of_questions))
        best.append(retrieval.nearest(near, near_to, PASSAGES[-1]))
    found = [
        Question(q, a, tuple([numbers[p] for p in one[i].tolist()] for one in best))
        for i, (q, a) in enumerate(pairs)
    ]
    lengths, of_asked = retrieval.lengths(flat), retrieval.lengths(asked)
    return Corpus(flat, lengths, retrieval.embedded(flat), found, of_questions, of_asked)


def contexts(held: Corpus, at: int) -> list[list[int]]:
    """The sentences that each configuration keeps for question ``at``."""
    question, out = held.questions[at], []
    for k, c, e in CONFIGURATIONS:
        given = question.retrieved[RETRIEVERS.index(e)][:k]
        pool = [i for part in given for i in part]
        near = -(held.embeddings[pool] @ held.asked[at])
        kept = np.argsort(near, kind="stable")[: math.ceil(c * len(pool) - 1e-9)]
        out.append([pool[i] for i in sorted(kept.tolist())])
    return out


def counted(held: Corpus) -> derived.Arrays:
    """``tokens`` and ``found``."""
    shape = (len(CONFIGURATIONS), len(held.questions))
    tokens, found = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for at, question in enumerate(held.questions):
        answer = whole_words(question.answer)
        told: dict[int, bool] = {}
        for row, kept in enumerate(contexts(held, at)):
            ends = np.cumsum(held.lengths[kept])
            for i, end in zip(kept, ends.tolist(), strict=True):
                if i not in told:
                    told[i] = answer.search(held.sentences[i]) is not None
                if told[i]:
                    found[row, at] = end
                    break
            tokens[row, at] = ends[-1] + held.asked_lengths[at]
    return {"tokens": tokens, "found": found}


def whole_words(answer: str) -> re.Pattern[str]:
    """The answer in any case, with no letter or digit right before or after it."""
    return re.compile(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", re.IGNORECASE)


def likelihoods(
    model: str, lm: LanguageModel, questions: int, passages: int | None
) -> derived.Arrays:
    """``gain``, float32 [75, questions], by a language model; from the cache where it is. A
    context is read once, however many configurations give it."""

    def build() -> derived.Arrays:
        held = corpus(questions, passages)
        return {"gain": np.stack([gains(lm, held, i) for i in range(questions)], axis=1)}

    weights = [lm.decoder.linear(layer, "q") for layer in (0, lm.decoder.layers - 1)]
    sums = [float(w.double().abs().sum()) for w in weights]
    made_from = {**source(questions, passages), "model": model, "weights": sums}
    return derived.kept("rag-squad-likelihood", made_from, build)


def gains(lm: LanguageModel, held: Corpus, at: int) -> np.ndarray:
    """Of each configuration for one question, float32 [75]."""
    question = held.questions[at]
    alone = log_likelihood(lm, "", question)
    read: dict[tuple[int, ...], float] = {}
    for kept in map(tuple, contexts(held, at)):
        if kept not in read:
            context = " ".join(held.sentences[i] for i in kept)
            read[kept] = log_likelihood(lm, context, question) - alone
    return np.array([read[tuple(kept)] for kept in contexts(held, at)], dtype=np.float32)


@torch.no_grad()
def log_likelihood(lm: LanguageModel, context: str, question: Question) -> float:
    """log p a token of the answer after the context and the question; a context too long for the
    model loses its end."""
    asked = lm.encode(f"\nQuestion: {question.text}\nAnswer:")
    answer = lm.encode(f" {question.answer}")
    given = lm.begin + lm.encode(context)
    if lm.decoder.context is not None:
        given = given[: max(0, lm.decoder.context - len(asked) - len(answer))]
    ids: Tensor = torch.tensor([given + asked + answer], device=lm.decoder.device)
    wanted = torch.zeros(ids[:, 1:].shape, dtype=torch.float32, device=ids.device)
    wanted[:, -len(answer) :] = 1.0
    return -float(lm.decoder.surprise(ids, (), wanted).sum()) / len(answer)


def synthetic(questions: int) -> derived.Arrays:
    """A table without data: tokens 200 K C, and a share of answers that is logistic in K and C,
    with an offset of E, for questions of uniform difficulty u:

        kept where u < sigmoid(-1 + 0.25 K + 2 (C - 0.6) + (0.6, 0, 0.3) by E)
    """
    gen = generator("rag-synthetic")
    u = torch.rand(questions, generator=gen, dtype=torch.float64).numpy()
    place = torch.rand(questions, generator=gen, dtype=torch.float64).numpy()
    offset = dict(zip(RETRIEVERS, (0.6, 0.0, 0.3), strict=True))
    logit = np.array([-1 + 0.25 * k + 2 * (c - 0.6) + offset[e] for k, c, e in CONFIGURATIONS])
    tokens = np.array([round(200 * k * c) for k, c, _ in CONFIGURATIONS])
    kept = u[None] < 1 / (1 + np.exp(-logit[:, None]))
    found = kept * np.ceil(place[None] * tokens[:, None])
    whole = np.broadcast_to(tokens[:, None], kept.shape)
    return {"tokens": whole.astype(np.int32), "found": found.astype(np.int32)}
