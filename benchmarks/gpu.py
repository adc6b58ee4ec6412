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
import functools
import importlib.util
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 540.0
"""Seconds of a whole run: nine of a lease's ten minutes."""
ARCHIVE = "omniglot-store.tar.gz"
WORKER = "benchmarks.gpu_parts.worker"


@dataclass(frozen=True)
class Part:
    """A module of benchmarks/gpu_parts with its limit in seconds; ``needs``: what must be
    importable; ``takes_rest``: whether it has what earlier parts have left of the total too."""

    name: str
    seconds: float
    about: str
    needs: tuple[str, ...] = ("torch", "pydantic", "scipy")
    takes_rest: bool = False


PARTS = (
    Part("agreement", 60, "hypergradients and a short run against the CPU's, in float64"),
    Part("episodes", 110, "MAML at meta-batch 32: looped, batched, captured graph, learn2learn"),
    Part("decays", 80, "87 million decays of a ViT-B: IFT and SGLD in plain steps"),
    Part("lora", 60, "self-edits in bfloat16, one at a time and in batches"),
    Part("omniglot", 200, "MAML at the paper's budget, with a checkpoint for the next run",
         takes_rest=True),
)  # fmt: skip


# --- running --------------------------------------------------------------------------------------


@dataclass
class Journal:
    """Where figures go as they come."""

    file: TextIO
    began: float

    def write(self, line: dict[str, Any]) -> None:
        """A line of JSON, on disk when this returns; and in words to whoever watches."""
        line = {"at": round(time.monotonic() - self.began, 2), **line}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        print(told(line), flush=True)


def told(line: dict[str, Any]) -> str:
    """A line of the journal, for a terminal."""
    head = f"{line['at']:7.1f} s  {line.get('part', ''):<10}"
    if "row" in line:
        figures = ", ".join(f"{k} {shown(v)}" for k, v in line["figures"].items() if v is not None)
        mark = {True: "ok: ", False: "FAILED: ", None: ""}[line["ok"]]
        return " ".join(x for x in (head, mark + line["row"], figures, line["note"]) if x)
    rest = {k: v for k, v in line.items() if k not in ("at", "part")}
    return f"{head} " + json.dumps(rest)


