"""The built-in suites as lists show them, from the heads of their files: neither torch nor pydantic
is imported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from metabench.core.catalogue import suite_heads
from metabench.core.errors import DataMissing, UnknownName

COSTS = Path(__file__).with_name("published_costs.json")
"""Read by :mod:`metabench.suites.published_costs`."""


@dataclass(frozen=True)
class ListedSuite:
    """A suite: the paper whose table it is ("" where none is), the data sets that its laptop budget
    reads and those of them that are not here, and what its published run took (None where there is
    none): seconds of ``cells`` cells, one after another."""

    name: str
    title: str
    reference: str = ""
    data: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cells: int = 0
    seconds: float | None = None


def listed_suites() -> list[ListedSuite]:
    """Every built-in suite, sorted by name."""
    from metabench.datasets import locate

    published = json.loads(COSTS.read_bytes())["suites"]
    heads = suite_heads()
    lacking = set()
    for name in {name for head in heads.values() for name in head.get("data", ())}:
        try:
            locate.locate(name)
        except (DataMissing, UnknownName):
            lacking.add(name)
    out = []
    for name, head in heads.items():
        data = tuple(head.get("data", ()))
        known = published.get(name, {"cells": 0, "seconds": None})
        out.append(
            ListedSuite(
                name,
                str(head.get("title", "")),
                str(head.get("reference", "")),
                data,
                tuple(each for each in data if each in lacking),
                known["cells"],
                known["seconds"],
            )
        )
    return out
