"""Which passages and sentences a question brings up: BM25 (bm25s) and static embeddings
(wordllama).

A static embedding is the mean of its tokens' vectors, scaled to length 1; the first 64 of the 256
numbers are one of their own (Matryoshka). Both packages are the extra ``rag``.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("bm25s", "wordllama")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"“(\[])")


def sentences(text: str) -> list[str]:
    """A text cut after full stops, question and exclamation marks that a capital or a digit
    follows."""
    return _END.split(text.strip())


def bm25(texts: Sequence[str], questions: Sequence[str], k: int) -> np.ndarray:
    """The numbers of the k best texts for each question, int64 [questions, k], the best first."""
    library: Any = importlib.import_module("bm25s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)

    def words(some: Sequence[str]) -> Any:
        return library.tokenize(list(some), stopwords="en", show_progress=False)

    index = library.BM25()
    index.index(words(texts), show_progress=False)
    found, _ = index.retrieve(words(questions), k=k, show_progress=False)
    return np.asarray(found, dtype=np.int64)


def nearest(texts: np.ndarray, questions: np.ndarray, k: int) -> np.ndarray:
    """The same by the cosine of embeddings [texts, d] and [questions, d]; of equals the first."""
    order = np.argsort(-(questions @ texts.T), axis=1, kind="stable")
    return order[:, :k].astype(np.int64)


def embedded(texts: Sequence[str]) -> np.ndarray:
    """Static embeddings [texts, 256], float32, of length 1."""
    return np.asarray(_model().embed(list(texts), norm=True))


def truncated(embeddings: np.ndarray, d: int) -> np.ndarray:
    """Their first d numbers, of length 1."""
    cut = embeddings[:, :d]
    return np.asarray(cut / np.linalg.norm(cut, axis=1, keepdims=True))


def lengths(texts: Sequence[str]) -> np.ndarray:
    """Tokens of each text by the embeddings' tokenizer, Llama 2's; int64 [texts]."""
    found = _model().tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return np.array([sum(one.attention_mask) for one in found], dtype=np.int64)


@lru_cache(maxsize=1)
def _model() -> Any:
    wordllama: Any = importlib.import_module("wordllama")
    # Its own search for the tokenizer that it ships looks into a folder of another name.
    here = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=here, disable_download=True)
