"""What can be said of a task, method, solver, suite or arena: text, settings, needs, source."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from metabench.core.capabilities import why_not
from metabench.core.catalogue import (
    arena_names,
    check_kind,
    is_arena,
    listing,
    suite_folder,
    suite_names,
)
from metabench.core.cell import FINGERPRINT, Budget
from metabench.core.errors import MetabenchError, UnknownName
from metabench.core.registry import REGISTRIES, methods, tasks, trackers
from metabench.core.settings import UNSET, fields, typed
from metabench.datasets.catalogue import DATASETS
from metabench.suites import loading as suites
from metabench.suites import recalling
from metabench.suites.arena import definition as arenas
from metabench.suites.arena.definition import Arena
from metabench.suites.schema import LABELS, Column, Row
from metabench.suites.suite import Suite

UNLOADED = "cannot be loaded"


@dataclass(frozen=True)
class Setting:
    """One setting: its type in words, its default as typed on a command line, its docstring."""

    name: str
    type: str
    default: str
    doc: str = ""


@dataclass(frozen=True)
class Description:
    """What ``show`` shows. ``facts``: short statements by name. ``tables``: title to rows, the
    header first. ``source``: the file."""

    kind: str
    name: str
    title: str
    text: str
    source: str
    settings: tuple[Setting, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = ()


def show(name: str, kind: str | None = None) -> list[Description]:
    """What can be said of everything called ``name`` (one name can be a task and a suite), or of
    the suite in the file at that path: text, settings, needs, what it can be crossed with.

    >>> from metabench import api
    >>> [setting.name for setting in api.show("momentum", "solver")[0].settings]
    ['momentum', 'nesterov', 'weight_decay']

    Raises UnknownName with near names.
    """
    check_kind(kind)
    if name.endswith(".toml"):
        if is_arena(Path(name)):
            return [of_arena(arenas.load(name), Path(name))]
        return [of_suite(suites.load(name), Path(name))]
    found = [
        of_class(k, name)
        for k, registry in REGISTRIES.items()
        if kind in (None, k) and name in registry.names()
    ]
    if kind in (None, "suite") and name in suite_names():
        found.append(of_suite(suites.load(name), suite_folder() / f"{name}.toml"))
    if kind in (None, "arena") and name in arena_names():
        found.append(of_arena(arenas.load(name), suite_folder() / f"{name}.toml"))
    if not found:
        known = {e.name for entries in listing(kind).values() for e in entries}
        kinds = kind or "task, method, solver, suite or arena"
        raise UnknownName(kinds, name, known, _elsewhere(name))
    return found


def _elsewhere(name: str) -> str:
    """Where a name stands that is none of these: data sets and trackers have lists of their own."""
    if name in DATASETS:
        return f"{name} is a data set: metabench data list"
    return f"{name} is a tracker: --log {name}" if name in trackers else ""


def of_class(kind: str, name: str) -> Description:
    """A task, a method or a solver, under its default settings. Where all names are metabench's
    own, what is said of all of them is recalled (:mod:`metabench.suites.recalling`): classes take
    torch to import."""
    names = [(k, n) for k, registry in REGISTRIES.items() for n in registry.names()]
    if recalling.slow() and all(REGISTRIES[k].is_built_in(n) for k, n in names):
        # All at once: most of the time is torch's, and who looks at one looks at another.
        with contextlib.suppress(Exception):  # of one that is not meant, as likely as not
            return recalling.told(
                {"described": names}, lambda: [_asked(*each) for each in names], _plain, _read
            )[names.index((kind, name))]
    return _asked(kind, name)


def _plain(found: Sequence[Description]) -> list[dict[str, Any]] | None:
    """Without files, which are elsewhere in another checkout; None where a module cannot be loaded,
    as it may be next time."""
    if any(UNLOADED in cell for d in found for _, rows in d.tables for row in rows for cell in row):
        return None
    return [{**asdict(d), "source": ""} for d in found]


def _read(data: Sequence[Mapping[str, Any]]) -> list[Description]:
    found = []
    for each in data:
        given: dict[str, Any] = {**each, "settings": [Setting(**s) for s in each["settings"]]}
        made = Description(**{name: _tuples(value) for name, value in given.items()})
        found.append(replace(made, source=str(REGISTRIES[made.kind].file(made.name))))
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _asked(kind: str, name: str) -> Description:
    cls = REGISTRIES[kind].get(name)
    made = cls()
    module = sys.modules[cls.__module__]
    file = inspect.getsourcefile(cls) or "?"
    facts: list[tuple[str, str]] = []
    tables: list[tuple[str, tuple[tuple[str, ...], ...]]] = []
    if kind == "task":
        goal = "higher" if made.goal == "max" else "lower"
        facts.append(("metric", f"{made.metric} ({goal} is better)"))
        facts.append(("offers", _words(made.offers)))
        own = "given in Python" if FINGERPRINT in fields(cls) else "none: made from the seed"
        facts.append(("data", ", ".join(made.data) or own))
        pairs = [(m, _why_not(name, m)) for m in methods.names()]
        tables.append(("Methods", _crossed("method", pairs)))
    elif kind == "method":
        facts.append(("needs", _words(made.needs) or "nothing"))
        pairs = [(t, _why_not(t, name)) for t in tasks.names()]
        tables.append(("Tasks", _crossed("task", pairs)))
    if made.packages:
        facts.append(("packages", ", ".join(made.packages)))
    if kind == "method" and made.reconstruction:
        facts.append(("reconstruction", made.reconstruction))
    return Description(
        kind=kind,
        name=name,
        title=_first(cls.__doc__ or module.__doc__ or ""),
        text=inspect.cleandoc(module.__doc__ or cls.__doc__ or ""),
        source=file,
        settings=tuple(settings_of(cls)),
        facts=tuple(facts),
        tables=tuple(tables),
    )


def _why_not(task: str, method: str) -> str | None:
    """Why a method does not apply to a task under default settings. A module that cannot be loaded
    is a reason too, so that it does not hide the rest."""
    try:
        return why_not(tasks.get(task)(), methods.get(method)())
    except MetabenchError as error:
        return str(error)
    except Exception as error:
        return f"{UNLOADED}: {type(error).__name__}: {error}"


def _crossed(kind: str, pairs: Iterable[tuple[str, str | None]]) -> tuple[tuple[str, ...], ...]:
    return ((kind, "with default settings"), *((n, f"no: {w}" if w else "yes") for n, w in pairs))


def _words(capabilities: frozenset[str]) -> str:
    from metabench.core.capabilities import CAPABILITIES

    return "; ".join(text for name, text in CAPABILITIES.items() if name in capabilities)


def of_suite(suite: Suite, path: Path) -> Description:
    """A suite: what it crosses, under which budgets, and what was published."""
    columns: list[tuple[str, ...]] = [("column", "task", "settings")]
    columns += [(c.id, c.task, _by_budget(c)) for c in suite.columns]
    rows: list[tuple[str, ...]] = [("row", "method", "settings")]
    rows += [
        (
            r.id,
            r.method if r.solver in (None, "sgd") else f"{r.method}, {r.solver}",
            _by_budget(r),
        )
        for r in suite.rows
    ]
    budgets: list[tuple[str, ...]] = [("budget", "seeds", "limits")]
    for name, budget in suite.budgets.items():
        seeds = ", ".join(map(str, budget.seeds))
        budgets.append((name, seeds, _groups({"budget": budget.limits, **budget.set}, "budget")))
    paper: list[tuple[str, ...]] = [("row", "column", "value", "source")]
    for number in suite.paper:
        pm = f" +- {number.pm:g} ({number.pm_meaning})" if number.pm is not None else ""
        source = f"{number.source} [{number.label}]"
        paper.append((number.row, number.column, f"{number.value:g}{pm}", source))
    chosen: list[tuple[str, ...]] = [("row", "settings chosen", "reference")]
    chosen += [(r.id, _chosen(r), r.reference) for r in suite.rows]
    tables: list[tuple[str, list[tuple[str, ...]]]] = [
        ("Columns", columns),
        ("Rows", rows),
        ("Budgets", budgets),
        ("Settings chosen", chosen),
        ("Published", paper),
        ("Settings of a budget", of_budget()),
    ]
    goal = "higher" if suite.goal == "max" else "lower"
    facts = [
        ("metric", f"{suite.metric} of the evaluation {suite.evaluation!r} ({goal} is better)")
    ]
    if suite.paper:
        facts.append(("published numbers", _sources(suite)))
    if suite.command:
        facts.append(("command", suite.command))
    return Description(
        kind="suite",
        name=suite.name,
        title=suite.title,
        text=suite.description,
        source=str(path),
        facts=tuple(facts),
        tables=tuple((title, tuple(table)) for title, table in tables if len(table) > 1),
    )


def of_arena(arena: Arena, path: Path) -> Description:
    """An arena: its problems with what can be had on them, its methods with their spaces, its
    budgets."""
    problems: list[tuple[str, ...]] = [("problem", "track", "task", "no learning", "bound", "cap")]
    for p in arena.problems:
        quick = f"{p.id} (quick)" if p.quick else p.id
        problems.append((quick, p.track, p.task, f"{p.fixed:g}", f"{p.bound:g}", f"{p.cap:g}"))
    rows: list[tuple[str, ...]] = [("method", "is", "tracks", "space")]
    for m in arena.methods:
        space = ", ".join(m.space) or "none: as shipped alone"
        rows.append((m.id, m.method, ", ".join(m.tracks), space))
    budgets: list[tuple[str, ...]] = [("budget", "trials", "tuning seeds", "seeds of finals")]
    for name, b in arena.budgets.items():
        seeds = (", ".join(map(str, of)) for of in (b.tuning_seeds, b.seeds))
        budgets.append((name, str(b.trials), *seeds))
    return Description(
        kind="arena",
        name=arena.name,
        title=arena.title,
        text=arena.description,
        source=str(path),
        tables=(
            ("Problems", tuple(problems)),
            ("Methods", tuple(rows)),
            ("Budgets", tuple(budgets)),
        ),
    )


def _sources(suite: Suite) -> str:
    """How many published numbers there are by label."""
    labels = [number.label.strip("[]") for number in suite.paper]
    counts = [f"{n} [{name}]" for name in LABELS if (n := labels.count(name)) and name != "memory"]
    if recalled := labels.count("memory"):
        counts.append(f"{recalled} from memory (not printed)")
    return f"{len(labels)}: {', '.join(counts)}"


def _by_budget(place: Column | Row) -> str:
    """The settings of a column or a row, then those that it has under one budget, in one column, or
    in both together alone."""
    more = {**getattr(place, "columns", {}), **place.budgets}
    for budget, columns in getattr(place, "cells", {}).items():
        more |= {f"{budget}, {column}": groups for column, groups in columns.items()}
    texts = [_groups(place.set), *(f"{name}: {_groups(groups)}" for name, groups in more.items())]
    return "; ".join(text for text in texts if text)


def _chosen(row: Row) -> str:
    from metabench.reports.footnotes.chosen import how_in_words

    if isinstance(row.chosen, dict):
        return "; ".join(f"{name}: {how_in_words(how)}" for name, how in row.chosen.items())
    return how_in_words(row.chosen)


def _groups(groups: Any, bare: str = "") -> str:
    """{"method": {"inner_steps": 1}} as "method.inner_steps = 1", without the group ``bare``."""
    return ", ".join(
        f"{name if group == bare else f'{group}.{name}'} = {typed(value)}"
        for group, values in groups.items()
        for name, value in values.items()
    )


def settings_of(cls: type) -> list[Setting]:
    """Every setting of a dataclass with its type, default, and the docstring below it in the
    source (the nearest one along the base classes). What a docstring says of None is said of
    ``unset``, as one types it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    docs = attribute_docs(cls)
    out = []
    for name, f in fields(cls).items():
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        shown = "(required)" if default is MISSING else typed(default)
        doc = re.sub(r"\bNone\b(?=[:,])", UNSET, docs.get(name, ""))
        out.append(Setting(name, type_words(hints[name]), shown, doc))
    return out