def run_part(
    part: Part, limit: float, options: argparse.Namespace, journal: Journal, log: TextIO
) -> dict[str, Any]:
    """Run it to its end or its limit; how it ended."""
    log.write(f"\n--- {part.name}\n")
    log.flush()
    device = options.device or "cuda"
    # What it is told is less than what it has: it should end by itself.
    own = limit - min(10.0, 0.1 * limit)
    command = [sys.executable, "-P", "-m", options.worker, part.name, device, f"{own:.1f}",
               str(options.store), *(["miniature"] if options.miniature else [])]  # fmt: skip
    begun, rows, failed = time.monotonic(), 0, 0
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
        start_new_session=True,  # with whatever it starts, to be killed together
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for text in process.stdout:
            lines.put(text)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    status, reason = "done", ""
    while True:
        try:
            text = lines.get(timeout=max(0.0, begun + limit - time.monotonic()))
        except queue.Empty:
            status, reason = "killed", f"not ended within {limit:g} s"
            os.killpg(process.pid, signal.SIGKILL)
            break
        if text is None:
            break
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # a line that was cut off
            continue
        rows += "row" in line
        failed += line.get("ok") is False
        journal.write({"part": part.name, **line})
    if status == "done":
        code = process.wait(timeout=max(1.0, begun + limit - time.monotonic()))
        if code:
            status = "failed"
            reason = f"signal {-code}" if code < 0 else f"exit status {code}: {last_words(log)}"
    else:
        process.wait()
    reader.join(timeout=5.0)
    if process.stdout is not None and not reader.is_alive():
        process.stdout.close()
    return {
        "status": status, "reason": reason, "rows": rows, "failed_checks": failed,
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def last_words(log: TextIO) -> str:
    """The last line that a process wrote to the log."""
    lines = Path(log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing said"


def missing(part: Part, device: str) -> list[str]:
    """What is not there that the part needs, in words."""
    out = [f"{name} is not installed" for name in part.needs if not importlib.util.find_spec(name)]
    if not out and device.startswith("cuda") and not finds_cuda():
        out.append("torch finds no CUDA device")
    if part.name == "omniglot":
        root = os.environ.get("METABENCH_DATA")
        if root is None or not (Path(root) / "omniglot").is_dir():
            out.append("METABENCH_DATA names no folder with omniglot/")
    return out


@functools.cache
def finds_cuda() -> bool:
    """Whether torch does, asked in a process of its own: this one keeps off the device."""
    probe = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


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


# --- showing --------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A figure, for a reader."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"


def markdown(lines: list[dict[str, Any]]) -> str:
    """Tables of a journal: what it ran on, how parts ended, and each part's figures."""
    about = next((line["machine"] for line in lines if "machine" in line), {})
    out = ["# One lease of a GPU", "", ", ".join(f"{k} {shown(v)}" for k, v in about.items()), "",
           "| part | ended | seconds | rows | failed checks | reason |",
           "|---|---|---|---|---|---|"]  # fmt: skip
    for line in lines:
        if "status" in line:
            out.append(
                f"| {line['part']} | {line['status']} | {line['seconds']} | {line['rows']} | "
                f"{line['failed_checks']} | {cell(line['reason'])} |"
            )
    for name in dict.fromkeys(line["part"] for line in lines if "row" in line):
        rows = [line for line in lines if line.get("part") == name and "row" in line]
        heads = list(dict.fromkeys(k for r in rows for k, v in r["figures"].items()
                                   if v is not None))  # fmt: skip
        out += ["", f"## {name}", "", "| " + " | ".join(["row", "check", *heads, "note"]) + " |",
                "|" + "---|" * (len(heads) + 3)]  # fmt: skip
        for r in rows:
            check = {True: "ok", False: "FAILED", None: ""}[r["ok"]]
            figures = [shown(r["figures"].get(k)) for k in heads]
            out.append("| " + " | ".join([cell(r["row"]), check, *figures, cell(r["note"])]) + " |")
    return "\n".join(out) + "\n"


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")


# --- what a bare machine lacks --------------------------------------------------------------------

CARRIED = ("pydantic>=2.9",)
"""What runs need and a machine with PyTorch's usual company may not have; what these need comes
along. ``datasets`` and ``submitit``, which metabench depends on too, are imported by nothing here.
"""
BUILT = (
    ("gym==0.26.2",),
    (
        "--config-settings=--build-option=build_ext",
        "learn2learn==0.2.0",
    ),  # by Cython, not as it was
)
"""The peer, of which the package index has the source alone: built by the Python that is named."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

INSTALL = """Where they are to be used, in the repository's root:
  python3 -m pip install -q --no-index --no-deps --upgrade --target SITE {folder}/*.whl
  PYTHONPATH=SITE:. python3 -P -m benchmarks.gpu --out OUT"""
"""With -P metabench is the one of the wheel, whose tasks and methods are inside it."""


def collect(folder: Path, version: str, builder: str | None) -> int:
    """Download wheels for that version of Python, and build the peer's; print how to install."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    where = [x for name in PLATFORMS for x in ("--platform", name)]
    subprocess.run(
        [*pip, "download", "--only-binary=:all:", "--implementation", "cp", "--python-version",
         version, *where, "-d", str(folder), *CARRIED, "gym_notices"], check=True,
    )  # fmt: skip
    left_over = ROOT / "build"
    if left_over.exists():
        raise SystemExit(f"remove {left_over} first: a wheel would hold modules that lie there")
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    shutil.rmtree(left_over, ignore_errors=True)
    built = True
    if builder is None and version == ".".join(map(str, sys.version_info[:2])):
        builder = sys.executable
    if builder is None:
        print(f"learn2learn is left out: --builder PYTHON{version} builds its wheel", flush=True)
    else:
        for name in BUILT:
            done = subprocess.run(
                [builder, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), *name], check=False
            )
            built = built and done.returncode == 0
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(f"{size:.1f} MB of wheels. {INSTALL.format(folder=folder)}")
    return 0 if built else 1


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
        return collect(options.wheels, options.python_version, options.builder)
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
        for part in parts:
            print(f"{part.name:<10} {own.get(part.name, part.seconds):4.0f} s  on {device}"
                  + "".join(f"; {why}" for why in missing(part, device)))  # fmt: skip
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
            lacks = missing(part, device)
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
