"""The command ``arena``: trials, finals and standings of a file of problems and methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.options import BudgetName, Launch, StorePath, typed_path, with_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metabench.analysis.arena import Standing
    from metabench.store.store import Store
    from metabench.suites.planning import Planned


LEGEND = """\
rank: the mean over problems. score: interquartile mean over problems and seeds,
0 no learning, 1 the bound. near: trials within a tenth of the method's
best. regret: what the settings as shipped lack to it. lost: runs without
numbers, which score 0 or as the worst."""


@with_options()
def arena(
    file: Annotated[str, typer.Argument(metavar="FILE", help='A .toml file with kind = "arena".')],
    launch: Launch,
    budget: BudgetName = "laptop",
    store: StorePath = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan of trials and finals; run nothing.")
    ] = False,
) -> None:
    """Rank methods at equal counted cost: tune each on trials, then play the finals, and say where
    all stand. Finished cells are read, not run."""
    from metabench.api import arena as verbs
    from metabench.api.verbs import open_store
    from metabench.cli import printing
    from metabench.run.local_launcher import default_jobs

    out, kept = printing.console(), open_store(store)
    known = verbs.load(typed_path("FILE")(file))
    found = verbs.plan(known, budget=budget, store=kept)
    title = f"{known.name}: {known.title} (budget {budget})"
    if dry_run:
        printing.print_plan(out, f"{title}, trials", found.trials, launch.jobs or default_jobs())
        if found.finals:
            printing.print_plan(
                out, f"{title}, finals", found.finals, launch.jobs or default_jobs()
            )
        return
    code = _run(f"{title}, trials", found.trials, kept, launch)
    if code != 130:
        found = verbs.plan(known, budget=budget, store=kept)
        if found.finals:
            code = max(code, _run(f"{title}, finals", found.finals, kept, launch))
            found = verbs.plan(known, budget=budget, store=kept)
    if found.finals and all(p.record is not None for p in found.finals):
        for track in sorted({p.track for p in known.problems}):
            for tuned in (True, False):
                _print(track, tuned, verbs.standings(found, track=track, tuned=tuned))
    raise typer.Exit(code)


def _run(title: str, planned: Sequence[Planned], store: Store, launch: Launch) -> int:
    """Run what is open in sight of the user; the exit code. What has diverged has its score."""
    from metabench.api.arena import TO_PLAY
    from metabench.cli import printing
    from metabench.cli.launching import check, in_sight

    check(launch)
    err = printing.console(stderr=True)
    err.print(f"{title}: {printing.cells_of(list(planned))}", markup=False, soft_wrap=True)
    printing.print_repairs(err, list(planned))
    todo = [p for p in planned if p.state in TO_PLAY]
    if not todo:
        return 0
    summary = in_sight(todo, store, launch, group=title.partition(":")[0])
    return 130 if summary.interrupted else int(bool(summary.count("failed")))


def _print(track: str, tuned: bool, found: Sequence[Standing]) -> None:
    """One table of standings."""
    from tabulate import tabulate

    from metabench.analysis.rankings import FEWEST
    from metabench.suites.arena import TRACKS

    head = ("row", "rank", "score", "95 % from to", "near", "regret", "lost")
    rows = [
        (
            s.row,
            f"{s.rank:.2f}",
            f"{s.score:.2f}",
            f"{s.low:.2f}  {s.high:.2f}",
            "" if s.near is None else f"{100 * s.near:.0f} %",
            "" if s.regret is None else f"{s.regret:.2f}",
            s.failures,
        )
        for s in found
    ]
    how = "tuned" if tuned else "as shipped"
    n = found[0].problems
    typer.echo(f"\nTrack {track}, {TRACKS[track]}, {how}: {n} problem{'s' * (n != 1)}")
    typer.echo(tabulate(rows, head, tablefmt="simple", disable_numparse=True))
    if n < FEWEST:
        typer.echo(
            f"Below {FEWEST} problems ranks describe these problems, and say nothing of others."
        )
    typer.echo(LEGEND)
