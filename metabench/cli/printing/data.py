"""Prints where data sets are, how they fare, and how downloads go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from metabench.cli.printing import terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from metabench.datasets.download import Progress
    from metabench.datasets.locate import Status as Data
    from metabench.datasets.verify import Verdict


def print_data(out: Console, statuses: Iterable[Data]) -> None:
    """Where each data set is, what it is, what is in it, and what another machine needs of it."""
    from metabench.core.text import size_text

    for status in statuses:
        known = status.dataset
        terminal.heading(out, f"{known.name}: {known.title}")
        if status.found is None:
            terminal.print_repair(out, "missing; ", status.repair)
        else:
            size = size_text(status.bytes)
            terminal.line(
                out, f"in {status.found.path} ({status.found.layout.name}, {size})", "green"
            )
        terminal.prose(out, f"source: {known.origin}; licence: {known.licence}; cite: {known.cite}")
        for layout in known.layouts:
            held = "; ".join(layout.contents())
            terminal.prose(out, f"{layout.name}: folder {layout.folder} with {held}")
        terminal.prose(out, f"without network: {known.offline}")


def print_verdicts(out: Console, verdicts: Sequence[Verdict]) -> None:
    """Each file and what is wrong with it."""
    for verdict in verdicts:
        if verdict.wrong:
            terminal.line(out, f"WRONG  {verdict.path}: {verdict.wrong}", "red")
        else:
            terminal.line(
                out, f"ok     {verdict.path}" + (f": {verdict.note}" if verdict.note else "")
            )
    if not verdicts:
        terminal.line(out, "no data sets here: nothing to verify")


@contextlib.contextmanager
def downloading(out: Console) -> Iterator[Progress]:
    """How far downloads are: a bar on a terminal, else one line an address."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    tasks: dict[str, TaskID] = {}
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=out,
        disable=not out.is_terminal,
        transient=True,
    ) as bars:

        def show(address: str, so_far: int, total: int | None) -> None:
            if address not in tasks:
                tasks[address] = bars.add_task(address.rpartition("/")[2], total=total)
                if not out.is_terminal:
                    terminal.line(out, f"fetching {address}")
            bars.update(tasks[address], completed=so_far, total=total)

        yield show
