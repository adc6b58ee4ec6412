"""What the verbs are given.

``suite`` is the name of a built-in suite, the path of a suite file, or a :class:`Suite`; ``set`` is
{"method.inner_lr": 0.01} or ["method.inner_lr=0.01"], where the name of a row or column in the
place of the group means that one alone, and a method's or task's that is the name of none means all
rows or columns of it; ``store`` is a folder. Names and values are checked before anything runs:
UnknownName, SettingError, SuiteError (:mod:`metabench.errors`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metabench.core.errors import SuiteError
from metabench.core.settings import place
from metabench.store.store import Store
from metabench.suites import loading as suites
from metabench.suites import planning as plans
from metabench.suites.suite import Suite

Settings = Iterable[str] | Mapping[str, Any]
DEFAULT_BUDGET = "laptop"


def suite_of_pairs(
    tasks: Sequence[str | Any],
    methods: Sequence[str | Any] | None = None,
    solver: str | None = None,
) -> Suite:
    """A suite of these tasks and methods, for any verb: names, each with its default settings, or
    instances, with the settings that they have; ``methods`` None: all that apply. ``solver`` names
    the inner solver (None: each method's own).

    >>> from metabench import api
    >>> suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel", "ift"])
    >>> [planned.cell.method for planned in api.plan(suite, budget="smoke")]
    ['bilevel', 'ift']

    Raises UnknownName; SuiteError where the tasks have no metric in common.
    """
    return plans.suite_of_pairs(tasks, methods, solver)


def load(suite: str | Path | Suite) -> Suite:
    """The suite that a verb is given."""
    if not isinstance(suite, str | Path | Suite):
        raise SuiteError(f"suite cannot be {suite!r}: give a name, the path of a file, or a Suite")
    return suite if isinstance(suite, Suite) else suites.load(suite)


def once(given: Any) -> Any:
    """What a verb reads more than once: an iterator, which ends with its first use, as a list; all
    else as it is."""
    return [*given] if isinstance(given, Iterator) else given


def open_store(store: str | Path | Store | None) -> Store:
    """The store that a verb is given; None is the default one."""
    if isinstance(store, Store):
        return store
    return Store(None if store is None else place("store", store))
