"""Imports of what is large: torch makes half a million objects, and none of them is garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Inside, nobody looks for garbage: to import torch takes an eighth less time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def keep() -> None:
    """What has been imported stays until the process ends: no later search for garbage, the last
    one included, looks at it again. For processes of metabench's own: objects of a user's program
    might be garbage later."""
    gc.freeze()
