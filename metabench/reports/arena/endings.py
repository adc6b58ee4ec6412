"""How runs of an arena ended where a standing does not say it: exceptions, and no outer step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metabench.core.cell import Cell
from metabench.core.text import counted, listed, shortened
from metabench.suites.arena.definition import AS_SHIPPED
from metabench.suites.planning import Planned


@dataclass(frozen=True)
class Ending:
    """What happened to how many runs, in words; ``failed``: one of those that ended in an
    exception."""

    text: str
    failed: Cell | None = None


def endings(trials: Sequence[Planned], finals: Sequence[Planned]) -> list[Ending]:
    """Exceptions of finals and of trials, a line a reason, and finals that made no outer step:
    their cap does not pay for one, so that what they show is where they began."""
    out = [*_failed("final", finals), *_failed("trial", trials)]
    ended = _ended(finals)
    if idle := [p for p in ended if p.record and p.record.status == "done" and not p.record.steps]:
        told = f"{len(idle)} of {counted(len(ended), 'final')} made no outer step within the cap"
        out.append(Ending(f"{told}: {_places(idle)}"))
    return out


def has_failed(planned: Iterable[Planned]) -> bool:
    """Whether a run of these ended in an exception."""
    return any(p.record is not None and p.record.status == "failed" for p in planned)


def _failed(what: str, planned: Sequence[Planned]) -> list[Ending]:
    ended, by_reason = _ended(planned), dict[str, list[Planned]]()
    for p in ended:
        if p.record is not None and p.record.status == "failed":
            by_reason.setdefault(shortened(p.record.reason), []).append(p)
    several = len({_method(p) for p in ended}) > 1
    out = []
    for reason, of in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        whose = f" ({_places(of)})" * (several or len(of) < len(ended))
        text = f"{len(of)} of {counted(len(ended), what)} failed{whose}: {reason}"
        out.append(Ending(text, of[0].cell))
    return out


def _ended(planned: Iterable[Planned]) -> list[Planned]:
    """Each run once: settings as shipped that were chosen stand in two rows."""
    return [*{p.cell.key: p for p in planned if p.record is not None}.values()]


def _places(planned: Iterable[Planned]) -> str:
    """Methods, each with its problems."""
    found: dict[str, dict[str, None]] = {}
    for p in planned:
        found.setdefault(_method(p), {})[p.column] = None
    return "; ".join(f"{method} on {listed(names)}" for method, names in found.items())


def _method(planned: Planned) -> str:
    return planned.row.partition("#")[0].removesuffix(AS_SHIPPED)
