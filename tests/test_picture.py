"""The picture of docs/architecture.md is the one that the ranks and the imports give."""

from __future__ import annotations

import ast
import re

from picture import BEGIN, END, PAGE, edges, page, picture, reduced
from test_architecture import RANKS, ROOT

HOP = re.compile(r"^(\d+)\. `([\w/]+\.py)`, `([\w.]+)`", re.MULTILINE)
MOST_HOPS = 12


def defined(file: str) -> set[str]:
    """Functions of a module, those of its classes as ``Class.function``."""
    found = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def test_the_way_of_lam_names_functions_that_are_there() -> None:
    hops = HOP.findall(PAGE.read_text(encoding="utf-8"))
    assert [int(n) for n, _, _ in hops] == list(range(1, len(hops) + 1))
    assert 5 < len(hops) <= MOST_HOPS
    for _, file, name in hops:
        assert name in defined(file), f"{file} has no {name}: follow the rename in {PAGE.name}"


def test_the_page_shows_the_imports_of_today() -> None:
    shown = PAGE.read_text(encoding="utf-8")
    assert shown.count(BEGIN) == shown.count(END) == 1
    assert shown == page(), "write it again: python tests/picture.py"


def test_the_picture_has_every_room_and_real_imports() -> None:
    text = picture()
    assert all(f" {name}" in text for name in RANKS)
    found = edges()
    assert {"reports", "cluster"} <= found["api"] and found["core"] == set()


def test_only_what_follows_from_others_is_left_out() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"c", "a"}}
    assert reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}}
