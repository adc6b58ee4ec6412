"""When Python looks for garbage. To import torch, or to draw a figure, makes hundreds of thousands
of objects, hardly any of which is garbage: to look through them takes an eighth of the time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

SELDOM = (20_000, 20, 20)
"""Thresholds in place of Python's (700, 10, 10): what figures leave is still found in time."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, nobody looks for garbage: for imports, which make none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def seldom_collected() -> Iterator[None]:
    """Inside, garbage is looked for after ``SELDOM`` new objects."""
    was = gc.get_threshold()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*was)


def keep() -> None:
    """What there is now stays until the process ends: no later search, the last one included, looks
    at it. For processes of metabench's own: of a user's program something might become garbage."""
    gc.freeze()


def end() -> None:
    """The process is about to end: Python's last search is left out, as by ``keep``. But modules
    built with nanobind (triton's, which torchvision imports) print whatever is alive after it as
    leaked: where one is loaded, that search is made, and of everything."""
    if any(kind.__module__ == "nanobind" for kind in type.__subclasses__(type)):
        gc.unfreeze()
    else:
        keep()
