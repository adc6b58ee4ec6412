"""A hypergradient through many inner steps: time and memory of metabench against higher.

    python -m benchmarks.unrolling [--rows '*-1000'] [--repeats 7] [--json out.json]

A 784-100-10 network (79,510 weights), full batches of 100 images, one log decay a tensor. Every
implementation runs in a process of its own, and they take turns; where metabench rebuilds steps,
it also runs keeping the whole graph. A row counts only where the hypergradient through fewer steps
agrees in float64 with a loop in torch alone. See benchmarks/README.md.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.harness import turns
from benchmarks.implicit import CLASSES, images

PEERS = {"higher": "pip install higher==0.2.1"}
GRAPH = "metabench-graph"
GATE_STEPS = 30


@dataclass(frozen=True)
class Row:
    """One case. ``targets``: peer to the least factor by which metabench is to be faster;
    ``less``: the least factor by which its peak memory is to be below higher's; ``slower``: the
    most times the time of its own way of keeping the graph."""

    name: str
    steps: int
    mode: str
    targets: dict[str, float] = field(default_factory=dict)
    less: float | None = None
    slower: float | None = None
    examples: int = 100
    hidden: int = 100
    pixels: int = 784
    lr: float = 0.1
    threads: int = 1

    @property
    def peers(self) -> tuple[str, ...]:
        """What it is held against."""
        return tuple(PEERS) if self.mode == "graph" else (GRAPH, *PEERS)


ROWS = (
    Row("graph-100", 100, "graph", targets={"higher": 1.1}),
    Row("states-1000", 1000, "states", less=3.5, slower=1.5),
    Row("checkpoints-1000", 1000, "checkpoints", less=25.0, slower=1.7),
)


def inputs(row: Row) -> tuple[dict, str]:
    """Training and validation images, theta and lam."""
    import numpy as np

    n = row.examples
    x, y, kind = images(2 * n, row.pixels)
    rng = np.random.default_rng(1)
    arrays = {"x": x[:n], "y": y[:n], "xv": x[n:], "yv": y[n:]}
    for i, (a, b) in enumerate(itertools.pairwise((row.pixels, row.hidden, CLASSES))):
        for name, shape in ((f"w{i}", (b, a)), (f"b{i}", (b,))):
            arrays[f"theta.{name}"] = rng.uniform(-1, 1, shape) / a**0.5
            arrays[f"lam.{name}"] = rng.uniform(-8, -6, ())
    return arrays, kind


def against(result: dict) -> list[dict]:
    """Peak memory beside higher's, and time beside keeping the graph."""
    row, found = result["row"], result["implementations"]
    own, clock, lines = found.get("metabench"), result["clock"], []

    def say(name: str, other: str, target: float, at_most: bool, ratio) -> None:
        held = found.get(other)
        line = {"peer": name, "ratio": None, "target": target, "met": None, "at_most": at_most}
        if own and held and own[clock] and held[clock]:
            line["ratio"] = ratio(own, held)
        if line["ratio"] is not None and own["agrees"] and held["agrees"]:
            met = line["ratio"] <= target if at_most else line["ratio"] >= target
            line |= {"met": met, "counts": True}
        lines.append(line)

    def smaller(own: dict, held: dict) -> float | None:
        peaks = own.get("peak_bytes"), held.get("peak_bytes")
        return peaks[1] / peaks[0] if all(peaks) else None

    if row["less"]:
        say("higher, peak memory less", "higher", row["less"], False, smaller)
    if row["slower"]:
        say(
            "keeping the graph, time", GRAPH, row["slower"], True,
            lambda own, held: median(own[clock]) / median(held[clock]),
        )  # fmt: skip
    return lines


def describe(row: dict) -> str:
    """What the row is."""
    return (
        f"{row['pixels']}-{row['hidden']}-10, {row['examples']} examples, {row['steps']} steps, "
        f"memory {row['mode']}"
    )


BENCHMARK = turns.Benchmark(
    "benchmarks.unrolling",
    __doc__,
    Path(__file__).parent / "harness" / "unrolling_worker.py",
    ROWS,
    PEERS,
    inputs,
    describe,
    sizes={
        "steps": "inner steps",
        "examples": "images of a batch",
        "hidden": "hidden units",
        "pixels": "inputs of the network; MNIST has 784",
    },
    gate=lambda row: {"gate_steps": min(GATE_STEPS, row.steps)},
    more=against,
    variants=(GRAPH,),
)

if __name__ == "__main__":
    raise SystemExit(turns.main(BENCHMARK))
