"""MAML's outer step on few-shot networks: metabench against learn2learn, higher and TorchOpt.

    python -m benchmarks.few_shot [--rows 'pool-*'] [--repeats 7] [--json out.json]

Every implementation runs in a process of its own, with the same number of threads and the same
inputs; the processes take turns, repeat by repeat. A row counts only where the meta-gradient agrees
in float64 with a reference written in torch alone. See benchmarks/README.md.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

WORKER = Path(__file__).with_name("_few_shot_worker.py")
EXACT = 1e-10
"""Largest error of the float64 meta-gradient, relative to its largest entry."""
GATE_TASKS = 2
PEERS = {
    "learn2learn": "pip install gym==0.26.2 requests scipy tqdm && pip install --no-deps "
    '--config-settings="--build-option=build_ext" learn2learn==0.2.0',
    "higher": "pip install higher==0.2.1",
    "torchopt": "pip install torchopt==0.7.3",
}


@dataclass(frozen=True)
class Row:
    """One case; ``targets``: peer to the least factor by which metabench is to be faster."""

    name: str
    net: str
    shots: int
    steps: int
    threads: int
    meta_batch: int
    targets: dict[str, float] = field(default_factory=dict)
    first_order: bool = False
    queries: int = 15
    size: int = 28
    channels: int = 1
    filters: int = 64
    ways: int = 5
    inner_lr: float = 0.4

    @property
    def peers(self) -> tuple[str, ...]:
        """TorchOpt has no first-order switch."""
        return tuple(p for p in PEERS if not (self.first_order and p == "torchopt"))


def _small(
    name: str,
    shots: int,
    steps: int,
    threads: int,
    targets: dict[str, float],
    meta_batch: int = 8,
    first_order: bool = False,
) -> Row:
    return Row(name, "pool", shots, steps, threads, meta_batch, targets, first_order)


def _large(name: str, threads: int, targets: dict[str, float], first_order: bool = False) -> Row:
    return Row(name, "pool", 5, 5, threads, 2, targets, first_order, 15, 84, 3, 32, inner_lr=0.01)


def _stride(name: str, shots: int, first_order: bool = False) -> Row:
    return Row(name, "stride", shots, 1, 1, 16, {}, first_order, 5)


ALL_FAST = {"learn2learn": 1.8, "higher": 1.8, "torchopt": 1.8}
ROWS = (
    _small("pool-1shot-5steps-2threads", 1, 5, 2, {"learn2learn": 1.8, "higher": 2.0}, 32),
    _small("pool-1shot-5steps-1thread", 1, 5, 1, ALL_FAST, 32),
    _small("pool-1shot-1step-2threads", 1, 1, 2, {"learn2learn": 2.5}),
    _small("pool-5shot-1step-2threads", 5, 1, 2, {"learn2learn": 2.0}),
    _small("pool-5shot-5steps-2threads", 5, 5, 2, {"learn2learn": 2.0}),
    _small("pool-first-1shot-5steps-2threads", 1, 5, 2, {"learn2learn": 1.9}, first_order=True),
    _small("pool-first-1shot-5steps-1thread", 1, 5, 1, {"learn2learn": 1.25, "higher": 1.25},
           first_order=True),
    _large("large-5shot-5steps-1thread", 1, {"learn2learn": 2.5}),
    _large("large-first-5shot-5steps-2threads", 2, {"learn2learn": 2.0}, first_order=True),
    _stride("stride-1shot-1step-1thread", 1),
    _stride("stride-5shot-1step-1thread", 5),
    _stride("stride-first-1shot-1step-1thread", 1, True),
    _stride("stride-first-5shot-1step-1thread", 5, True),
)  # fmt: skip


# --- inputs ---------------------------------------------------------------------------------------


def drawings(number: int):
    """Images [classes, drawings, 28, 28] in [0, 1], ink bright, and what they are."""
    import numpy as np

    root = os.environ.get("METABENCH_DATA")
    path = Path(root) / "omniglot" / "omniglot28.npz" if root else None
    if path is not None and path.is_file():
        with np.load(path) as data:
            return data["images"][:number].astype("float32") / 255, "Omniglot"
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 40)[:, None, None]
    grid = np.stack(np.meshgrid(np.arange(28.0), np.arange(28.0), indexing="ij"), -1)
    images = np.zeros((number, 20, 28, 28), dtype="float32")
    for c in range(number):
        ends = 4 + 20 * rng.random((3, 3, 2))  # three curves, three control points
        for d in range(20):
            p = ends + rng.normal(0, 0.7, ends.shape)
            curves = (1 - t) ** 2 * p[:, 0] + 2 * t * (1 - t) * p[:, 1] + t**2 * p[:, 2]
            far = np.sqrt(((grid[:, :, None] - curves.reshape(-1, 2)) ** 2).sum(-1)).min(-1)
            images[c, d] = np.clip(1.3 - far, 0, 1)
    return images, "drawn curves (METABENCH_DATA has no omniglot/omniglot28.npz)"


def inputs(row: Row) -> tuple[dict, str]:
    """The arrays of every episode and the first weights."""
    import numpy as np

    per_class = row.shots + row.queries
    if per_class > 20:
        raise SystemExit(f"row {row.name}: {per_class} drawings a class, there are 20")
    images, kind = drawings(200)
    rng = np.random.default_rng(1)
    arrays = {}
    for i in range(row.meta_batch):
        classes = rng.choice(len(images), row.ways, replace=False)
        x = np.stack([images[c][rng.permutation(20)[:per_class]] for c in classes])
        if row.size != 28:
            x = x.repeat(row.size // 28, 2).repeat(row.size // 28, 3)
        x = x[:, :, None]
        if row.channels > 1:  # inks of different colours
            ink = 0.3 + 0.7 * rng.random((row.ways, 1, row.channels, 1, 1))
            x = (x * ink).astype("float32")
        y = np.arange(row.ways)
        for part, cut in (("s", slice(0, row.shots)), ("q", slice(row.shots, None))):
            n = x[:, cut].shape[1]
            arrays[f"x{part}.{i}"] = x[:, cut].reshape(-1, row.channels, row.size, row.size)
            arrays[f"y{part}.{i}"] = y.repeat(n)
    size = row.size
    for block in range(1, 5):
        c = row.channels if block == 1 else row.filters
        bound = (6 / (9 * (c + row.filters))) ** 0.5
        arrays[f"first.conv{block}.weight"] = rng.uniform(-bound, bound, (row.filters, c, 3, 3))
        arrays[f"first.norm{block}.weight"] = np.ones(row.filters)
        arrays[f"first.norm{block}.bias"] = np.zeros(row.filters)
        size = size // 2 if row.net == "pool" else -(-size // 2)
    features = row.filters * (size * size if row.net == "pool" else 1)
    bound = (6 / (features + row.ways)) ** 0.5
    arrays["first.head.weight"] = rng.uniform(-bound, bound, (row.ways, features))
    arrays["first.head.bias"] = np.zeros(row.ways)
    return arrays, kind


# --- running --------------------------------------------------------------------------------------


class Worker:
    """A process that waits for its turn."""

    def __init__(self, name: str, python: str, folder: Path, threads: int) -> None:
        self.name = name
        threads = 1 if name == "metabench" else threads
        self.log = (folder / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            [python, str(WORKER), name, str(folder)],
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


def gate(name: str, python: str, folder: Path, threads: int) -> str | None:
    """Let an implementation write its meta-gradients; what it died of, if it did."""
    worker = Worker(name, python, folder, threads)
    try:
        return None if worker.ask("gate") else worker.last_words()
    finally:
        worker.close()


def errors(folder: Path, name: str) -> dict[str, float]:
    """Error of each dtype's meta-gradient against the reference, relative to its largest entry."""
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


