"""Arrays that take a while to compute, kept in the cache by what they were computed from."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from metabench.core.cell import canonical
from metabench.core.errors import MetabenchError, StoreError
from metabench.datasets import cache
from metabench.store import files
from metabench.store.encoding import hash_arrays, npz, unpacked

Arrays = dict[str, np.ndarray]
CHECKSUM = "sha256"
"""Beside the arrays of a file: their own checksum."""


def kept(name: str, made_from: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
    """What ``build`` gives, computed once for each ``made_from``: plain values that say everything
    it depends on.

    A file in the folder ``derived`` of the cache holds it with its checksum. One that is damaged is
    computed anew. Processes that find none at the same time each compute the same and put it there
    whole, the last one's stays. Where the cache cannot be written, nothing is kept.
    """
    key = hashlib.sha256(canonical(dict(made_from)).encode()).hexdigest()[:16]
    try:
        path = cache.folder() / "derived" / f"{name}-{key}.npz"
    except MetabenchError:  # there is no home folder
        return build()
    with suppress(files.Unreadable, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        if (data := files.read(path)) is not None:
            found = unpacked(data)
            said = str(found.pop(CHECKSUM))
            if said == hash_arrays(found):
                return found
    made = build()
    with suppress(StoreError):
        files.ensure_writable(path.parent)
        files.write_atomic(path, npz({**made, CHECKSUM: np.array(hash_arrays(made))}))
    return made
