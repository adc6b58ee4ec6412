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
    from metabench.store.store import Store

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
    target = Store(store if into is None else into)
    for folder in files:
        if folder.is_dir():
            raise WrongPath(f"{folder} is a folder; {_instead(folder, target)}")
    published = [Published(file) for file in files]
    merged = merge(published, target, dry_run=dry_run)
    _tell_merged(merged, damaged=any(file.problems() for file in published))


def _instead(folder: Path, target: Store) -> str:
    """What to type where a folder was given: its published records by name, or else a merge."""
    from metabench.store.published import RECORDS

    if found := sorted(folder.rglob(RECORDS)):
        end = f" and {len(found) - 1} more" * (len(found) > 1)
        return f"published records in it: {shlex.quote(str(found[0]))}{end}"
    words = ["metabench", "store", "merge", str(folder), "--into", str(target.root)]
    return f"of a whole store: {shlex.join(words)}"


def _tell_merged(merged: Merged, *, damaged: bool = False) -> None:
    """``damaged``: whether a file that was named cannot be trusted, or a part of it."""
    for text in (*merged.conflicts, *merged.bad):
        terminal.say(str(text), err=True, color=typer.colors.RED)
    for text in merged.running:
        terminal.say(f"{text}: is being run, left alone")
    terminal.say(str(merged))
    raise typer.Exit(2 if damaged else int(bool(merged.conflicts or merged.bad)))
