"""What has a name, from file names and docstrings alone: neither torch nor pydantic is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from metabench.core import toml
from metabench.core.errors import UnknownName
from metabench.core.registry import REGISTRIES, Entry

KINDS = (*REGISTRIES, "suite")


def listing(kind: str | None = None) -> dict[str, list[Entry]]:
    """Names by kind: "task", "method", "solver", "suite" (None: all four), each sorted, with where
    it comes from and a line of description. Imports no task and no method.

    >>> from metabench import api
    >>> [entry.name for entry in api.list_("solver")["solver"]][:3]
    ['adam', 'adamw', 'complex_momentum']

    Raises UnknownName for another kind.
    """
    check_kind(kind)
    out = {k: r.entries() for k, r in REGISTRIES.items() if kind in (None, k)}
    if kind in (None, "suite"):
        folder = suite_folder()
        out["suite"] = [Entry(n, "built-in", _title(folder / f"{n}.toml")) for n in suite_names()]
    return out


def check_kind(kind: str | None) -> None:
    """Raise UnknownName for a kind of thing that there is not."""
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind of thing called", kind, KINDS)


def suite_folder() -> Path:
    """Where the built-in suites are."""
    spec = importlib.util.find_spec("metabench.suite_files")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def suite_names() -> list[str]:
    """Names of the built-in suites, sorted."""
    return sorted(f.stem for f in suite_folder().glob("*.toml"))


def _title(path: Path) -> str:
    try:
        return str(toml.head(path).get("title", ""))
    except ValueError as error:
        return f"(not TOML: {error})"
