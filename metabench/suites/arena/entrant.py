"""A method that is new to an arena: what its settings may be, and where it plays.

Its space is a class attribute ``space``, or a file, in the words of an arena's file::

    space."method.inner_lr" = { low = 0.1, high = 2.0, log = true, per_smoothness = true }
    space."method.outer_lr" = { low = 1e-3, high = 1.0, log = true }
    set.method = { inner_steps = 10 }          # as shipped, where the defaults are not meant
    solver = "momentum"

``method.`` may be left out of a name. Without a space it plays with its settings as shipped alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metabench.core import toml
from metabench.core.errors import SettingError, UnknownName
from metabench.core.registry import methods, registered_by, solvers
from metabench.core.settings import fields, strictly
from metabench.suites import mistakes
from metabench.suites.arena.definition import MOST_QUICK, Arena, ArenaMethod

KEYS = ("space", "set", "solver", "label")
"""What a file of a space may have."""


@dataclass(frozen=True)
class Source:
    """The name that a method is registered under, and the file that registers it (None: it is
    built in, or declared by an installed package)."""

    name: str
    file: Path | None = None


def find(file_or_name: str, method: str | None = None) -> Source:
    """The method that a file registers, or that is known by a name; ``method`` names one of those
    of a file.

    Raises SettingError for a file that is not there or registers no method, and where it is not
    clear which method is meant; MetabenchError for one that cannot be imported; UnknownName.
    """
    if not file_or_name.endswith(".py"):
        methods.get(file_or_name)  # raises UnknownName with near names
        if method not in (None, file_or_name):
            raise SettingError(
                f"--method {method} chooses among the methods of a file, and {file_or_name!r} is "
                "the name of one"
            )
        return Source(file_or_name)
    file, found = Path(file_or_name), registered_by(file_or_name)
    names = [name for kind, name in found if kind == "method"]
    if not names:
        others = ", ".join(f"{kind} {name}" for kind, name in found)
        raise SettingError(
            f"{file} registers no method{f' ({others})' * bool(others)}: write "
            '@metabench.method("NAME") above its class; of a method that an installed package '
            "declares, give the name"
        )
    if method is None and len(names) > 1:
        raise SettingError(
            f"{file} registers several methods: {', '.join(names)}; say which: --method {names[0]}"
        )
    if method is not None and method not in names:
        raise UnknownName(f"method of {file} called", method, names)
    return Source(method or names[0], file)


def entrant(arena: Arena, name: str, space: str | Path | None = None) -> ArenaMethod:
    """The registered method ``name`` as one more method of an arena, in all of its tracks, with the
    space of a file, or the one that its class declares.

    Raises SettingError for a name that the arena has, and for a space that is none; UnknownName
    for a setting that the method does not have.
    """
    known = {m.id: m.method for m in arena.methods}
    if known.get(name) == name:
        raise SettingError(
            f"{name!r} is a baseline of arena {arena.name} already, and stands in its table"
        )
    if name in known:
        raise SettingError(
            f"arena {arena.name} has a baseline called {name!r}, of method {known[name]!r}: "
            f'register yours under another name, such as @method("my_{name}")'
        )
    cls = methods.get(name)
    if space is not None:
        data, where = _read(Path(space)), str(space)
    else:
        data, where = {"space": _declared(cls)}, f"class {cls.__name__}"
    given = data.get("space", {})
    if not isinstance(given, dict):
        raise SettingError(f"{where}: space cannot be {given!r}: give a table of settings")
    ranges = {n if "." in n else f"method.{n}": r for n, r in given.items()}
    tracks = list(dict.fromkeys(p.track for p in arena.problems))
    whole = {**data, "id": name, "method": name, "tracks": tracks, "space": ranges}
    try:
        made = strictly(TypeAdapter(ArenaMethod), whole)
    except ValidationError as error:
        raise SettingError(f"{where}: {mistakes.told(error, whole, ArenaMethod)}") from None
    for broken in _unknown(made, cls):
        broken.add_note(where)
        raise broken
    return made


def _read(path: Path) -> dict[str, Any]:
    try:
        data = toml.read(path)
    except ValueError as error:
        raise SettingError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from None
    for name in data:
        if name not in KEYS:
            raise UnknownName("key of a file of a space called", name, KEYS, str(path))
    if not data.get("space"):
        raise SettingError(
            f'{path} has no space: write for example space."method.outer_lr" = {{ low = 1e-3, '
            "high = 1.0, log = true }"
        )
    return data


def _declared(cls: type) -> Any:
    """The space that a class declares; a setting that happens to be called so is none."""
    return {} if "space" in fields(cls) else getattr(cls, "space", {})


def _unknown(made: ArenaMethod, cls: Any) -> Iterator[UnknownName]:
    """What a space names that cannot be set."""
    solver = made.solver or cls.default_solver
    known: Mapping[str, tuple[str, Any]] = {
        "method": (f"setting of method {made.method} called", cls),
        "solver": (f"setting of solver {solver} called", solvers.get(solver)),
    }
    for name in made.space:
        group, _, setting = name.partition(".")
        if group not in known:
            yield UnknownName("group of a method's space called", group, known)
            return
        kind, owner = known[group]
        if setting not in fields(owner):
            yield UnknownName(kind, setting, fields(owner))


def narrowed(arena: Arena, budget: str, quick: bool = False) -> Arena:
    """The arena with the problems of a budget alone, or of them with the quick ones.

    Raises UnknownName for the budget, SettingError where no problem is quick.
    """
    wanted = arena.budget(budget).problems
    kept = [p for p in arena.problems if not wanted or p.id in wanted]
    if quick:
        kept = [p for p in kept if p.quick]
        if not kept:
            raise SettingError(
                f"arena {arena.name} has no quick problem under budget {budget}: write quick = "
                f"true into at most {MOST_QUICK} of its [[problems]]"
            )
    return replace(arena, problems=kept)
