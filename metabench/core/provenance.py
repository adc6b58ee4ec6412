"""Which code this is: the commit of its checkout, or the note of a snapshot."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

NOTE = "snapshot.json"
"""Beside the code in a snapshot (:mod:`metabench.cluster.snapshot`): its sha256, and the commit
that it was taken from."""


def git() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that metabench is imported from, with the ``sha256`` of
    the snapshot where it is one; empty where it is installed apart from both."""
    folder = Path(__file__).parents[1]
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
