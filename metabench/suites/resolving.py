"""What the places of a suite resolve to: settings over defaults, and what the parts declare.

Plans and tables are made of it. It is recalled where it can be (:mod:`metabench.suites.recalling`).
Plug-ins are not: places that name one are resolved by its class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from metabench.core import cell
from metabench.core.cell import Resolved
from metabench.core.declaration import Declaration
from metabench.core.errors import SettingError, UnknownName
from metabench.core.registry import methods, solvers, tasks
from metabench.suites import recalling


class Place(NamedTuple):
    """What a suite says of a row and a column: names, settings in groups, and where that is, for
    errors. ``solver`` None: the method's own."""

    task: str
    method: str
    solver: str | None
    set: Mapping[str, Mapping[str, Any]]
    where: str


def resolve(places: Sequence[Place], *, for_later: bool = False) -> list[Resolved]:
    """Each place resolved, in order. Raises UnknownName and SettingError as
    :func:`metabench.core.cell.make_cell`, with a note of the place.

    ``for_later``: as :func:`metabench.suites.recalling.told`.
    """
    return recalling.told(
        question(places), lambda: _asked(places), _plain, _read, for_later=for_later
    )


def question(places: Sequence[Place]) -> dict[str, Any] | None:
    """What is asked of these places; None where a name is not metabench's own."""
    if not all(map(_is_of_metabench, places)):
        return None
    return {"places": [[place.task, place.method, place.solver, place.set] for place in places]}


def _is_of_metabench(place: Place) -> bool:
    """Whether metabench itself has all that a place names."""
    named = [(tasks, place.task), (methods, place.method)]
    named += [(solvers, place.solver)] if place.solver is not None else []
    return all(registry.is_built_in(name) for registry, name in named)


def _asked(places: Sequence[Place]) -> list[Resolved]:
    found = []
    for place in places:
        try:
            found.append(cell.resolve(place.task, place.method, place.solver, place.set))
        except (UnknownName, SettingError) as error:
            error.add_note(place.where)
            raise
    return found


def _plain(found: Sequence[Resolved]) -> list[dict[str, Any]]:
    return [
        {
            "task": one.task,
            "method": one.method,
            "solver": one.solver,
            "task_settings": one.task_settings,
            "method_settings": one.method_settings,
            "solver_settings": one.solver_settings,
            "budget": one.budget,
            "said": asdict(one.declaration),
        }
        for one in found
    ]


def _read(data: Sequence[Mapping[str, Any]]) -> list[Resolved]:
    return [_parsed(**each) for each in data]


def _parsed(said: Mapping[str, Any], **names_and_settings: Any) -> Resolved:
    return Resolved(**names_and_settings, said=declared(said))


def declared(said: Mapping[str, Any]) -> Declaration:
    """A declaration from its fields as plain data."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
    return Declaration(**plain)
