"""One implicit hypergradient by a Neumann series: metabench against four other libraries.

    python -m benchmarks.implicit [--rows 'logistic-*'] [--repeats 7] [--json out.json]

Every implementation runs in a process of its own, with the same number of threads and the same
inputs; the processes take turns, repeat by repeat. A row counts only where the hypergradient agrees
in float64 with a reference written in torch alone. See benchmarks/README.md.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import turns

PEERS = {
    "hypergrad": "pip install --no-deps hypergrad==0.0.1",
    "hypertorch": "pip install git+https://github.com/prolearner/hypertorch (of that name the "
    "package index has another library; as its module is hypergrad too, it needs an environment "
    "of its own)",
    "betty": "pip install --no-deps --ignore-requires-python betty-ml==0.2.1",
    "torchopt": "pip install torchopt==0.7.3",
}
MODULES = {
    "hypergrad": "hypergrad.approx_hypergrad",
    "hypertorch": "hypergrad.hypergradients",
    "betty": "betty.hypergradient.neumann",
}
GENERIC = {"hypertorch": 0.97, "betty": 0.97, "torchopt": 0.97, "hypergrad": 5.0}
CLOSED = {"hypertorch": 1.8, "betty": 1.8, "torchopt": 1.8}
CLASSES = 10


@dataclass(frozen=True)
class Row:
    """One case; ``targets``: peer to the least factor by which metabench is to be faster."""

    name: str
    examples: int
    hidden: int = 0
    """0: softmax regression; else units of one tanh layer."""
    closed: bool = False
    """The Hessian product of softmax regression in closed form."""
    targets: dict[str, float] = field(default_factory=dict)
    terms: int = 20
    alpha: float = 0.01
    pixels: int = 784
    threads: int = 1

    @property
    def peers(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(PEERS)


ROWS = (
    Row("logistic-generic", 60000, targets=GENERIC),
    Row("logistic-closed-form", 60000, closed=True, targets=CLOSED),
    Row(
        "mlp-l2-a-weight",
        1000,
        hidden=500,
        targets={"hypertorch": 1.05, "betty": 0.97, "torchopt": 1.05},
    ),
)


def images(number: int, pixels: int):
    """Inputs [number, pixels] in [0, 1], labels [number], and what they are."""
    import numpy as np

    root = os.environ.get("METABENCH_DATA")
    path = Path(root) / "mnist" / "mnist.npz" if root else None
    rng = np.random.default_rng(0)
    if path is not None and path.is_file() and pixels == 784:
        with np.load(path) as data:
            chosen = rng.permutation(len(data["train_images"]))[:number]
            x = data["train_images"][chosen].reshape(len(chosen), -1).astype("float32") / 255
            return x, data["train_labels"][chosen].astype("int64"), "MNIST"
    ink = rng.random((number, pixels)) < 0.2  # of MNIST a fifth is ink
    x = (ink * rng.random((number, pixels))).astype("float32")
    return x, rng.integers(0, CLASSES, number), "random ink (METABENCH_DATA has no mnist)"


def inputs(row: Row) -> tuple[dict, str]:
    """Training and validation images, theta and lam: one log decay for every number of theta."""
    import numpy as np

    valid = min(1000, row.examples)
    x, y, kind = images(row.examples + (valid if row.examples < 60000 else 0), row.pixels)
    rng = np.random.default_rng(1)
    arrays = {"x": x[: row.examples], "y": y[: row.examples], "xv": x[-valid:], "yv": y[-valid:]}
    sizes = [row.pixels, row.hidden, CLASSES] if row.hidden else [row.pixels, CLASSES]
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        arrays[f"theta.w{i}"] = rng.uniform(-1, 1, (b, a)) / a**0.5
        arrays[f"theta.b{i}"] = rng.uniform(-1, 1, b) / a**0.5
    for name in [k for k in arrays if k.startswith("theta.")]:
        arrays[name.replace("theta", "lam")] = rng.uniform(-6, -2, arrays[name].shape)
    return arrays, kind


def describe(row: dict) -> str:
    """What the row is."""
    net = f"{row['pixels']}-{row['hidden']}-10" if row["hidden"] else "softmax regression"
    how = ", Hessian product in closed form" if row["closed"] else ""
    return (
        f"{net}, {row['examples']} examples, one L2 coefficient a weight, {row['terms']} terms of "
        f"the series{how}"
    )


BENCHMARK = turns.Benchmark(
    "benchmarks.implicit",
    __doc__,
    Path(__file__).parent / "harness" / "implicit_worker.py",
    ROWS,
    PEERS,
    inputs,
    describe,
    sizes={
        "examples": "training images",
        "terms": "terms of the series",
        "pixels": "inputs of the network; MNIST has 784",
    },
    modules=MODULES,
    floor="products",
    has_floor=lambda row: not row.hidden,
)

if __name__ == "__main__":
    raise SystemExit(turns.main(BENCHMARK))
