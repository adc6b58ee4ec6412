"""The commands about data sets: data list, fetch, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metabench.cli.command import Verb
from metabench.cli.options import typed_path
from metabench.cli.printing import terminal
from metabench.cli.printing.data import downloading, print_data, print_verdicts

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _data(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        data_list()


@app.command("list", cls=Verb)
def data_list() -> None:
    """Every data set that is known: where it is, or what brings it; source, licence, sizes,
    checksums, and what to copy to a machine without network."""
    from metabench.datasets import locate

    print_data(terminal.console(), locate.status())


@app.command("fetch", cls=Verb)
def data_fetch(
    name: Annotated[str, typer.Argument(help="A data set.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", parser=typed_path("--to"), metavar="DIR", help="Instead of the cache."
        ),
    ] = None,
) -> None:
    """Download a data set, check it and unpack it; goes on with what has come already."""
    from metabench.datasets import fetch

    with downloading(terminal.console(stderr=True)) as progress:
        folder = fetch.fetch(name, to=to, progress=progress)
    terminal.say(f"{name} is in {folder}")


@app.command("verify", cls=Verb)
def data_verify(
    name: Annotated[
        str | None, typer.Argument(help="A data set; without, all that are here.")
    ] = None,
) -> None:
    """Check every file of a data set against its size and checksum."""
    from metabench import api

    verdicts = api.data_verify(name)
    print_verdicts(terminal.console(), verdicts)
    raise typer.Exit(int(any(v.wrong for v in verdicts)))
