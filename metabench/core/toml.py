"""TOML as people write it: with a byte order mark, and whatever is no TOML as one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def loads(text: str) -> dict[str, Any]:
    """What a text says. Raises ValueError with the reason where it is no TOML."""
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read(path: Path) -> dict[str, Any]:
    """What a file says. Raises ValueError as :func:`loads`, and OSError."""
    return loads(path.read_text(encoding="utf-8-sig"))
