"""Prints what would be queued on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from metabench.core.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from metabench.cluster.submitting.draft import Draft
    from metabench.suites.planning import Planned


def print_draft(out: Console, made: Draft, planned: Sequence[Planned]) -> None:
    """What would be queued, in words."""
    from metabench.core.text import duration

    def line(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    jobs = sum(p.size for p in made.parts)
    cells = counted(len(planned), "cell")
    line(f"{made.suite} (budget {made.budget}) on {made.profile.name}: {cells}")
    if made.others:
        line("  not to run: " + ", ".join(f"{n} {state}" for state, n in made.others.items()))
    if made.left_out:
        names = ", ".join(sorted({*made.left_out.values()}))
        line(f"  {counted(len(made.left_out), 'cell')} with live jobs already ({names})")
    if not made.cells:
        line("  nothing to submit")
        return
    line(
        f"  {counted(made.cells, 'cell')} in {counted(len(made.parts), 'array')} of "
        f"{counted(jobs, 'job')} in all"
    )
    for part in made.parts:
        needs = made.bundles[part.bundle].needs
        count = len(made.bundles[part.bundle].members)
        line(
            f"  array of {counted(part.size, 'job')}, {part.parallel} at a time, for "
            f"{counted(count, 'cell')}: {needs.minutes} min, {needs.memory_gb:g} GB, "
            f"{counted(made.profile.cpus, 'core')}"
            + (f", {counted(made.profile.gpus, 'GPU')}" if made.profile.gpus else "")
            + (f", {made.profile.gres}" if made.profile.gres else "")
        )
    if made.later:
        line(
            f"  {counted(made.later, 'cell')} left for another submission: each kind of job that "
            f"cells need is a job at least, and {made.profile.most_jobs} are the most (most_jobs "
            "of the profile)"
        )
    for text in made.at_most:
        line(f"  {text}")
    seconds, known = made.estimate
    if known:
        what = "GPU time" if made.profile.wants_gpu else "job time"
        line(
            f"  estimate: {duration(seconds / made.profile.at_once)} of {what} for "
            f"{counted(known, 'cell')} by similar finished ones; "
            f"{made.cells - known} of unknown cost"
        )
    else:
        line("  no estimate: no similar cell is finished")
