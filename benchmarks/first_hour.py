"""What a user waits for in the first hour: whole commands, from a fresh clone.

    python -m benchmarks.first_hour                    # clone, install, every row
    python -m benchmarks.first_hour --rows list plan --repeats 5
    python -m benchmarks.first_hour --installed        # in this environment, nothing is installed

The last commit is cloned into a folder that is removed afterwards, and installed there into an
environment of its own. Every row is a command in that clone, over an empty store where it runs
cells, and is a process of its own from start to exit. Bytecode is kept between them, as Python does
where nobody forbids it. The rows take turns, repeat by repeat. Wall seconds are what a user waits;
CPU seconds are those of the process and of all that it started. ``import torch`` is the floor of
whatever computes; it is measured beside the rows, in the same turns, and ratios are to it. A row's
cells have their seconds counted off for "beyond its cells": those of their records, divided over
the jobs. Writes first_hour.json and first_hour.txt with ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from tabulate import tabulate

from benchmarks.harness.turns import machine
from metabench.store.store import Store

HERE = Path(__file__).resolve().parents[1]
FLOOR = "torch"
JOBS = 2


@dataclass(frozen=True)
class Row:
    """A command. ``target``: wall seconds at most, of the whole or, with ``beyond_cells``, of what
    lies beyond the cells it runs. ``runs``: whether it runs cells, over an empty store. ``once``:
    one repeat, for what takes long."""

    name: str
    command: tuple[str, ...]
    target: float | None = None
    beyond_cells: bool = False
    runs: bool = False
    once: bool = False


ROWS = (
    Row(FLOOR, ("python", "-c", "import torch")),
    Row("list", ("metabench", "list"), 0.5),
    Row("plan", ("metabench", "plan", "quickstart"), 0.5),
    Row("show", ("metabench", "show", "maml")),
    Row("table", ("metabench", "table", "hoag-kernel-ridge"), 5.0),
    Row("plot", ("metabench", "plot", "hoag-kernel-ridge"), 5.0),
    Row("arena", ("metabench", "table", "arena-1")),
    Row(
        "smoke",
        ("metabench", "run", "closed-form", "--budget", "smoke", "--jobs", str(JOBS)),
        5.0,
        beyond_cells=True,
        runs=True,
    ),
    Row("quickstart", ("metabench", "reproduce", "quickstart"), 100.0, runs=True, once=True),
)
"""Targets are those that the project has set itself."""


@dataclass
class Measured:
    """Seconds of each repeat. ``beyond``: wall seconds less those of the cells."""

    row: Row
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)

    @property
    def judged(self) -> list[float]:
        """What the row's target is about."""
        return self.beyond if self.row.beyond_cells else self.wall


def cell_seconds(store: Path) -> float:
    """Of all records of a store: training and evaluation."""
    costs = [record.cost for record in Store(store).records()]
    return sum(c["seconds"] + c.get("evaluation_seconds", 0.0) for c in costs)


def timed(row: Row, clone: Path, bin_folder: Path, records: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds, and wall seconds beyond the cells. Raises SystemExit where the command
    fails: a time of a command that did not do its work is none."""
    store = Path(tempfile.mkdtemp(dir=clone.parent)) if row.runs else records
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "METABENCH_STORE": str(store),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        row.command, cwd=clone, env=environment, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        end = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise SystemExit(f"{' '.join(row.command)} ended with status {done.returncode}:\n{end}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    beyond = wall - cell_seconds(store) / JOBS if row.beyond_cells else wall
    return wall, cpu, beyond


def prepare(folder: Path, installed: bool) -> tuple[Path, Path, float | None]:
    """The clone, the folder of its commands, and seconds of the installation."""
    clone = folder / "metabench"
    subprocess.run(["git", "clone", "--quiet", str(HERE), str(clone)], check=True)
    if installed:
        return clone, Path(sys.executable).parent, None
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    bin_folder = folder / "venv" / "bin"
    subprocess.run(
        [str(bin_folder / "pip"), "install", "--quiet", "-e", "."], cwd=clone, check=True
    )
    return clone, bin_folder, time.perf_counter() - start


def measure(rows: list[Row], repeats: int, installed: bool) -> tuple[list[Measured], float | None]:
    """All rows in turn. The first turn warms up, and counts for rows that run once."""
    found = [Measured(row) for row in rows]
    folder = Path(tempfile.mkdtemp(prefix="first-hour-"))
    try:
        clone, bin_folder, seconds = prepare(folder, installed)
        records = folder / "records"
        published = sorted((clone / "results").glob("hoag-kernel-ridge/*/records.jsonl.gz"))
        subprocess.run(
            [str(bin_folder / "metabench"), "store", "import", *map(str, published),
             "--store", str(records)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for turn in range(repeats + 1):
            for m in found:
                if m.row.once and turn:
                    continue
                print(f"turn {turn}: {m.row.name}", file=sys.stderr)
                wall, cpu, beyond = timed(m.row, clone, bin_folder, records)
                if turn or m.row.once:
                    m.wall.append(wall)
                    m.cpu.append(cpu)
                    m.beyond.append(beyond)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found, seconds


def shown(found: list[Measured], seconds: float | None, note: str) -> str:
    """The table as text."""
    floor = next((median(m.cpu) for m in found if m.row.name == FLOOR), None)
    lines = []
    for m in found:
        got = median(m.judged)
        target = "" if m.row.target is None else f"{m.row.target:g}"
        met = "" if m.row.target is None else ("met" if got <= m.row.target else "NOT MET")
        lines.append([
            " ".join(m.row.command), f"{median(m.wall):.2f}", f"{median(m.cpu):.2f}",
            "" if floor is None else f"{median(m.cpu) / floor:.2f}",
            f"{got:.2f}" if m.row.beyond_cells else "", target, met,
        ])  # fmt: skip
    head = ["command", "wall s", "CPU s", "imports of torch", "beyond its cells, s",
            "at most, s", ""]  # fmt: skip
    text = tabulate(lines, headers=head, disable_numparse=True)
    known = machine()
    of = f"{known['processor']}, {known['cores']} cores, torch {known['torch']}, Python "
    text += f"\n\n{of}{known['python']}; medians of {len(found[0].wall)}, whole processes.\n"
    if seconds is not None:
        text += f"Installation into a new environment: {seconds:.0f} s, downloads included.\n"
    return text + (f"{note}\n" if note else "")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 where a target is missed."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_hour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--installed", action="store_true", help="install nothing")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--out", type=Path, default=None, help="folder for the two files")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        parser.error("--repeats is at least 1")
    rows = [row for row in ROWS if row.name in given.rows or row.name == FLOOR]
    found, seconds = measure(rows, given.repeats, given.installed)
    text = shown(found, seconds, given.note)
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "first_hour.txt").write_text(text)
        data = {"machine": machine(), "installation": seconds, "note": given.note,
                "rows": [asdict(m) for m in found]}  # fmt: skip
        (given.out / "first_hour.json").write_text(json.dumps(data, indent=1) + "\n")
    judged = [m for m in found if m.row.target is not None]
    return int(any(median(m.judged) > m.row.target for m in judged))


if __name__ == "__main__":
    sys.exit(main())
