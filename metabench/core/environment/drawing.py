"""Matplotlib without a window system: metabench draws into files and reads fonts, no more."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any


def matplotlib() -> Any:
    """The package. ``MPLBACKEND`` is not read where it names no backend of this environment: a
    notebook leaves it to its child processes, and matplotlib then cannot be imported at all."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    given = os.environ.pop("MPLBACKEND", None)
    try:
        module = importlib.import_module("matplotlib")
    finally:
        if given is not None:
            os.environ["MPLBACKEND"] = given
    if given:
        with contextlib.suppress(ValueError):
            module.rcParams["backend"] = given
    return module
