"""MAML's outer step on few-shot networks: metabench against learn2learn, higher and TorchOpt.

    python -m benchmarks.few_shot [--rows 'pool-*'] [--repeats 7] [--json out.json]
    python -m benchmarks.few_shot --evaluation [--rows 'omniglot-*'] [--episodes 60]

Every implementation runs in a process of its own, with the same number of threads and the same
inputs; the processes take turns, repeat by repeat. A row counts only where the meta-gradient agrees
in float64 with a reference written in torch alone. With ``--evaluation``: adaptation at evaluation,
one episode after another and several at once, metabench alone. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import evaluation, turns

GATE_TASKS = 2
PEERS = {
    "learn2learn": "pip install gym==0.26.2 requests scipy tqdm && pip install --no-deps "
    '--use-pep517 --config-settings="--build-option=build_ext" learn2learn==0.2.0',
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
        peers = [p for p in PEERS if not (self.first_order and p == "torchopt")]
        return ("autograd", *peers)


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


def _stride(name: str, shots: int, first_order: bool = False, meta_batch: int = 8) -> Row:
    """As the Omniglot suite trains MAML: as many queries a class as shots."""
    return Row(name, "stride", shots, 1, 1, meta_batch, {"learn2learn": 2.0}, first_order, shots)


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
    _stride("stride-1shot-1step-32tasks-1thread", 1, meta_batch=32),
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


# --- showing --------------------------------------------------------------------------------------


def memory(result: dict) -> list[dict]:
    """Peak memory beside learn2learn's, at most as much."""
    own, peer = (result["implementations"].get(n, {}) for n in ("metabench", "learn2learn"))
    if not (own.get("peak_bytes") and peer.get("peak_bytes")):
        return []
    ratio = own["peak_bytes"] / peer["peak_bytes"]
    return [{"peer": "learn2learn, peak memory", "ratio": ratio, "target": 1.0,
             "met": ratio <= 1.0, "counts": True, "at_most": True}]  # fmt: skip


def describe(row: dict) -> str:
    """What the row is."""
    order = "first" if row["first_order"] else "second"
    return (
        f"{row['net']} net, {row['filters']} filters, "
        f"{row['size']}x{row['size']}x{row['channels']}, {row['ways']}-way {row['shots']}-shot, "
        f"{row['queries']} queries a class, {row['steps']} inner steps, {order} order, "
        f"meta-batch {row['meta_batch']}"
    )


BENCHMARK = turns.Benchmark(
    "benchmarks.few_shot",
    __doc__,
    Path(__file__).parent / "harness" / "few_shot_worker.py",
    ROWS,
    PEERS,
    inputs,
    describe,
    sizes={"meta_batch": "episodes an outer step", "filters": "filters"},
    gate=lambda row: {"gate_tasks": min(GATE_TASKS, row.meta_batch)},
    more=memory,
    variants=("autograd",),
    floor="convolutions",
)


def main(arguments: list[str] | None = None) -> int:
    """The rows of training; with --evaluation those of evaluation."""
    given = sys.argv[1:] if arguments is None else arguments
    if "--evaluation" not in given:
        return turns.main(BENCHMARK, given)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_shot --evaluation")
    add = parser.add_argument
    add("--evaluation", action="store_true", help=evaluation.__doc__.partition("\n")[0])
    add("--rows", nargs="*", default=["*"], help="SUITE-ROW-COLUMN or patterns")
    add("--episodes", type=int, default=60, help="test episodes")
    add("--repeats", type=int, default=5, help="timed repeats after one warm-up")
    add("--note", default="", help="what else the machine did meanwhile")
    add("--json", type=Path, metavar="OUT", help="write everything measured there")
    o = parser.parse_args(given)
    return evaluation.main(o.rows, o.episodes, o.repeats, o.json, o.note)


if __name__ == "__main__":
    raise SystemExit(main())
