"""How a cell is run, apart from what it computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from metabench.core.cell import Budget
from metabench.core.errors import UnknownName
from metabench.run.events import Listener

Engine = Literal["auto", "loop", "vmap", "graph"]
Parts = tuple[Any, Any, Any, Budget]
"""Task, method, solver, and budget."""


@dataclass(frozen=True)
class RunOptions:
    """How a cell is run: nothing here changes a result on the same kind of device."""

    device: torch.device
    listener: Listener
    checkpoint_seconds: float
    time_limit: float | None
    workers: int
    engine: Engine
    stop: Callable[[], bool]
    begun: float = field(default_factory=time.monotonic)
    """From when the time limit counts."""

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise UnknownName("engine", self.engine, get_args(Engine))
