"""Faults, injected into a real one-machine Slurm; what became of the cells after each.

    python -m tests.cluster.faults [FAULT ...] [--accounting yes|no|both] [--out FOLDER]

Every fault has cells of its own in a store of its own, and one judge: every cell has exactly one
final record, equal to the last bit to that of an undisturbed run in this process; no half-written
file, no lease and no checkpoint is left. Nothing runs but on a cluster that this program brings up
(``slurm/local_cluster.py``), and it ends none but its own processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metabench.cluster_profiles.local_cluster import Options, missing_packages, program, running
from metabench.store.store import Store

from . import FAULTS
from .injection import Row, perform


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    names = ["fault", "how", "accounting", "cells", "lost", "doubled", "identical", "left over"]
    names += ["attempts", "seconds", "verdict"]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        values = asdict(row)
        values["accounting"] = "yes" if row.accounting else "no"
        lines.append("| " + " | ".join(str(v).replace("|", "/") for v in values.values()) + " |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    """Run the command line; 1 where a fault did harm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--accounting", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--base-port", type=int, default=18817)
    parser.add_argument("--home", type=Path, help="a folder for clusters and stores")
    parser.add_argument("--out", type=Path, help="a folder for faults.md and faults.json")
    given = parser.parse_args(words)
    unknown = [name for name in given.faults if name not in FAULTS]
    if unknown:
        parser.error(f"no fault {unknown[0]!r}; known: {', '.join(FAULTS)}")
    kinds = {"yes": [True], "no": [False], "both": [False, True]}[given.accounting]
    if missing := missing_packages(any(kinds)):
        parser.error(f"{', '.join(missing)} not installed: see local_cluster.py install")
    home = given.home or Path(tempfile.mkdtemp(prefix="metabench-faults-"))
    rows: list[Row] = []
    for accounting in kinds:
        place = home / ("with" if accounting else "without")
        options = Options(base_port=given.base_port + 1000 * accounting, accounting=accounting)
        with running(place / "cluster", options) as cluster:
            for name in given.faults or FAULTS:
                one = FAULTS[name]
                if (one.accounting_only and not accounting) or (one.root and os.geteuid()):
                    continue
                row = perform(one, cluster, place / name, Store(home / "reference"))
                rows.append(row)
                print(
                    f"{row.fault:<22} accounting {accounting!s:<5} {row.cells} cells, "
                    f"{row.lost} lost, {row.doubled} doubled, {row.identical} identical, "
                    f"{row.attempts} attempts, {row.seconds} s: {row.verdict}",
                    flush=True,
                )
                if given.out:
                    write(given.out, rows)
    return int(any(row.verdict != "ok" for row in rows))


def write(out: Path, rows: list[Row]) -> None:
    """faults.json and faults.md; rows of other faults that are there already stay."""
    out.mkdir(parents=True, exist_ok=True)
    known: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((out / "faults.json").read_text())["rows"]
    merged = {(r["accounting"], r["fault"]): Row(**r) for r in known}
    merged |= {(r.accounting, r.fault): r for r in rows}
    order = [*FAULTS]
    rows = sorted(
        (r for r in merged.values() if r.fault in FAULTS),
        key=lambda r: (r.accounting, order.index(r.fault)),
    )
    about = {
        "command": "python -m tests.cluster.faults --out FOLDER",
        "python": platform.python_version(),
        "slurm": slurm_version(),
        "rows": [asdict(r) for r in rows],
    }
    (out / "faults.json").write_text(json.dumps(about, indent=1) + "\n")
    head = (
        "# Faults on a one-machine Slurm\n\n"
        f"Slurm {about['slurm']}, Python {about['python']}; made by `{about['command']}`.\n"
        "identical: equal in every bit to a run in one process without faults.\n\n"
    )
    (out / "faults.md").write_text(head + table(rows))


def slurm_version() -> str:
    """Of the commands here."""
    # Unlike sinfo it answers without a configuration.
    command = [program("slurmctld"), "-V"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"[\d.]+", done.stdout)
    return found.group() if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
