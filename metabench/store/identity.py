"""The id of a store, by which jobs know that the folder at its path is still that store."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from metabench.core.errors import StoreError
from metabench.store.files import write_atomic
from metabench.store.store import CLUSTER

ID = "store-id"
"""The file, among the submissions: a store that was never submitted from needs none."""


def identity(root: Path) -> str:
    """The id of the store at ``root``, drawn where it has none; the same for all who ask.

    Raises StoreError where it can be neither read nor kept.
    """
    path = root / CLUSTER / ID
    draft = path.with_name(f".{ID}.{uuid.uuid4().hex}.tmp")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(draft, uuid.uuid4().hex.encode())
            with contextlib.suppress(FileExistsError):  # of two launchers one draws it
                os.link(draft, path)
        return path.read_text(errors="replace")
    except OSError as error:
        raise StoreError(f"cannot keep the id of the store in {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def check(root: Path, known: str) -> None:
    """Raise StoreError where ``root`` is not the store of the id ``known`` any more; "" is that of
    submissions by earlier versions, which is not checked."""
    try:
        found = (root / CLUSTER / ID).read_text(errors="replace") if known else ""
    except (FileNotFoundError, NotADirectoryError):
        found = "none"
    except OSError:  # a file server that does not answer says nothing of the store
        return
    if found != known:
        raise StoreError(
            f"the store that was submitted is not at {root} any more: it was moved or replaced; "
            "nothing is written there; submit again with --store and its new folder"
        )
