"""The seven public import paths: a page each, which mkdocstrings fills from the code."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

from .notation import prose
from .places import link

PATHS = ("metabench", *(f"metabench.{n}" for n in
         ("autodiff", "implicit", "unrolled", "testing", "errors", "api")))  # fmt: skip


def where(path: str) -> str:
    """The page of an import path."""
    return f"reference/{path}.md"


def shown(path: str) -> list[str]:
    """The names that a path shows, without the doors to the other paths."""
    module = importlib.import_module(path)
    doors = [n for n in module.__all__ if isinstance(getattr(module, n), ModuleType)]
    return [n for n in module.__all__ if n not in doors and n != "__version__"]


def home(path: str, name: str) -> str:
    """The dotted name under which the code defines what ``path`` shows as ``name``."""
    thing = getattr(importlib.import_module(path), name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        module, own = thing.__module__, thing.__qualname__
        if module.startswith("metabench.") and own == name:
            return f"{module}.{own}"
    homes = importlib.import_module("metabench")._HOME_OF
    if path == "metabench":
        return f"metabench.{homes[name]}.{name}"
    return f"{path}.{name}"


def page(path: str) -> str:
    """The docstring of a path, then all that it shows."""
    doc = f"::: {path}\n    options:\n      members: false\n      show_root_heading: false\n"
    doc += "      show_root_toc_entry: false\n"
    parts = [f"# `{path}`", doc]
    for name in shown(path):
        parts.append(f"::: {home(path, name)}\n    options:\n      heading_level: 2\n")
    return "\n".join(parts)


def index() -> str:
    """The paths, each with the first line of its docstring."""
    start = "reference/index.md"
    lines = []
    for path in PATHS:
        doc = (importlib.import_module(path).__doc__ or "").strip().split("\n", 1)[0]
        lines.append(f"- {link(where(path), start, f'`{path}`')}: {prose(doc)}")
    text = (
        "A task or a method of your own imports seven paths, and only these. Shapes of tensors are "
        "given in brackets, as in `[n, d]`."
    )
    return f"# Reference\n\n{text}\n\n" + "\n".join(lines) + "\n"
