"""What is wrong with a file of a suite or an arena: the place by its names, the value, and what is
near.

A name that the grammar does not have comes first: what it leaves unset follows from it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from metabench.core.errors import UnknownName
from metabench.core.settings import fields
from metabench.core.text import shortened

UNKNOWN = "unexpected_keyword_argument"
KEY = "[key]"
ENTRIES = {
    "columns": "column",
    "rows": "row",
    "problems": "problem",
    "methods": "method",
    "claims": "claim",
    "paper": "paper number",
    "paper_rows": "paper row",
}
"""What an entry of a list of tables is called; it has its id, or its number from 1."""
Place = Sequence[str | int]


def first(error: ValidationError) -> Any:
    """The mistake that is told, as pydantic has it."""
    return min(error.errors(), key=lambda e: e["type"] != UNKNOWN)


def told(
    error: ValidationError,
    data: Mapping[str, Any],
    kind: type,
    budgets: Collection[str] | None = None,
) -> str:
    """A mistake in ``data``, which is no ``kind``, in words. ``budgets``: what a table of budgets
    may have, where it is not what the dataclass has."""
    mistake = first(error)
    loc, said, given = mistake["loc"], mistake["msg"], mistake["input"]
    name = str(loc[-1]) if loc else ""
    if mistake["type"] == UNKNOWN:
        known: Collection[str] = _names(_type_at(kind, loc[:-1]))
        if budgets is not None and loc[0] == "budgets" and len(loc) == 3:
            known = budgets
        return _at(loc[:-1], data, str(UnknownName("setting called", name, known)))
    if mistake["type"] == "missing":
        return f"{_words(loc, data)} is missing"
    if mistake["type"] == "literal_error" and isinstance(given, str):
        place, what = loc[:-1], name
        if name == KEY:
            place, what = loc[:-2], "group of settings"
        known = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
        return _at(place, data, str(UnknownName(what, given, known)))
    if mistake["type"] == "value_error":
        return _at(loc, data, said.removeprefix("Value error, "))
    why = f"{said[:1].lower()}{said[1:]}"
    if mistake["type"] == "dataclass_type":
        why = f"give a table, which may have {', '.join(_names(_type_at(kind, loc)))}"
    return f"{_words(loc, data)} cannot be {shortened(repr(given))}: {why}"


def _at(loc: Place, data: Any, said: str) -> str:
    place = _words(loc, data)
    return f"{place}: {said}" if place else said


def _words(loc: Place, data: Any) -> str:
    """A place: an entry of a list of tables by its id, what is in it after a colon."""
    out, at = "", data
    for part in loc:
        if part == KEY:
            continue
        inside = at[part] if _has(at, part) else None
        if isinstance(part, int) and out in ENTRIES:
            called = inside.get("id") if isinstance(inside, dict) else None
            out = f"{ENTRIES[out]} {called or part + 1}: "
        else:
            out += ("." if out and not out.endswith(": ") else "") + str(part)
        at = inside
    return out.removesuffix(": ")


def _has(at: Any, part: str | int) -> bool:
    if isinstance(at, dict):
        return part in at
    return isinstance(at, list) and isinstance(part, int) and part < len(at)


def _names(kind: Any) -> list[str]:
    """What a table of this type may have."""
    return list(dict.fromkeys(n for one in _dataclasses(kind) for n in fields(one)))


def _dataclasses(kind: Any) -> list[type]:
    if get_origin(kind) in (Union, types.UnionType):
        return [one for each in get_args(kind) for one in _dataclasses(each)]
    return [kind] if isinstance(kind, type) and is_dataclass(kind) else []


def _type_at(kind: Any, loc: Place) -> Any:
    """The type of what stands at a place; None where it is not known."""
    for part in loc:
        if get_origin(kind) in (list, dict):
            kind = get_args(kind)[-1]
            continue
        hints = [h[part] for one in _dataclasses(kind) if part in (h := get_type_hints(one))]
        kind = hints[0] if hints else kind
    return kind
