"""Implementations of one computation beside each other: processes that take turns.

A benchmark states its rows, their inputs and its worker script (:class:`Benchmark`); this module
gates every implementation against a reference in float64, times them repeat by repeat in turn, and
reports ratios against targets. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

EXACT = 1e-10
"""Largest error of the float64 gradient, relative to its largest entry."""


@dataclass(frozen=True)
class Benchmark:
    """``rows``: dataclasses with ``name``, ``threads``, ``targets`` (peer to the least factor by
    which metabench is to be faster) and ``peers``. ``inputs`` of a row: arrays by name, and what
    they are. ``sizes``: integer fields of a row that the command line may change, with help.
    ``more``: further verdicts of a result. ``gate``: what the gate's case has besides the row.
    ``modules``: what to import of a peer, where it is not the peer's own name; ``variants``: other
    ways of metabench's own, timed beside (a row names in ``peers`` those that it wants)."""

    module: str
    about: str
    worker: Path
    rows: tuple[Any, ...]
    peers: dict[str, str]
    inputs: Callable[[Any], tuple[dict, str]]
    describe: Callable[[dict], str]
    sizes: dict[str, str] = field(default_factory=dict)
    gate: Callable[[Any], dict] = lambda row: {}
    more: Callable[[dict], list[dict]] = lambda result: []
    modules: dict[str, str] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    floor: str = ""
    """What of the worker's does only what any implementation must: timed with the others in rows of
    ``has_floor``, and neither checked nor compared with a target."""
    has_floor: Callable[[Any], bool] = lambda row: True


# --- running --------------------------------------------------------------------------------------


