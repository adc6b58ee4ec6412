"""Everything that is to be measured on one GPU, in one lease of ten minutes.

    python -m benchmarks.gpu --out DIR              # all parts, on CUDA
    python -m benchmarks.gpu --list                 # the parts and their limits
    python -m benchmarks.gpu --dry-run              # what would be run, and what is missing
    python -m benchmarks.gpu --device cpu --miniature --out DIR    # does everything run?
    python -m benchmarks.gpu --wheels DIR           # beforehand, where there is a network

Each part is a process of its own with a time limit, beyond which it is killed; the others go on.
Figures are written when they are there: lines of JSON to DIR/gpu.jsonl, and at the end a Markdown
table to DIR/gpu.md. Status 1 where a part did not end, or a check failed. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import tarfile
import time
from pathlib import Path

from benchmarks.gpu_parts import bare_machine
from benchmarks.gpu_parts.journal import Journal, markdown
from benchmarks.gpu_parts.processes import Part, run_part

TOTAL = 540.0
"""Seconds of a whole run: nine of a lease's ten minutes."""
ARCHIVE = "omniglot-store.tar.gz"
WORKER = "benchmarks.gpu_parts.worker"


PARTS = (
    Part("agreement", 60, "hypergradients and a short run against the CPU's, in float64"),
    Part("episodes", 110, "MAML at meta-batch 32: looped, batched, captured graph, learn2learn",
         wants=("learn2learn.algorithms",)),
    Part("decays", 80, "87 million decays of a ViT-B: IFT and SGLD in plain steps"),
    Part("lora", 60, "self-edits in bfloat16, one at a time and in batches"),
    Part("omniglot", 200, "MAML at the paper's budget, with a checkpoint for the next run",
         takes_rest=True),
)  # fmt: skip


# --- running --------------------------------------------------------------------------------------


def keep_store(store: Path, out: Path) -> None:
    """The store of the paper's run as one file, for the next one."""
    if store.is_dir() and any(store.iterdir()):
        with tarfile.open(out / ARCHIVE, "w:gz") as packed:
            packed.add(store, arcname="store")


def bring_store(archive: Path, store: Path) -> None:
    """Unpack what :func:`keep_store` packed."""
    with tarfile.open(archive) as packed:
        packed.extractall(store.parent, filter="data")
    if (store.parent / "store") != store:
        (store.parent / "store").rename(store)


# --- the command ----------------------------------------------------------------------------------


def limits(options: argparse.Namespace) -> dict[str, float]:
    """Part to the seconds that --limit gives it. Raises SystemExit for what it cannot read."""
    out = {}
    for text in options.limit:
        name, _, seconds = text.partition("=")
        try:
            limit = float(seconds)
        except ValueError:
            limit = math.nan
        if not 0 < limit < math.inf:
            raise SystemExit(f"--limit {text}: PART=SECONDS, as in episodes=90")
        out[chosen([name])[0].name] = limit
    return out


def chosen(names: list[str]) -> list[Part]:
    """Parts by name, in their order. Raises SystemExit for one that is not there."""
    known = [part.name for part in PARTS]
    for name in names:
        if name not in known:
            raise SystemExit(f"no part {name!r}; there are {', '.join(known)}")
    return [part for part in PARTS if part.name in names]


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", default=[p.name for p in PARTS], metavar="PART", help="see --list")
    add("--list", action="store_true", help="name the parts with their limits and stop")
    add("--out", type=Path, default=Path("gpu-figures"), metavar="DIR", help="where figures go")
    add("--device", help="default: cuda")
    add("--miniature", action="store_true", help="sizes at which each part takes seconds of a CPU")
    add("--limit", nargs="+", default=[], metavar="PART=SECONDS", help="another limit of a part")
    add("--total", type=float, default=TOTAL, help="seconds of all parts together")
    add("--dry-run", action="store_true", help="say what would be run and what is missing")
    add("--store", type=Path, metavar="DIR", help="of the paper's run; default: beside --out")
    add("--continue", dest="archive", type=Path, metavar="FILE", help=f"an earlier run's {ARCHIVE}")
    add("--wheels", type=Path, metavar="DIR", help="collect what a bare machine lacks, and stop")
    add("--python-version", default="3.12", help="of that machine")
    add("--builder", metavar="PYTHON", help="an interpreter of that version, to build learn2learn")
    add("--worker", default=WORKER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list:
        for part in PARTS:
            print(f"{part.name:<10} {part.seconds:4.0f} s  {part.about}")
        return 0
    if options.wheels:
        return bare_machine.collect(options.wheels, options.python_version, options.builder)
    parts, own = chosen(options.parts), limits(options)
    if not 0 < options.total < math.inf:
        raise SystemExit(f"--total {options.total:g}: seconds of all parts together, above 0")
    for folder in (options.out, *options.out.parents):
        if folder.exists() and not folder.is_dir():
            raise SystemExit(f"--out {options.out}: {folder} is a file; name a folder")
    if options.archive and not options.archive.is_file():
        raise SystemExit(f"--continue {options.archive}: there is no such file")
    device = options.device or "cuda"
    if options.dry_run:
        bare_machine.dry_run(parts, own, device)
        return 0
    return run(parts, own, options)


def run(parts: list[Part], own: dict[str, float], options: argparse.Namespace) -> int:
    """All of them; 1 where one did not end well, or a check failed."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    options.store = (options.store or out.parent / f"{out.name}-store").resolve()
    if options.archive:
        bring_store(options.archive, options.store)
    well, began = True, time.monotonic()
    device = options.device or "cuda"
    with (out / "gpu.jsonl").open("a", encoding="utf-8") as file, \
            (out / "gpu.log").open("a", encoding="utf-8") as log:  # fmt: skip
        journal = Journal(file, began)
        start = file.tell()
        for part in parts:
            left = options.total - (time.monotonic() - began)
            limit = own.get(part.name, left if part.takes_rest else part.seconds)
            if limit > left:
                limit = left
            lacks = bare_machine.missing(part, device)
            if lacks or limit < 1:
                reason = "; ".join(lacks) or "no time was left of the total"
                ended = {"status": "left out", "reason": reason, "rows": 0, "failed_checks": 0,
                         "seconds": 0.0}  # fmt: skip
            else:
                ended = run_part(part, limit, options, journal, log)
            journal.write({"part": part.name, **ended})
            well = well and ended["status"] == "done" and not ended["failed_checks"]
            if part.name == "omniglot":
                keep_store(options.store, out)
            lines = (out / "gpu.jsonl").read_text(encoding="utf-8")[start:].splitlines()
            (out / "gpu.md").write_text(
                markdown([json.loads(line) for line in lines]), encoding="utf-8"
            )
    print(f"figures are in {out}/gpu.md and {out}/gpu.jsonl", flush=True)
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
