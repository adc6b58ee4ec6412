"""TOML as people write it: with a byte order mark, and whatever is no TOML as one kind of error."""

from __future__ import annotations

import re
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


_TABLE = re.compile(r"^\s*\[", re.MULTILINE)


def head(path: Path) -> dict[str, Any]:
    """What a file says before its first table, without reading what follows where that can be
    helped: listings read every suite. Raises as :func:`read`."""
    text = path.read_text(encoding="utf-8-sig")
    if (table := _TABLE.search(text)) is not None:
        try:
            return loads(text[: table.start()])
        except ValueError:  # the bracket stood within a value, or the file is no TOML
            pass
    return {name: value for name, value in loads(text).items() if not _is_table(value)}


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)
    )
