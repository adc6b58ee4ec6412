"""Faults, injected into a real one-machine Slurm or into local runs; what became of the cells.

    python -m tests.cluster.faults [FAULT ...] [--accounting yes|no|both] [--out FOLDER]
    python -m tests.cluster.faults [KIND ...] --local N [--seed 0] [--on FOLDER ...] [--out FOLDER]

Every fault has cells of its own in a store of its own, and one judge: every cell has exactly one
final record, equal to the last bit to that of an undisturbed run in this process; no half-written
file, no lease and no checkpoint is left. Nothing runs but on a cluster that this program brings up
(``slurm/local_cluster.py``), or for ``--local`` in its own processes, and it ends none but those.
The local faults take turns on the file systems of ``--on`` (default: the temporary folder and,
where that is another file system, /dev/shm).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metabench.cluster_profiles.local_cluster import Options, missing_packages, program, running
from metabench.store.store import Store

from . import FAULTS, local
from .injection import Row, perform


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of rows that have the same names."""
    names = [name.replace("_", " ") for name in (rows[0] if rows else ())]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        words = ({True: "yes", False: "no"}[v] if isinstance(v, bool) else v for v in row.values())
        lines.append("| " + " | ".join(str(word).replace("|", "/") for word in words) + " |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    """Run the command line; 1 where a fault did harm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--local", type=int, metavar="N", help="N random faults of local runs")
    parser.add_argument("--seed", type=int, default=0, help="from which local faults are drawn")
    parser.add_argument("--on", type=Path, action="append", help="a folder for local runs")
    parser.add_argument("--accounting", choices=("yes", "no", "both"), default="both")
    parser.add_argument("--base-port", type=int, default=18817)
    parser.add_argument("--home", type=Path, help="a folder for clusters and stores")
    parser.add_argument("--out", type=Path, help="a folder for the table, as Markdown and as JSON")
    given = parser.parse_args(words)
    known = FAULTS if given.local is None else local.KINDS
    unknown = [name for name in given.faults if name not in known]
    if unknown:
        parser.error(f"no fault {unknown[0]!r}; known: {', '.join(known)}")
    if given.local is not None:
        return run_local(given)
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


def run_local(given: argparse.Namespace) -> int:
    """Random faults of local runs; 1 where one did harm."""
    folders = given.on or [Path(tempfile.gettempdir()), Path("/dev/shm")]
    folders = [f for f in folders if given.on or f.is_dir()]
    if len({folder.stat().st_dev for folder in folders}) == 1:
        folders = folders[: len(given.on or folders[:1])]
        print(f"one file system alone, that of {folders[0]}: --on names others", flush=True)
    places = [
        (file_system(f), Path(tempfile.mkdtemp(prefix="metabench-faults-", dir=f))) for f in folders
    ]
    start, rows = time.monotonic(), dict[int, local.Row]()
    try:
        for number, row in local.run(given.local, given.seed, places, given.faults):
            rows[id(row)] = row
            harm = [r.verdict for r in rows.values() if r.verdict != "ok"]
            if (number + 1) % 20 == 0 or number + 1 == given.local or row.verdict in harm:
                took = time.monotonic() - start
                so_far = f"{number + 1} of {given.local} faults, {took:.0f} s"
                print(f"{so_far}: {'; '.join(harm) or 'ok'}", flush=True)
    finally:
        if all(row.verdict == "ok" for row in rows.values()):
            for _, folder in places:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"what did harm is in {', '.join(str(folder) for _, folder in places)}")
    order = [*local.KINDS]
    found = sorted(rows.values(), key=lambda r: (r.place, order.index(r.kind)))
    text = (
        "# Random faults of local runs\n\n"
        f"{given.local} faults, Python {platform.python_version()}; made by\n"
        f"`python -m tests.cluster.faults --local {given.local} --seed {given.seed} "
        "--out FOLDER`.\n"
        "identical: equal in every bit to a run in one process without faults.\n\n"
    )
    text += markdown([asdict(row) for row in found])
    print(text)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "local.md").write_text(text)
        about = {"faults": given.local, "seed": given.seed, "rows": [asdict(r) for r in found]}
        (given.out / "local.json").write_text(json.dumps(about, indent=1) + "\n")
    return int(any(row.verdict != "ok" for row in found))


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on."""
    command = ["stat", "-f", "-c", "%T", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


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
    (out / "faults.md").write_text(head + markdown([asdict(r) for r in rows]))


def slurm_version() -> str:
    """Of the commands here."""
    # Unlike sinfo it answers without a configuration.
    command = [program("slurmctld"), "-V"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"[\d.]+", done.stdout)
    return found.group() if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
