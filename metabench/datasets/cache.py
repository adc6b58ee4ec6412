"""The cache: where downloads go, and what takes long to compute (``METABENCH_CACHE``, by default
``metabench`` in the user's cache folder)."""

from __future__ import annotations

import os
from pathlib import Path

from metabench.core.errors import MetabenchError


def folder() -> Path:
    """The folder. Raises MetabenchError where that is in a home folder, and none is known: a
    container may have neither HOME nor an entry for its user."""
    place = named()
    if place.parts[0].startswith("~"):
        raise MetabenchError(
            f"the cache would be {place}, and no home folder is known here; repair: set "
            "METABENCH_CACHE (or HOME) to a folder that can be written"
        )
    return place


def named() -> Path:
    """The folder, with its ``~`` where no home folder is known."""
    own = os.environ.get("METABENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(own or f"{base}/metabench"))
