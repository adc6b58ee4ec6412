"""Prints hours that runs took, what is left, and how good estimates were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from metabench.cli.printing import terminal
from metabench.core.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from metabench.api.spending import Cost, Estimated, Left


def print_costs(out: Console, title: str, found: Sequence[Cost]) -> None:
    """Hours by method or row, and all together."""
    from metabench.api.spending import total

    terminal.heading(out, title)
    if not found:
        terminal.line(out, "no records")
        return
    rows = []
    for c in [*found, whole := total(found)]:
        hours = f"{c.gpu_hours:.3g}", f"{c.cpu_hours:.3g}"
        rows.append((c.name, str(c.cells), *hours, str(c.attempts), _left(c.left)))
    header = ("what", "records", "h on GPUs", "h on CPUs", "attempts", "left to run")
    terminal.grid(out, header, rows)
    terminal.prose(
        out,
        "\nh: hours by the clock of training and evaluation, of each rank where several share a "
        "cell",
    )
    if whole.left.similar:
        terminal.prose(out, "about: by similar cells that have finished here, one after another")
    if whole.left.published:
        machines = " or ".join(whole.left.machines)
        terminal.prose(
            out,
            "published: what they took, one after another, on the machine of the published run "
            f"({machines})",
        )


def _left(left: Left) -> str:
    """How many cells are to be run, and how long that takes by what is known."""
    from metabench.core.text import duration

    told = [counted(left.cells, "cell")]
    told += [f"about {duration(left.similar_hours * 3600)}"] * bool(left.similar)
    told += [f"published {duration(left.published_hours * 3600)}"] * bool(left.published)
    told += [f"{left.unknown} of unknown cost"] * bool(left.unknown)
    return ", ".join(told) if left.cells else ""


def print_estimates(out: Console, found: Sequence[Estimated]) -> None:
    """Measured over estimated seconds of past submissions."""
    if not found:
        return
    terminal.heading(out, "past estimates: measured / estimated")
    rows = [
        (e.submission, str(e.cells), f"{e.median:.2f}", f"{e.low:.2f} to {e.high:.2f}")
        for e in found
    ]
    terminal.grid(out, ("submission", "cells", "median", "most of them"), rows)