def measure(row: Row, names: list[str], python: dict[str, str], repeats: int) -> dict:
    """Everything that is known of one row afterwards."""
    import numpy as np

    result: dict = {"row": asdict(row), "implementations": {}, "holes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays, result["inputs"] = inputs(row)
        np.savez(folder / "inputs.npz", **arrays)
        case = {**asdict(row), "gate_tasks": min(GATE_TASKS, row.meta_batch)}
        (folder / "case.json").write_text(json.dumps(case))

        # The gate has processes of its own, so that it adds nothing to the timed ones' memory.
        if why := gate("reference", sys.executable, folder, row.threads):
            raise SystemExit(f"the reference failed: {why}")
        alive = []
        for name in names:
            if why := gate(name, python[name], folder, row.threads):
                result["holes"][name] = why
                continue
            found = errors(folder, name)
            result["implementations"][name] = {
                "error_float64": found["float64"], "error_float32": found["float32"],
                "agrees": found["float64"] < EXACT, "wall": [], "cpu": [],
            }  # fmt: skip
            alive.append(name)
        workers = [Worker(n, python[n], folder, row.threads) for n in alive]
        try:
            alive = list(workers)
            for turn in range(repeats + 1):
                for worker in list(alive):
                    answer = worker.ask("step")
                    if answer is None:
                        result["holes"][worker.name] = worker.last_words()
                        del result["implementations"][worker.name]
                        alive.remove(worker)
                        continue
                    held = result["implementations"][worker.name]
                    held["peak_bytes"] = answer.get("peak_bytes")
                    if turn:  # the first turn warms up
                        held["wall"].append(answer["wall"])
                        held["cpu"].append(answer["cpu"])
        finally:
            for worker in workers:
                worker.close()
    return result


def missing_peers(peers: list[str], python: dict[str, str]) -> dict[str, str]:
    """Peer to why it cannot take part."""
    absent = {}
    for peer in peers:
        run = subprocess.run(
            [python[peer], "-W", "ignore", "-c", f"import {peer}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if run.returncode:
            absent[peer] = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
    return absent


# --- showing --------------------------------------------------------------------------------------


def verdicts(result: dict, clock: str) -> list[dict]:
    """One line a peer: ratio, target, whether it is met; None where nothing can be said."""
    row, found = result["row"], result["implementations"]
    own = found.get("metabench")
    lines = []
    for peer in PEERS:
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
    if own and own.get("peak_bytes") and (peer := found.get("learn2learn", {})).get("peak_bytes"):
        ratio = own["peak_bytes"] / peer["peak_bytes"]
        lines.append({"peer": "learn2learn, peak memory", "ratio": ratio, "target": 1.0,
                      "met": ratio <= 1.0, "counts": True})  # fmt: skip
    return lines


def show(result: dict, clock: str) -> None:
    """The row as text."""
    row = result["row"]
    order = "first" if row["first_order"] else "second"
    print(
        f"\n{row['name']}: {row['net']} net, {row['filters']} filters, "
        f"{row['size']}x{row['size']}x{row['channels']}, {row['ways']}-way {row['shots']}-shot, "
        f"{row['queries']} queries a class, {row['steps']} inner steps, {order} order, "
        f"meta-batch {row['meta_batch']}, {row['threads']} threads; {result['inputs']}"
    )
    for name, held in result["implementations"].items():
        ms = sorted(1e3 * s for s in held[clock])
        peak = held.get("peak_bytes")
        print(
            f"  {name:12s} {median(ms):9.1f} ms ({ms[0]:.1f} to {ms[-1]:.1f})"
            f"   peak +{(peak or 0) / 1e6:5.0f} MB"
            f"   error {held['error_float64']:.0e} (float32 {held['error_float32']:.0e})"
            + ("" if held["agrees"] else "   DOES NOT AGREE: not counted")
        )
    for name, why in result["holes"].items():
        print(f"  {name:12s}       -   {why}")
    for line in verdicts(result, clock):
        if line["ratio"] is None:
            print(f"  against {line['peer']}: -, target {line['target']}: not measured")
            continue
        says = f"  against {line['peer']}: {line['ratio']:.2f}x"
        if line["target"] is not None:
            sign = "at most" if "memory" in line["peer"] else "at least"
            verdict = {True: "met", False: "NOT MET", None: "not counted"}[line["met"]]
            says += f", target {sign} {line['target']}x: {verdict}"
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


def main(arguments: list[str] | None = None) -> int:
    """Run the rows asked for; 1 where a target was missed or an implementation disagreed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_shot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", nargs="*", default=["*"], help="names or patterns; see --list")
    add("--list", action="store_true", help="name the rows and stop")
    add("--repeats", type=int, default=5, help="timed repeats after one warm-up")
    add("--meta-batch", type=int, help="episodes an outer step (default: the row's)")
    add("--filters", type=int, help="filters (default: the row's)")
    add("--only", nargs="*", choices=["metabench", *PEERS], help="implementations (default: all)")
    add(
        "--peers-python",
        default=os.environ.get("METABENCH_PEERS", sys.executable),
        help="interpreter that has the peers, with the same torch (or METABENCH_PEERS)",
    )
    add(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of the process, for rows of one thread on a busy machine",
    )
    add("--json", type=Path, metavar="OUT", help="write everything measured there")
    options = parser.parse_args(arguments)
    rows = [r for r in ROWS if any(fnmatch.fnmatch(r.name, p) for p in options.rows)]
    if options.list or not rows:
        print("\n".join(r.name for r in ROWS))
        return 0 if options.list else 2

    wanted = options.only or ["metabench", *PEERS]
    python = {"metabench": sys.executable, **{p: options.peers_python for p in PEERS}}
    absent = missing_peers([p for p in PEERS if p in wanted], python)
    for peer, why in absent.items():
        print(f"{peer} is missing ({why}); its rows are holes. Install it with: {PEERS[peer]}")
    results = []
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, torch {about['torch']}; {options.clock} "
          f"seconds, medians of {options.repeats}")  # fmt: skip
    for row in rows:
        changes = {"meta_batch": options.meta_batch, "filters": options.filters}
        changed = {**asdict(row), **{k: v for k, v in changes.items() if v}}
        names = [n for n in ("metabench", *row.peers) if n in wanted and n not in absent]
        result = measure(Row(**changed), names, python, options.repeats)
        result["holes"] |= {p: "not installed" for p in absent if p in row.peers}
        result["verdicts"] = verdicts(result, options.clock)
        results.append(result)
        show(result, options.clock)
        sys.stdout.flush()
        if options.json:
            text = json.dumps({"machine": about, "clock": options.clock, "rows": results}, indent=1)
            options.json.write_text(text + "\n")
    bad = [r for r in results for v in r["verdicts"] if v["met"] is False]
    bad += [r for r in results for i in r["implementations"].values() if not i["agrees"]]
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
