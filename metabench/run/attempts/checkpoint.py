"""Where a run stands between two outer steps, on disk: sealed, and read without running code."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from metabench.contract import autodiff
from metabench.contract.method import State
from metabench.core.cell import canonical
from metabench.core.costs import Counts
from metabench.run.evaluation import Metrics
from metabench.store.files import Unreadable, read, write_atomic
from metabench.store.record import Curve, Estimate

MAGIC = b"metabench checkpoint 2 "


class Damaged(Exception):
    """A checkpoint that a run cannot continue from; the text says why."""


@dataclass(frozen=True)
class Boundary:
    """All that a run has become up to the boundary between two outer steps.

    Replaced as a whole, so that an interrupt at any moment finds one boundary or the next.
    """

    state: State
    step: int = 0
    counts: dict[str, int] = field(default_factory=lambda: Counts().as_dict())
    logs: dict[str, list[float]] = field(default_factory=dict)
    """Name to sum and number of what the method logged since the last row."""
    curve: Curve = field(default_factory=dict)
    best: State | None = None
    best_step: int = 0
    valid: Metrics = field(default_factory=dict)
    """Of ``best``."""
    selection: Metrics = field(default_factory=dict)
    """Of ``best`` too, where the budget chooses it by that split."""
    idle: int = 0
    """Steps in a row that brought no limit of the budget nearer."""
    metrics: dict[str, Metrics] = field(default_factory=dict)
    """Final evaluations done so far."""

    def pack(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **vars(self),
            "state": _pack(self.state),
            "best": _pack(self.best),
            "valid": _pack_metrics(self.valid),
            "selection": _pack_metrics(self.selection),
            "metrics": {name: _pack_metrics(found) for name, found in self.metrics.items()},
        }

    @classmethod
    def unpack(cls, data: Mapping[str, Any]) -> Boundary:
        """What :meth:`pack` was called on."""
        best = data["best"]
        restored = {
            "state": State(**data["state"]),
            "best": State(**best) if best is not None else None,
            "counts": Counts(**data["counts"]).as_dict(),
            "valid": _unpack_metrics(data["valid"]),
            "selection": _unpack_metrics(data.get("selection", {})),
            "metrics": {name: _unpack_metrics(m) for name, m in data["metrics"].items()},
        }
        return cls(**{**data, **restored})


@dataclass(frozen=True)
class Checkpoint:
    """A boundary, and what an attempt has noted and spent on the way there."""

    boundary: Boundary
    notes: dict[str, Any]
    seconds: float
    """Of training."""
    evaluation_seconds: float
    peak: dict[str, float]
    """Memory, in bytes."""
    attempts: int
    resumed: list[dict[str, Any]]
    """Where earlier attempts were continued."""


Sure = Callable[[], AbstractContextManager[object]]


def save(
    path: Path, content: Checkpoint, made_with: Mapping[str, Any], sure: Sure = nullcontext
) -> None:
    """Write a checkpoint atomically, as plain data, inside ``sure()``, which may refuse.

    ``made_with`` says under what conditions continuing gives the same bits. Raises StoreError where
    the disk refuses.
    """
    write(path, {**vars(content), "boundary": content.boundary.pack()}, made_with, sure)


def write(
    path: Path, content: Mapping[str, Any], made_with: Mapping[str, Any], sure: Sure = nullcontext
) -> None:
    """Seal nested dicts and lists of tensors, numbers, strings and None in a file, for
    :func:`save`.
    """
    buffer = io.BytesIO()
    buffer.write(canonical(made_with).encode() + b"\n")
    torch.save(dict(content), buffer)
    data = buffer.getvalue()
    write_atomic(path, MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n" + data, sure=sure)


def load(path: Path, made_with: Mapping[str, Any]) -> Checkpoint | None:
    """What :func:`save` wrote, tensors where they were; None where there is no such file.

    Raises Damaged, also where it was made under other conditions.
    """
    try:
        whole = read(path)
    except Unreadable as error:
        raise Damaged(error.bad.what) from None
    if whole is None:
        return None
    head, _, data = whole.partition(b"\n")
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
        content = torch.load(io.BytesIO(payload), weights_only=True)
        return Checkpoint(**{**content, "boundary": Boundary.unpack(content["boundary"])})
    except Exception as error:
        raise Damaged(f"cannot be read by this version of metabench: {_what(error)}") from None


def _what(error: Exception) -> str:
    """What a checkpoint holds that it should not, in a few words; torch says it in a page."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return f"it holds a {named[1]}, not plain data alone"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def detached(state: State) -> State:
    """The state without a graph: the same whether it comes from a step or from a checkpoint."""
    return State(**autodiff.detach_tree(vars(state)))


def _pack(state: State | None) -> dict[str, Any] | None:
    return None if state is None else dict(vars(state))


def _pack_metrics(metrics: Metrics) -> dict[str, dict[str, Any]]:
    return {name: asdict(found) for name, found in metrics.items()}


def _unpack_metrics(plain: Mapping[str, dict[str, Any]]) -> Metrics:
    return {name: Estimate(**found) for name, found in plain.items()}


def stamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
