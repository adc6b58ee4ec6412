"""Where a method stands in the built-in arenas whose scores are published."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from metabench.core.catalogue import arena_names
from metabench.suites.arena.scores import FILE, ArenaScores

from .notation import table
from .places import ROOT

NONE_YET = "No arena with published scores is built in yet, so there is no rank to give."
HEAD = ("arena", "as", "track", "settings", "rank", "of", "score", "95 % interval")


def of(method: str, results: Path = ROOT / "results") -> str:
    """The rows of a method in every published arena; a sentence where there is none."""
    rows = [row for name in arena_names() for row in _rows(name, method, results)]
    if not [*results.glob(f"arena-*/*/{FILE}")]:
        return NONE_YET
    return table([HEAD, *rows]) or "It does not play in the published arenas."


def _rows(name: str, method: str, results: Path) -> list[tuple[str, ...]]:
    return [
        row for file in sorted((results / name).glob(f"*/{FILE}"))
        for who, row in of_file(name, file) if who == method
    ]  # fmt: skip


@cache
def of_file(arena: str, file: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(method, row of the table) of everybody who played; the budget is the file's folder.

    ``arena`` is a name or the path of a file.
    """
    from metabench.api.arena import tournament
    from metabench.suites.arena import definition as arenas

    known = arenas.load(arena)
    entries = {m.id: m for m in known.methods}
    budget = file.parent.name
    found = []
    with tempfile.TemporaryDirectory() as empty:
        scores = ArenaScores(file, known, budget)
        plan = tournament.plan(known, budget=budget, store=empty, scores=scores)
        played = {p.column for p in plan.finals if p.record is not None}
        for track in sorted({p.track for p in known.problems if p.id in played}):
            for tuned in (True, False):
                places = tournament.standings(plan, track=track, tuned=tuned)
                for place, s in enumerate(places, 1):
                    entry = entries[s.row.removesuffix(arenas.AS_SHIPPED)]
                    found.append((entry.method, (
                        f"{known.name}, {budget}", entry.label or entry.id, track,
                        "tuned" if tuned else "as shipped",
                        f"{s.rank:.2f} (number {place})", str(len(places)), f"{s.score:.2f}",
                        f"{s.low:.2f} to {s.high:.2f}",
                    )))  # fmt: skip
    return tuple(found)
