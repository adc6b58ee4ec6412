"""The command ``leaderboard``: the page of an arena that has been played."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metabench.cli.options import ArenaBudget, StorePath, typed_path
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import tell_bad_files


def leaderboard(
    file: Annotated[str, typer.Argument(metavar="FILE", help='A .toml file with kind = "arena".')],
    budget: ArenaBudget = None,
    store: StorePath = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=typed_path("--out"),
            metavar="PAGE.html",
            show_default="leaderboard.html",
            help="The page.",
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            "--records",
            parser=typed_path("--records"),
            metavar="FILE.jsonl.gz",
            help="Write the arena's whole records instead: a file to drop onto somebody's "
            "leaderboard, or to import where the arena is to go on.",
        ),
    ] = None,
) -> None:
    """Write where the methods of an arena stand as one HTML page: sorted and filtered in the
    browser, with every record; runs nothing."""
    from metabench.api.arena import leaderboard as verbs
    from metabench.api.arena import tournament
    from metabench.core.errors import SettingError
    from metabench.store.store import Store

    if out and records:
        raise SettingError("give --out for the page or --records for a file of records, not both")
    arena = typed_path("FILE")(file)
    budget = budget or tournament.default_budget(tournament.load(arena))
    kept = Store(store)
    tell_bad_files(kept.problems())
    if records:
        path = verbs.publish_records(arena, budget=budget, store=kept, out=records)
    else:
        page = out or Path("leaderboard.html")
        path = verbs.leaderboard(arena, budget=budget, store=kept, out=page)
    terminal.say(f"wrote {path}")
