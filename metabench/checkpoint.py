"""Where a run stands between two outer steps, on disk: sealed, and read without running code."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metabench.cell import canonical
from metabench.method import State
from metabench.store import write_atomic

MAGIC = b"metabench checkpoint 1 "


class Damaged(Exception):
    """A checkpoint that cannot be gone on from; the text says why."""


def save(path: Path, content: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors, numbers, strings and None atomically.

    ``made_with`` says under what conditions going on gives the same bits. Raises StoreError where
    the disk refuses.
    """
    buffer = io.BytesIO()
    buffer.write(canonical(made_with).encode() + b"\n")
    torch.save(dict(content), buffer)
    data = buffer.getvalue()
    write_atomic(path, MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def load(path: Path, made_with: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :func:`save` wrote, tensors where they were; None where there is no such file.

    Raises Damaged, also where it was made under other conditions.
    """
    try:
        head, _, data = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None
    if not head.startswith(MAGIC):
        raise Damaged("is not a checkpoint")
    if hashlib.sha256(data).hexdigest().encode() != head[len(MAGIC) :]:
        raise Damaged("is not what was written: its sha256 differs")
    conditions, _, payload = data.partition(b"\n")
    then = json.loads(conditions)
    for name in sorted(made_with.keys() | then.keys()):
        if then.get(name) != made_with.get(name):
            raise Damaged(f"was made with {name} {then.get(name)}, now {made_with.get(name)}")
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
    except Exception as error:
        raise Damaged(f"holds something other than plain data: {error}") from None
    return content


def pack(state: State) -> dict[str, Any]:
    """A state as plain data."""
    return {"lam": state.lam, "theta": state.theta, "memory": state.memory}


def unpack(data: Mapping[str, Any]) -> State:
    """The state that :func:`pack` was given."""
    return State(data["lam"], data["theta"], data["memory"])