class Worker:
    """A process that waits for its turn."""

    def __init__(self, script: Path, name: str, python: str, folder: Path, threads: int) -> None:
        """``threads``: of operations; metabench uses its own, with one each."""
        self.name = name
        threads = 1 if name == "metabench" else threads
        self.log = (folder / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            [python, str(script), name, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def ask(self, order: str) -> dict | None:
        """The answer, None where the process has died."""
        try:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else None

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self.process.wait()
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {self.process.returncode}"

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def gate(script: Path, name: str, python: str, folder: Path, threads: int) -> str | None:
    """Let an implementation write its gradients; what it died of, if it did."""
    worker = Worker(script, name, python, folder, threads)
    try:
        return None if worker.ask("gate") else worker.last_words()
    finally:
        worker.close()


def errors(folder: Path, name: str) -> dict[str, float]:
    """Error of each dtype's gradient against the reference, relative to its largest entry."""
    import numpy as np

    with np.load(folder / "gradient.reference.npz") as ref, \
            np.load(folder / f"gradient.{name}.npz") as got:  # fmt: skip
        want = [ref[f"float64.{i}"] for i in range(len(ref.files))]
        scale = max(abs(w).max() for w in want)
        return {
            dtype: float(
                max(abs(got[f"{dtype}.{i}"] - w).max() for i, w in enumerate(want)) / scale
            )
            for dtype in ("float64", "float32")
        }


def measure(
    bench: Benchmark, row: Any, names: list[str], python: dict[str, str], repeats: int
) -> dict:
    """Everything that is known of one row afterwards."""
    import numpy as np

    result: dict = {"row": asdict(row), "implementations": {}, "holes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays, result["inputs"] = bench.inputs(row)
        np.savez(folder / "inputs.npz", **arrays)
        case = {**asdict(row), **bench.gate(row)}
        (folder / "case.json").write_text(json.dumps(case))

        # The gate has processes of its own, so that it adds nothing to the timed ones' memory.
        if why := gate(bench.worker, "reference", sys.executable, folder, row.threads):
            raise SystemExit(f"the reference failed: {why}")
        alive = []
        for name in names:
            if why := gate(bench.worker, name, python[name], folder, row.threads):
                result["holes"][name] = why
                continue
            found = errors(folder, name)
            result["implementations"][name] = {
                "error_float64": found["float64"], "error_float32": found["float32"],
                "agrees": found["float64"] < EXACT, "wall": [], "cpu": [],
            }  # fmt: skip
            alive.append(name)
        if bench.floor and bench.has_floor(row) and alive:
            result["floor"] = {"what": bench.floor, "wall": [], "cpu": []}
            alive.append(bench.floor)
        workers = [Worker(bench.worker, n, python[n], folder, row.threads) for n in alive]
        try:
            alive = list(workers)
            for turn in range(repeats + 1):
                for worker in list(alive):
                    answer = worker.ask("step")
                    of = result if worker.name == bench.floor else result["implementations"]
                    key = "floor" if of is result else worker.name
                    if answer is None:
                        result["holes"][worker.name] = worker.last_words()
                        del of[key]
                        alive.remove(worker)
                        continue
                    held = of[key]
                    held["peak_bytes"] = answer.get("peak_bytes")
                    if turn:  # the first turn warms up
                        held["wall"].append(answer["wall"])
                        held["cpu"].append(answer["cpu"])
        finally:
            for worker in workers:
                worker.close()
    return result


def interpreters(bench: Benchmark, given: list[str]) -> dict[str, str]:
    """Implementation to the interpreter that has it; ``given``: paths, or ``peer=path`` for one."""
    python = dict.fromkeys(
        [*bench.peers, *bench.variants, bench.floor, "metabench"], sys.executable
    )
    for text in given:
        name, _, path = text.rpartition("=")
        if name and name not in bench.peers:
            raise SystemExit(f"no peer {name!r}; there are {', '.join(bench.peers)}")
        python |= dict.fromkeys([name] if name else bench.peers, path)
    return python


def missing_peers(bench: Benchmark, peers: list[str], python: dict[str, str]) -> dict[str, str]:
    """Peer to why it cannot take part."""
    absent = {}
    for peer in peers:
        run = subprocess.run(
            [python[peer], "-W", "ignore", "-c", f"import {bench.modules.get(peer, peer)}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if run.returncode:
            absent[peer] = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
    return absent


# --- showing --------------------------------------------------------------------------------------


def verdicts(bench: Benchmark, result: dict, clock: str) -> list[dict]:
    """One line a peer: ratio, target, whether it is met; None where nothing can be said."""
    row, found = result["row"], result["implementations"]
    own = found.get("metabench")
    lines = []
    for peer in bench.peers:
        target = row["targets"].get(peer)
        other = found.get(peer)
        if other is None or own is None or not own[clock]:
            if target is not None:
                lines.append({"peer": peer, "ratio": None, "target": target, "met": None})
            continue
        ratio = median(other[clock]) / median(own[clock])
        counts = own["agrees"] and other["agrees"]
        met = None if target is None or not counts else ratio >= target
        lines.append({"peer": peer, "ratio": ratio, "target": target, "met": met,
                      "counts": counts})  # fmt: skip
    return lines + bench.more(result)


def show(bench: Benchmark, result: dict, clock: str) -> None:
    """The row as text."""
    row = result["row"]
    print(f"\n{row['name']}: {bench.describe(row)}, {row['threads']} threads; {result['inputs']}")
    for name, held in result["implementations"].items():
        ms = sorted(1e3 * s for s in held[clock])
        peak = held.get("peak_bytes")
        print(
            f"  {name:16s} {median(ms):9.1f} ms ({ms[0]:.1f} to {ms[-1]:.1f})"
            f"   peak +{(peak or 0) / 1e6:5.0f} MB"
            f"   error {held['error_float64']:.0e} (float32 {held['error_float32']:.0e})"
            + ("" if held["agrees"] else "   DOES NOT AGREE: not counted")
        )
    if "floor" in result:
        least = median(result["floor"][clock])
        says = [
            f"{name} / floor {median(held[clock]) / least:.2f}x"
            for name, held in result["implementations"].items()
        ]
        print(f"  floor: {bench.floor} alone {1e3 * least:.1f} ms; {', '.join(says)}")
    for name, why in result["holes"].items():
        print(f"  {name:16s}       -   {why}")
    for line in verdicts(bench, result, clock):
        if line["ratio"] is None:
            print(f"  against {line['peer']}: -, target {line['target']:.3g}: not measured")
            continue
        says = f"  against {line['peer']}: {line['ratio']:.2f}x"
        if line["target"] is not None:
            sign = "at most" if line.get("at_most") else "at least"
            verdict = {True: "met", False: "NOT MET", None: "not counted"}[line["met"]]
            says += f", target {sign} {line['target']:.3g}x: {verdict}"
        print(says)


def machine() -> dict:
    """What the figures were taken on."""
    import torch

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            model = next(x.split(":")[1].strip() for x in info if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": model, "cores": os.cpu_count(), "torch": torch.__version__,
            "python": platform.python_version()}  # fmt: skip


def main(bench: Benchmark, arguments: list[str] | None = None) -> int:
    """Run the rows asked for; 1 where a target was missed or an implementation disagreed."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {bench.module}",
        description=bench.about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", nargs="*", default=["*"], help="names or patterns; see --list")
    add("--list", action="store_true", help="name the rows and stop")
    add("--repeats", type=int, default=5, help="timed repeats after one warm-up")
    for name, what in bench.sizes.items():
        add(f"--{name.replace('_', '-')}", type=int, help=f"{what} (default: the row's)")
    choices = ["metabench", *bench.variants, *bench.peers]
    add("--only", nargs="*", choices=choices, help="implementations (default: all)")
    add(
        "--peers-python",
        nargs="+",
        metavar="[PEER=]PATH",
        default=os.environ.get("METABENCH_PEERS", "").split(),
        help="interpreter that has the peers, or one, with the same torch (or METABENCH_PEERS)",
    )
    add(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of the process, for rows of one thread on a busy machine",
    )
    add("--json", type=Path, metavar="OUT", help="write everything measured there")
    options = parser.parse_args(arguments)
    rows = [r for r in bench.rows if any(fnmatch.fnmatch(r.name, p) for p in options.rows)]
    if options.list or not rows:
        print("\n".join(r.name for r in bench.rows))
        return 0 if options.list else 2

    wanted = options.only or choices
    python = interpreters(bench, options.peers_python)
    absent = missing_peers(bench, [p for p in bench.peers if p in wanted], python)
    for peer, why in absent.items():
        print(
            f"{peer} is missing ({why}); its rows are holes. Install it with: {bench.peers[peer]}"
        )
    results = []
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, torch {about['torch']}; {options.clock} "
          f"seconds, medians of {options.repeats}")  # fmt: skip
    for row in rows:
        changes = {name: getattr(options, name) for name in bench.sizes}
        changed = {**asdict(row), **{k: v for k, v in changes.items() if v}}
        names = [n for n in ("metabench", *row.peers) if n in wanted and n not in absent]
        result = measure(bench, type(row)(**changed), names, python, options.repeats)
        result["holes"] |= {p: "not installed" for p in absent if p in row.peers}
        result["clock"] = options.clock
        result["verdicts"] = verdicts(bench, result, options.clock)
        results.append(result)
        show(bench, result, options.clock)
        sys.stdout.flush()
        if options.json:
            text = json.dumps({"machine": about, "clock": options.clock, "rows": results}, indent=1)
            options.json.write_text(text + "\n")
    bad = [r for r in results for v in r["verdicts"] if v["met"] is False]
    bad += [r for r in results for i in r["implementations"].values() if not i["agrees"]]
    return 1 if bad else 0
