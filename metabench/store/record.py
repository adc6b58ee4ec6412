"""What a run leaves behind: one record, one learning curve, one final lam. Plain data, no torch."""

from __future__ import annotations

import functools
import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from metabench.core.cell import Cell
from metabench.core.errors import StoreError
from metabench.core.text import type_of

SCHEMA = 1
"""Version of the record's own layout."""


Status = Literal["done", "failed", "diverged", "timeout"]
STATUSES: tuple[Status, ...] = get_args(Status)

Curve = dict[str, list[float | None]]
"""Columns of equal length; ``step`` counts outer steps done; None where a row has no such value.

``train/NAME`` what the method logged (mean since the last row), ``valid/NAME`` the mean over
validation episodes, ``selection/NAME`` over those of the split "selection" where the budget chooses
by it, ``cost/NAME`` counts so far, ``cost/seconds`` training seconds so far, ``looks/cost`` inner
gradients that evaluations so far have cost (where the budget charges them), ``lam/NAME`` entries of
a small lam (``lam/NAME[3]``) or ``lam/NAME.mean`` ``.std`` ``.min`` ``.max`` of a large one.
"""

RETRAINED = "@retrained"
"""After the name of a split: metrics of a theta trained anew at lam (``Budget.retrain_steps``)."""

Count = Annotated[int, Field(ge=0, lt=2**63)]

READ = {"machine": dict, "versions": dict, "device": str, "ranks": int}
"""What is read of an environment, by type; all else of it is only shown."""


def _typed(environment: dict[str, Any]) -> dict[str, Any]:
    for name, kind in READ.items():
        if not isinstance(found := environment.get(name, kind()), kind):
            raise ValueError(f"{name} is {type_of(found)}")
    if not 0 <= environment.get("ranks", 1) < 2**31:
        raise ValueError(f"ranks is {environment['ranks']}")
    return environment


Environment = Annotated[dict[str, Any], AfterValidator(_typed)]


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over ``n`` episodes, their standard deviation, and the half-width of the
    95 % t-interval of the mean over episodes (None where n is 1)."""

    mean: float
    n: Count
    std: float | None = None
    ci95: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Record:
    """The one final record of a cell.

    ``metrics``: evaluation name ("test", "valid", ...) to metric to estimate, at
    ``selected_step``. ``cost``: counts (``meter.Counts``), ``seconds`` of training
    (what is in them: :class:`metabench.run.loop.Loop`), ``evaluation_seconds``,
    ``peak_memory_bytes`` (of the process), on a GPU also ``peak_device_memory_bytes``,
    ``peak_tensor_bytes`` where the budget measures memory. ``lam``: ``numbers``, ``sha256`` of the
    values, ``shapes``, ``summary`` of each part, ``values`` where there are at most 64. ``files``:
    name in the cell's folder to sha256.
    """

    key: str
    cell: Cell
    status: Status
    reason: str = ""
    traceback: str = ""
    seeds: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    selected_step: Count | None = None
    steps: Count = 0
    cost: dict[str, float] = field(default_factory=dict)
    lam: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    environment: Environment = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    started: str = ""
    ended: str = ""
    attempts: Count = 1
    schema: int = SCHEMA

    @property
    def raised_at(self) -> str:
        """File and line where the error was raised, "" where no traceback is kept: the last ones
        that are no installed library's (metabench apart), else the last."""
        frames = re.findall(r'^  File "(.+)", line (\d+)', self.traceback, re.MULTILINE)
        own = [f for f in frames if "/lib/python" not in f[0] or "/metabench/" in f[0]]
        return ":".join((own or frames)[-1]) if frames else ""

    def whole(self) -> Record:
        """The record itself. Raises StoreError where it is a :class:`ScoresOnly`."""
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = asdict(self)
        data["key"] = self.cell.key
        return data

    def outcome(self) -> dict[str, Any]:
        """The part that a resumed run must share with an undisturbed one to the last bit.

        Without clocks, machine, attempts, and memory; the curve is compared by its own file.
        """
        data = self.as_dict()
        clocks = {"seconds", "evaluation_seconds", "peak_memory_bytes", "peak_device_memory_bytes"}
        data["cost"] = {k: v for k, v in data["cost"].items() if k not in clocks}
        for name in ("environment", "started", "ended", "attempts", "files", "notes"):
            del data[name]
        return data


@dataclass(frozen=True)
class ScoresOnly(Record):
    """What an arena ships of a run (:mod:`metabench.suites.arena.scores`): enough to rank by. The
    rest is left out, so that no store takes it and nobody publishes it as a record."""

    def whole(self) -> Record:
        """Raises StoreError."""
        raise StoreError(
            f"{self.cell}: what ships with an arena has the scores of this run and no whole record"
        )


@functools.cache
def _adapter() -> TypeAdapter[Record]:
    """Made where a record is read: a plan of an empty store need not wait for it."""
    return TypeAdapter(Record)


class NewerRecord(ValueError):
    """A record that a later version of metabench has written."""


def from_dict(data: dict[str, Any]) -> Record:
    """A record from JSON data.

    Raises NewerRecord for one of a later schema, ValueError where a field is missing, of the wrong
    type, or where the key is not the hash of the cell.
    """
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerRecord(
            f"is of a newer metabench: record schema {schema}, this version reads {SCHEMA}"
        )
    try:
        record = _adapter().validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'].lower()}") from None
    if record.schema != SCHEMA:
        raise ValueError(f"record schema {record.schema}, this version reads {SCHEMA}")
    if record.key != record.cell.key:
        raise ValueError(f"key {record.key[:10]} is not the hash of its cell")
    return record


def curve_outcome(curve: Curve) -> Curve:
    """The columns that must be identical between a resumed and an undisturbed run."""
    return {k: v for k, v in curve.items() if k != "cost/seconds"}
