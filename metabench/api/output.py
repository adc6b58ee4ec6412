"""What verbs hand over: tables in every format, and files."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.core.catalogue import suite_folder
from metabench.core.errors import MetabenchError, SuiteError, UnknownName, WrongPath
from metabench.store.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

    from metabench.analysis.results import Results

SUFFIXES = {".txt": "text", ".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def format_of(path: str | Path) -> str:
    """The table format that a file name asks for; raises UnknownName."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UnknownName("table format for file names that end in", suffix, SUFFIXES)
    return SUFFIXES[suffix]


@dataclass(frozen=True, repr=False)
class Table:
    """The table of a suite, or what its runs cost: text where it is printed, HTML in a notebook.

    ``results``: what it was made from, cell by cell.
    """

    results: Results
    cost: bool = False

    def text(self, format: str = "text") -> str:
        """The table as "text", "markdown", "latex", "csv", "html" or "rich" (text with colour codes
        for a terminal). Raises UnknownName for another format."""
        from metabench.reports.tables import grids

        return grids.draw(self.results, format, cost=self.cost)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a place of the table: means, their ± and the papers' numbers, in the table's unit
        (the columns of the CSV file)."""
        import pandas as pd

        return pd.read_csv(io.StringIO(self.text("csv")))

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.text("html")


@contextlib.contextmanager
def told(place: Path) -> Iterator[None]:
    """Inside, a file that cannot be written is the user's to repair."""
    try:
        yield
    except OSError as error:
        raise MetabenchError(f"cannot write {error.filename or place}: {error.strerror}") from None


def made(folder: Path) -> Path:
    """The folder, made where it is not there; raises WrongPath where a file is in the way,
    MetabenchError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        kind = WrongPath if in_the_way else MetabenchError
        raise kind(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


def check_folder(folder: Path) -> None:
    """Raise as :func:`made` does where a folder cannot be made, and make none."""
    there = folder
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
    except OSError as error:
        raise MetabenchError(f"cannot make the folder {folder}: {error.strerror}") from None
    if not there.is_dir():
        raise WrongPath(f"cannot make the folder {folder}: Not a directory")


def write(path: str | Path, text: str) -> Path:
    """Write a text file, its folder too; a reader sees all of it or what was there before.

    Raises MetabenchError where that cannot be done.
    """
    path = Path(path)
    made(path.parent)
    # A reason may quote a file name that is no text.
    write_atomic(path, text.encode("utf-8", errors="replace"))
    return path


def default_folder(suite: str, budget: str, asked: str | None) -> Path:
    """``results/SUITE/BUDGET`` for a suite that was ``asked`` for by its name (None: by tasks and
    methods) or by the path of its file; nothing is written (:func:`claim`).

    Raises SuiteError where another suite file of that name has the folder: the two would overwrite
    each other's tables.
    """
    folder, note, owner, file = _ownership(suite, asked)
    if not owner.is_file() and note.is_file():
        owner = folder / note.read_text(encoding="utf-8").strip()
    if owner.is_file() and not (file.is_file() and file.samefile(owner)):
        raise SuiteError(
            f"{folder} holds what the suite file {os.path.relpath(owner)} gives, and "
            f"{asked or suite} is another suite of that name: give --out DIR, or write "
            'name = "..." into the file'
        )
    return folder / budget


def claim(suite: str, asked: str | None) -> None:
    """Say in ``results/SUITE/.suite`` which suite file of one's own the folder belongs to from now
    on."""
    folder, note, owner, file = _ownership(suite, asked)
    if not owner.is_file() and file.is_file():
        write(note, os.path.relpath(file, folder) + "\n")


def _ownership(suite: str, asked: str | None) -> tuple[Path, Path, Path, Path]:
    """The folder of a suite, the note in it, the built-in suite of that name, and the suite file
    that is meant: the built-in one unless a path was ``asked`` for."""
    folder, owner = Path("results", suite), suite_folder() / f"{suite}.toml"
    file = Path(asked) if asked is not None and asked.endswith(".toml") else owner
    return folder, folder / ".suite", owner, file
