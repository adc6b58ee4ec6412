"""Which code this is: its files and their hash, the commit of its checkout, the note of a
snapshot."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOTS = ("", ".cluster_profiles", ".methods", ".suite_files", ".tasks")
"""Packages whose folders are found by themselves: the first holds all others where it is installed,
in a checkout the rest lie beside it."""

NOTE = "snapshot.json"
"""Beside the code in a snapshot (:mod:`metabench.cluster.submitting.snapshot`): its sha256, and the
commit that it was taken from."""


def git() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that metabench is imported from, with the ``sha256`` of
    the snapshot where it is one; empty where it is installed apart from both."""
    folder = Path(__file__).parents[2]
    try:
        note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return note
    except (OSError, ValueError):
        pass

    def ask(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=10,
                env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A file that git does not track: an installed copy inside somebody else's checkout.
    if ask("ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    changed = ask("status", "--porcelain", "--", ".", "../tasks", "../methods")
    return {"commit": ask("rev-parse", "HEAD") or "", "dirty": bool(changed)}


def paths() -> Iterator[tuple[str, Path]]:
    """Every file of the installed package, with its name in a wheel."""
    for suffix in ROOTS:
        spec = importlib.util.find_spec(f"metabench{suffix}")
        assert spec is not None and spec.submodule_search_locations is not None
        folder = next(iter(spec.submodule_search_locations))
        inside = "/".join(["metabench", *suffix.split(".")[1:]])
        for place, _, names in os.walk(folder):
            above = inside + place[len(folder) :].replace(os.sep, "/")
            for name in names:
                if _belongs(name, place):
                    yield f"{above}/{name}", Path(place, name)


def _belongs(name: str, place: str) -> bool:
    known = name.endswith((".py", ".toml", ".typed")) or os.path.basename(place) == "templates"
    return known and name != NOTE


def files() -> dict[str, bytes]:
    """Every file of the installed package by its name in a wheel."""
    return {name: path.read_bytes() for name, path in sorted(paths())}


def digest(content: dict[str, bytes]) -> str:
    """sha256 over names and bytes."""
    out = hashlib.sha256()
    for name, data in sorted(content.items()):
        out.update(f"{name}\n{len(data)}\n".encode() + data)
    return out.hexdigest()
