"""A method that the arena has already: unrolling under another name, with the same space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from metabench import method
from metabench.methods.bilevel import Bilevel


@method("renamed")
@dataclass(frozen=True)
class Renamed(Bilevel):
    """Unrolling, renamed."""

    space: ClassVar[dict[str, Any]] = {
        "inner_lr": {"low": 0.1, "high": 1.8, "log": True, "per_smoothness": True},
        "outer_lr": {"low": 1e-3, "high": 1.0, "log": True},
        "inner_steps": {"low": 1, "high": 20, "log": True, "whole": True},
    }
