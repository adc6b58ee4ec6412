"""The commands about stores of records: store merge, import."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.command import Verb, refuse
from metabench.cli.options import StorePath, typed_path
from metabench.cli.printing import terminal

if TYPE_CHECKING:
    from metabench.store.merge import Merged

app = typer.Typer(no_args_is_help=True)


@app.command("merge", cls=Verb)
def store_merge(
    sources: Annotated[
        list[Path],
        typer.Argument(parser=typed_path("STORE"), metavar="STORE...", help="Folders of stores."),
    ],
    into: Annotated[
        Path,
        typer.Option(
            "--into", parser=typed_path("--into"), metavar="DIR", help="The store to add to."
        ),
    ],
) -> None:
    """Copy what one store lacks from others; results that differ are told, and not copied."""
    from metabench.store.merge import merge
    from metabench.store.store import Store

    merged = merge([Store(path) for path in sources], Store(into))
    _tell_merged(merged)


@app.command("import", cls=Verb)
def store_import(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Published records: results/*/*/records.jsonl.gz."),
    ],
    store: StorePath = None,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", parser=typed_path("--into"), hidden=True, help="--store, as it was."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the files and count; write nothing.")
    ] = False,
) -> None:
    """Put published records into a store, for table, plot and report to work with; what the store
    has already stays, and results that differ are told."""
    from metabench.core.errors import WrongPath
    from metabench.store.merge import merge
    from metabench.store.published import Published
    from metabench.store.store import Store

    if into is not None:
        refuse(["store"], "--into is its older name: give one of the two")
    for file in files:
        if file.is_dir():
            target = Store(store if into is None else into).root
            raise WrongPath(
                f"{file} is a folder, and what is imported are files; of a whole store: "
                + shlex.join(["metabench", "store", "merge", str(file), "--into", str(target)])
            )
    published = [Published(file) for file in files]
    merged = merge(published, Store(store if into is None else into), dry_run=dry_run)
    _tell_merged(merged, damaged=any(file.problems() for file in published))


def _tell_merged(merged: Merged, *, damaged: bool = False) -> None:
    """``damaged``: whether a file that was named cannot be trusted, or a part of it."""
    for text in (*merged.conflicts, *merged.bad):
        terminal.say(str(text), err=True, color=typer.colors.RED)
    for text in merged.running:
        terminal.say(f"{text}: is being run, left alone")
    terminal.say(str(merged))
    raise typer.Exit(2 if damaged else int(bool(merged.conflicts or merged.bad)))
