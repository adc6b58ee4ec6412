"""Settings live in dataclasses; this module checks what a user sets against them."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from metabench.core import toml
from metabench.core.errors import SettingError, UnknownName
from metabench.core.text import shortened

T = TypeVar("T")
Value = Any  # JSON: bool, int, float, str, None, list, dict
UNSET = "unset"
"""What is typed for None, which TOML does not have."""


def fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The settable fields of a settings dataclass, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def later(default: T) -> T:
    """The default of a setting that came after records had been published: it says what a cell
    without the setting did, so a cell that has it does not name it, and keys stay what they were.
    """
    return dataclasses.field(default=default, metadata={_LATER: True})


_LATER = "later"


def several(name: str, values: Any) -> list[str]:
    """``values`` as a list of text; raises SettingError for one text alone, and for anything else.

    ``name`` is the argument that they are given as.
    """
    items = [*values] if isinstance(values, Iterable) and not isinstance(values, str) else None
    if items is None or not all(isinstance(item, str) for item in items):
        near = f", for example [{values!r}]" if isinstance(values, str) else ""
        raise SettingError(f"{name} cannot be {values!r}: give a list of texts{near}")
    return items


def build(cls: type[T], values: Mapping[str, Value], owner: str) -> T:
    """An instance of ``cls`` with its defaults and ``values``, checked.

    ``owner`` names it in errors ("method maml"). Raises :class:`UnknownName` for a name that is
    no field, :class:`SettingError` for a value that the field's type does not admit.
    """
    known = fields(cls)
    for name in values:
        if name not in known:
            raise UnknownName(f"setting of {owner} called", name, known)
        if not _finite(values[name]):
            raise SettingError(
                f"{owner}: setting {name} cannot be {_shown(values[name])}: not finite"
            )
    try:
        made: T = strictly(_adapter(cast(Any, cls)), values)
        return made
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # raised by the settings as a whole
            raise SettingError(f"{owner}: {first['msg'].removeprefix('Value error, ')}") from None
        where, value = ".".join(str(part) for part in first["loc"]), first["input"]
        said = first["msg"].lower()
        if isinstance(value, bool) and first["type"] in ("int_type", "float_type"):
            said = "true or false is no number"
        raise SettingError(f"{owner}: setting {where} cannot be {_shown(value)}: {said}") from None


def _shown(value: Value) -> str:
    return shortened(repr(value))


def place(name: str, text: str | Path) -> Path:
    """A path that is given as ``name``; raises SettingError for "", which would silently be the
    current folder, and for what no path can hold."""
    if not str(text) or "\0" in str(text):
        raise SettingError(f"{name} cannot be {str(text)!r}: give a path (. is the current folder)")
    return Path(text)


def strictly(adapter: TypeAdapter[T], data: Mapping[str, Value]) -> T:
    """``data`` as the adapter's type, by the rules of JSON: "2" is no number, 1 is not true, and a
    list makes a tuple. Raises pydantic's ValidationError."""
    return adapter.validate_json(json.dumps(dict(data), default=_plain), strict=True)


def _plain(value: Any) -> Value:
    """The number of a scalar of numpy or torch; a date and the like as what no setting takes."""
    return value.item() if hasattr(value, "item") else {type(value).__name__: str(value)}


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    """Made once a class: it takes longer than all else of a cell, and suites have hundreds."""
    return TypeAdapter(with_config(ConfigDict(arbitrary_types_allowed=True))(cls))


def _finite(value: Value) -> bool:
    """Whether every number in a value is finite: others have no canonical form, hence no key."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def values(instance: Any) -> dict[str, Value]:
    """Every setting of a settings dataclass instance as plain JSON values, defaults included but
    for those of settings that came :func:`later`."""
    data = {
        name: value
        for name, f in fields(type(instance)).items()
        if (value := getattr(instance, name)) != f.default or _LATER not in f.metadata
    }
    plain: dict[str, Value] = json.loads(json.dumps(data))
    return plain


def parse(text: str) -> Value:
    """A value typed on the command line: a TOML value where it is one, None where it reads
    "unset", else the text itself."""
    if text == UNSET:
        return None
    try:
        read = toml.loads(f"v = {text}")
    except ValueError:
        return text
    return read["v"] if len(read) == 1 else text


def typed(value: Value) -> str:
    """A value as one types it after ``--set GROUP.NAME=``."""
    return value if isinstance(value, str) else _toml(value)


def _toml(value: Value) -> str:
    if value is None:
        return UNSET
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value) if isinstance(value, bool | str) else str(value)
