"""What an examination of this machine finds, and the commands that repair it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "missing", "too old", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``repair``: commands, in order. ``essential``: metabench does not work
    as it should without it."""

    section: str
    name: str
    verdict: Verdict
    detail: str = ""
    repair: tuple[str, ...] = ()
    essential: bool = False

    @property
    def bad(self) -> bool:
        """Whether something essential is not right."""
        return self.essential and self.verdict not in ("ok", "note")