def of_budget() -> list[tuple[str, ...]]:
    """What ``--set budget.NAME=VALUE`` and a suite's budgets may set, the header first."""
    rows = [(s.name, s.default, s.type, s.doc) for s in settings_of(Budget)]
    return [("name", "default", "type", "meaning"), *rows]


def attribute_docs(cls: type) -> dict[str, str]:
    """The strings that follow annotated attributes in the source of a class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docs |= _own_docs(base)
    return docs


@functools.cache
def _own_docs(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}  # built in, or made without a file: there is no source to read
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef))
    return {
        node.target.id: " ".join(after.value.value.split())
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


def type_words(hint: Any) -> str:
    """A type in words: "int, at least 1", "second or first", "float, above 0, or unset"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join([type_words(args[0]), *_bounds(args[1:])])
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return ", or ".join(type_words(a) for a in args)
    if hint is type(None):
        return UNSET
    if origin is not None:
        return f"{origin.__name__} of {', '.join(type_words(a) for a in args if a is not ...)}"
    return {"str": "text", "bool": "true or false"}.get(
        getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint))
    )


_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _bounds(metadata: Iterable[Any]) -> list[str]:
    out = []
    for item in metadata:
        for constraint in getattr(item, "metadata", [item]):
            for attribute, words in _BOUNDS.items():
                if hasattr(constraint, attribute):
                    out.append(f"{words} {getattr(constraint, attribute):g}")
    return out


def _first(text: str) -> str:
    return text.strip().split("\n", 1)[0]
