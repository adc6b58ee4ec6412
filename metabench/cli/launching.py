"""Running cells in sight of whoever typed a command: progress, names of cells, one summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metabench.cli.printing import terminal
from metabench.cli.printing.cells import cells_of, print_refusals, print_repairs, title_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metabench.cli.options import Choice, Launch
    from metabench.run.workers.local_launcher import Summary
    from metabench.store.store import Store
    from metabench.suites.planning import Planned
    from metabench.suites.suite import Suite


def check(launch: Launch) -> None:
    """Raise SettingError, UnknownName or MetabenchError for a device or a tracker that is not here,
    before anything is run; say where curves can be seen."""
    from metabench.api.running import check_device
    from metabench.api.tracking import check_log

    check_device(launch.device)
    for where in check_log(launch.log or ()):
        terminal.say(f"curves in {where}", err=True)


def in_sight(todo: Sequence[Planned], store: Store, launch: Launch, *, group: str = "") -> Summary:
    """Run the cells of a plan, each named by its places; what went wrong is told at the end.
    ``group``: what trackers call them together."""
    from metabench.api.running import run_planned
    from metabench.cli.progress import view
    from metabench.core.cell import place_names
    from metabench.core.environment.hardware import default_jobs
    from metabench.run.events import CellWords
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
        terminal.console(stderr=True).print(str(summary), markup=False, soft_wrap=True)
    return summary


def run_suite(choice: Choice, suite: Suite, planned: list[Planned], launch: Launch) -> int:
    """Run a plan in sight of the user; the exit code."""
    from metabench.suites.planning import TO_RUN

    check(launch)
    err = terminal.console(stderr=True)
    err.print(
        f"{title_of(suite, choice.budget)}: {cells_of(planned)}",
        markup=False,
        soft_wrap=True,
    )
    print_repairs(err, planned)
    code = int(any(p.state in ("missing data", "missing package", "closed") for p in planned))
    if not any(p.state in TO_RUN for p in planned):
        print_refusals(err, planned)
        return code
    todo = [p for p in planned if p.state in TO_RUN]
    group = f"{suite.name} {choice.budget}"
    summary = in_sight(todo, choice.open_store(), launch, group=group)
    return max(code, summary.exit_code)
