"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metabench.cli.command import refuse, typed
from metabench.cli.options import BudgetName, StorePath, check_store, seed_list, typed_path
from metabench.cli.printing import terminal

A_SIDE = (
    "A suite (or SUITE@BUDGET), the folder of a store, a file of published records or its folder, "
    "or the beginning of a run's key."
)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=A_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    budget: BudgetName = "laptop",
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="GROUP.NAME=VALUE", help="A setting of suites. Repeatable."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,5-9", help="Of suites.")
    ] = None,
    store: StorePath = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="EVALUATION/NAME",
            show_default="the suite's, or the task's on test",
            help="What runs are compared by, as test/loss.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            show_default="by the name of --output, else text",
            help="text, markdown, csv or html.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--out",
            parser=typed_path("--output"),
            metavar="FILE",
            help="Write it to this file.",
        ),
    ] = None,
) -> None:
    """Two suites, stores or runs side by side: paired differences with intervals, what one alone
    has, and which versions, machines and settings differ."""
    from metabench import api
    from metabench.api import comparison
    from metabench.api.output import format_of, write

    if not (comparison.looks_up(a) or comparison.looks_up(b)):
        refuse(["store"], f"neither {a} nor {b} is looked up in a store")
    check_store(store)
    fmt = format or (format_of(output) if output is not None else "text")
    found = api.compare(
        a, b, budget=budget if typed("budget") else None, set=set or (), seeds=seed_list(seeds),
        store=store, metric=metric,
    )  # fmt: skip
    text = found.text(fmt, terminal.console().width if output is None else None)
    if output is None:
        terminal.say(text.rstrip("\n"))
    else:
        typer.echo(f"wrote {write(output, text)}")
