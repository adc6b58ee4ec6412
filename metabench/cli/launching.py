"""Running cells in sight of whoever typed a command: progress, names of cells, one summary; how the
runs of an arena ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from metabench.cli.options import Launch
    from metabench.reports.arena.endings import Ending
    from metabench.run.workers.local_launcher import Summary
    from metabench.store.store import Store
    from metabench.suites.planning import Planned


def check(launch: Launch) -> None:
    """Raise SettingError, UnknownName or MetabenchError for a device or a tracker that is not here,
    before anything is run; say where curves can be seen."""
    from metabench.api.tracking import check_log
    from metabench.api.verbs import check_device
    from metabench.cli import printing

    check_device(launch.device)
    for where in check_log(launch.log or ()):
        printing.say(f"curves in {where}", err=True)


def in_sight(todo: Sequence[Planned], store: Store, launch: Launch, *, group: str = "") -> Summary:
    """Run the cells of a plan, each named by its places; what went wrong is told at the end.
    ``group``: what trackers call them together."""
    from metabench.api.verbs import run_planned
    from metabench.cli import printing
    from metabench.cli.progress import view
    from metabench.core.cell import place_names
    from metabench.run.events import CellWords
    from metabench.run.workers.local_launcher import default_jobs
    from metabench.store.store import Store

    total = len({p.cell.key for p in todo})
    jobs = launch.jobs or max(1, min(default_jobs() // launch.ranks, total))
    names = place_names((p.row, p.column, p.cell) for p in todo)
    words = CellWords(names, "" if store.root == Store().root else str(store.root))
    with view(total, jobs, words=words) as listener:
        summary = run_planned(
            todo,
            store,
            jobs=jobs,
            device=launch.device,
            time_limit=launch.time_limit,
            checkpoint_seconds=launch.checkpoint_every,
            listener=listener,
            ranks=launch.ranks,
            log=launch.log or (),
            group=group,
        )
    if summary.exit_code:
        printing.console(stderr=True).print(str(summary), markup=False, soft_wrap=True)
    return summary


def print_endings(out: Console, endings: Iterable[Ending], store: Store) -> None:
    """How runs of an arena ended where its tables do not say it, each exception with the command
    that shows one of them whole."""
    from metabench.cli.printing import line, prose
    from metabench.cluster import hints

    for ending in endings:
        if ending.failed is None:
            prose(out, ending.text, "yellow")
            continue
        logs = hints.command(["logs", ending.failed.key[:10]], store.root)
        if len(together := f"{ending.text} ({logs})") <= out.width:
            line(out, together, "red")
        else:
            prose(out, f"{ending.text}:", "red")
            line(out, f"    {logs}", "red")
