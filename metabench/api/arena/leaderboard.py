"""The verb ``leaderboard``: the page of a played arena, and its records as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api.arena import tournament
from metabench.api.arguments import open_store
from metabench.cluster.submitting import hints
from metabench.core.errors import MetabenchError
from metabench.core.settings import place
from metabench.store import published
from metabench.suites.arena.definition import Arena

if TYPE_CHECKING:
    from metabench.store.store import Store


def leaderboard(
    arena: str | Path | Arena,
    *,
    budget: str,
    out: str | Path,
    store: str | Path | Store | None = None,
) -> Path:
    """Write the leaderboard of an arena to ``out``: one HTML file that needs nothing else. Scores
    that ship with the arena count as the store's records do.

    Raises MetabenchError where finals have not been run, or where vl-convert-python is missing.
    """
    from metabench.reports.pages import leaderboard as page
    from metabench.reports.pages.leaderboard_data import page_data

    store = open_store(store)
    plan = tournament.plan(arena, budget=budget, store=store)
    if not any(p.record for p in plan.finals):
        told = tournament.other_budgets(plan.arena, budget, store)
        raise MetabenchError(
            f"the leaderboard of {plan.arena.name} (budget {budget}) shows finished finals, and "
            f"there is none; run: {_command(arena, budget, store)}{told}"
        )
    kept = {p.record.key: p.record for p in plan.finals if p.record is not None}
    curves = {key: tournament.curve(plan, store, record) for key, record in kept.items()}
    data = page_data(plan.arena, budget, plan.trials, plan.finals, plan.chosen, curves)
    return page.write(data, place("out", out))


def publish_records(
    arena: str | Path | Arena,
    *,
    budget: str,
    out: str | Path,
    store: str | Path | Store | None = None,
) -> Path:
    """Write the whole records of an arena's trials and finals that the store has, finished or not,
    as ``metabench publish`` writes those of a suite: what a leaderboard takes, and what a run goes
    on from in another store (``metabench store import``). Without what names a person or a machine.

    Raises MetabenchError where there is none.
    """
    store = open_store(store)
    plan = tournament.plan(arena, budget=budget, store=store, anew=True)
    records = {p.record.key: p.record for p in (*plan.trials, *plan.finals) if p.record is not None}
    if not records:
        told = tournament.other_budgets(plan.arena, budget, store, anew=True)
        raise MetabenchError(
            f"{plan.arena.name} has no record of budget {budget} in {store.place}; run: "
            f"{_command(arena, budget, store)}{told}"
        )
    return published.publish(records.values(), store, place("out", out))


def _command(arena: str | Path | Arena, budget: str, store: Store) -> str:
    """What plays the arena."""
    name = arena.name if isinstance(arena, Arena) else hints.absolute(arena)
    return hints.command(["arena", name, "--budget", budget], store.root)
