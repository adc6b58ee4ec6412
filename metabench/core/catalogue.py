"""What has a name, from file names and docstrings alone: neither torch nor pydantic is imported."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from metabench.core import toml
from metabench.core.errors import MetabenchError, UnknownName
from metabench.core.registry import REGISTRIES, Entry

KINDS = (*REGISTRIES, "suite", "arena")


def listing(kind: str | None = None) -> dict[str, list[Entry]]:
    """Names by kind: "task", "method", "solver", "suite", "arena" (None: all that has names), each
    sorted, with where it comes from and a line of description. Imports no task and no method.

    >>> from metabench import api
    >>> [entry.name for entry in api.list_("solver")["solver"]][:3]
    ['adam', 'adamw', 'complex_momentum']

    Raises UnknownName for another kind.
    """
    check_kind(kind)
    out = {k: r.entries() for k, r in REGISTRIES.items() if kind in (None, k)}
    if kind in (None, "suite"):
        heads = suite_heads()
        out["suite"] = [_entry(name, head) for name, head in heads.items()]
    arenas = arena_names() if kind in (None, "arena") else []
    if arenas or kind == "arena":
        folder = suite_folder()
        out["arena"] = [_entry(name, _head(folder / f"{name}.toml")) for name in arenas]
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
    return sorted(f.stem for f in suite_folder().glob("*.toml") if not is_arena(f))


def arena_names() -> list[str]:
    """Names of the built-in arenas, in the order of the numbers in them: the newest is last."""
    found = (f.stem for f in suite_folder().glob("*.toml") if is_arena(f))
    return sorted(found, key=lambda name: ([int(n) for n in re.findall(r"\d+", name)], name))


def is_arena(path: Path) -> bool:
    """Whether a file says that it is an arena before its first table. Nothing else of it is read,
    so that naming suites stays quick. False where it cannot be read."""
    try:
        head = re.split(r"^\[", path.read_text("utf-8-sig", "replace"), maxsplit=1, flags=re.M)[0]
    except OSError:
        return False
    return re.search(r"""^\s*kind\s*=\s*(["'])arena\1""", head, re.M) is not None


def published_folder(name: str, budget: str) -> Path:
    """Where the published records of a suite or an arena are, if there are any; a wheel has those
    of arenas alone. Raises MetabenchError where the installation has no such place."""
    spec = importlib.util.find_spec("metabench.result_files")
    if spec is None or spec.submodule_search_locations is None:
        raise MetabenchError(
            "this installation does not know where published results are: it is older than its "
            "code; in the checkout: pip install -e ."
        )
    return Path(next(iter(spec.submodule_search_locations))) / name / budget


def suite_heads() -> dict[str, dict[str, Any]]:
    """Name of each built-in suite to what its file says before the first table, with what it takes
    from the suite that it extends; of a file that is no TOML the title says so."""
    folder = suite_folder()
    own = {name: _head(folder / f"{name}.toml") for name in suite_names()}
    return {n: {**own.get(str(head.get("extends")), {}), **head} for n, head in own.items()}


def _entry(name: str, head: dict[str, Any]) -> Entry:
    return Entry(name, "built-in", str(head.get("title", "")))


def _head(path: Path) -> dict[str, Any]:
    try:
        return toml.head(path)
    except ValueError as error:
        return {"title": f"(not TOML: {error})"}
