"""Verbs about what there is: data sets, this machine, and plug-ins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.core.catalogue import suite_names
from metabench.core.errors import UnknownName
from metabench.store.store import Store

if TYPE_CHECKING:
    from metabench.core.environment.findings import Finding
    from metabench.datasets import locate, verify


def data_list() -> list[locate.Status]:
    """Every known data set: where it is and its size in bytes, or the command that brings it."""
    from metabench.datasets import locate

    return locate.status()


def data_find(name: str) -> Path:
    """The folder of a data set on this machine, for tasks that read it.

    Raises UnknownName; DataMissing with the command that brings it.
    """
    from metabench.datasets import locate

    return locate.find(name)


def data_fetch(name: str, *, to: str | Path | None = None) -> Path:
    """Download a data set into the cache, or into the folder ``to``; gives its folder.

    Raises UnknownName; MetabenchError where that cannot be done, with the way to do it by hand.
    """
    from metabench.datasets import fetch

    return fetch.fetch(name, to=None if to is None else Path(to))


def data_verify(name: str | None = None) -> list[verify.Verdict]:
    """Check every file of a data set (None: of all that are here) against size and checksum.

    Raises UnknownName, DataMissing.
    """
    from metabench.datasets import locate, verify

    names = [s.dataset.name for s in locate.status() if s.found] if name is None else [name]
    return [verdict for each in names for verdict in verify.verify(each)]


def doctor(store: str | Path | Store | None = None) -> list[Finding]:
    """Versions, devices, data and the store (None: the default one); what is missing, with the
    commands that repair it."""
    from metabench.api.examination import examine

    return examine(store if isinstance(store, Store) else Store(store))


def check(name: str) -> Iterator[tuple[str, str, str]]:
    """Each promise of the contract that a method or a task is checked against, in turn, how it
    breaks it, and why it was not tested ("" and "" where it is kept). Raises UnknownName.
    """
    from metabench.core.registry import methods, solvers, tasks

    kinds = [k for k, known in (("method", methods), ("task", tasks)) if name in known.names()]
    if not kinds:
        other = [k for k, known in (("solver", solvers.names()), ("suite", suite_names()))
                 if name in known]  # fmt: skip
        hint = f"{name} is a {other[0]}: only methods and tasks are checked" if other else ""
        raise UnknownName("method or task", name, [*methods.names(), *tasks.names()], hint)
    return _checked(kinds[0], name)


def _checked(kind: str, name: str) -> Iterator[tuple[str, str, str]]:
    from metabench.conformance import kit

    checks = kit.method_checks(name) if kind == "method" else kit.task_checks(name)
    said: dict[str, str] = {}
    for what, run_check in checks:
        broken = untested = ""
        try:
            untested = run_check()
        except kit.ContractError as error:
            first = said.setdefault(error.cause, what)
            broken = str(error) if first == what else f"for the same reason as {first}"
        yield what, broken, untested
