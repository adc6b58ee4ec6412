"""Word counts of 20 Newsgroups, as a sparse matrix with a post in each row."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from metabench.core.errors import MetabenchError
from metabench.datasets import locate

from .formats import arrays

NAMES = ("data", "indices", "indptr", "labels", "split", "vocab")


class Posts(NamedTuple):
    """Rows of unit norm [posts, words], topics int64 [posts] from 0 to 19, and which posts are of
    the official test part, bool [posts]."""

    x: Any
    topics: np.ndarray
    later: np.ndarray


def load() -> Posts:
    """All posts in the file's order. What comes back is shared: never change it in place.

    Raises DataMissing, and MetabenchError where the file is damaged.
    """
    return _load(locate.find("newsgroups20").resolve() / "newsgroups20_counts.npz")


@lru_cache(maxsize=1)
def _load(path: Path) -> Posts:
    with arrays.readable(path, "newsgroups20"):
        counts, columns, starts, topics, split, words = arrays.read(path, *NAMES)
        shape = (len(topics), len(words))
        x = scipy.sparse.csr_matrix(
            (counts.astype(np.float64), columns.astype(np.int64), starts), shape
        )
        x.check_format()
    lengths = np.sqrt(np.asarray(x.multiply(x).sum(1)).ravel())
    if not (lengths.all() and len(split) == len(topics)):
        raise MetabenchError(f"{path}: there are posts without words, or without a part")
    rows = scipy.sparse.diags_array(1 / lengths) @ x
    return Posts(rows.tocsr(), topics.astype(np.int64), split == 1)
