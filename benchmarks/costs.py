"""What one outer step of each method costs, in plain inner steps, from 10^3 to 10^7 parameters.

    python -m benchmarks.costs [--sizes 1000 100000] [--methods 'ift*'] [--markdown out.md]

A classifier with one tanh layer on MNIST images (averaged to 7x7 and 14x14 for small networks), one
log decay a tensor as lam, one thread. A plain step is forward, backward and update of the same
inner loss in torch alone. Each method and size has a process of its own, with a limit on memory and
on time: beyond either there is a hole with its reason. What a method computes is checked by its
tests, not here. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.harness import turns
from benchmarks.implicit import CLASSES, images

SIZES = (1000, 10_000, 100_000, 1_000_000, 10_000_000)
LR = 1e-3
LEAST_PEAK = 2e6
"""Bytes below which a peak of the resident set says nothing."""


@dataclass(frozen=True)
class Row:
    """One method. ``steps``: inner steps of an outer step ("T" stands for --steps); ``claim``:
    what its paper says of its cost, and where that is known from."""

    name: str
    method: str
    steps: int | str
    settings: dict = field(default_factory=dict)
    claim: str = "no figure"


UNROLL = "memory grows with T (reverse mode); no figure [Franceschi 2018]"
FLAT = "memory flat in T, time grows with numbers in lam; no figure [Franceschi 2017]"
IFT = '"a few times" plain training in time and memory [Lorraine 2020, abstract]'
SGLD = "linear in T, memory O(dim theta + dim lam), no Hessian [Kim 2025, second hand]"
PBGD = "penalty methods: less memory than unrolling expected, figures not found [Shen 2023]"
STN = "two forward products, about twice the parameters; training a little slower [authors' code]"

ROWS = (
    Row("bilevel, graph", "bilevel", "T", {"memory": "graph"}, UNROLL),
    Row("bilevel, states", "bilevel", "T", {"memory": "states"}, UNROLL),
    Row("bilevel, checkpoints", "bilevel", "T", {"memory": "checkpoints"}, UNROLL),
    Row("bilevel, last 5", "bilevel", "T", {"truncate": 5}, UNROLL),
    Row("bilevel, forward", "bilevel", "T", {"mode": "forward"}, FLAT),
    Row("ift, neumann 20", "ift", "T", {"terms": 20, "growth_limit": 1e9}, IFT),
    Row("ift, cg 20", "ift", "T", {"inverse": "cg", "terms": 20, "indefinite": "truncate"}),
    Row("ift, identity", "ift", "T", {"inverse": "identity"}, IFT),
    Row("one_step", "one_step", 1),
    Row("one_step, differences", "one_step", 1, {"mixed": "differences"}),
    Row("sgld, every step", "sgld", "T", {"burn_in": 0.0}, SGLD),
    Row("sgld, every 5", "sgld", "T", {"burn_in": 0.0, "thin": 5}, SGLD),
    Row("sgld, covariance", "sgld", "T", {"burn_in": 0.0, "estimator": "covariance"}, SGLD),
    Row("pbgd, value", "pbgd", 1, {"theta_lr": LR}, PBGD),
    Row("pbgd, gradient", "pbgd", 1, {"theta_lr": LR, "penalty": "gradient"}, PBGD),
    Row("stn", "stn", 2, {}, STN),
    Row("delta_stn", "delta_stn", 2, {}, STN),
)
COUNTS = {
    "inner_gradients": "inner gradients",
    "outer_gradients": "outer gradients",
    "hvps": "Hessian products",
    "mixed_products": "mixed products",
}


def network(size: int) -> tuple[int, int]:
    """Side of the images and hidden units of the network with about ``size`` parameters."""
    side = next(s for s, least in ((28, 5e4), (14, 5e3), (7, 0)) if size >= least)
    return side, max(1, round((size - CLASSES) / (side**2 + 1 + CLASSES)))


def shrunk(x, side: int):
    """Images [n, 784] averaged over squares to [n, side^2]."""
    s = 28 // side
    return x.reshape(-1, side, s, side, s).mean((2, 4)).reshape(-1, side**2)


def measure(case: dict, arrays: dict, limit: float) -> dict:
    """What a process says of one case, or {"hole": why}."""
    import numpy as np

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "inputs.npz", **arrays)
        (folder / "case.json").write_text(json.dumps(case))
        try:
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.harness.costs_worker", temporary],
                capture_output=True, text=True, timeout=limit, check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"hole": f"takes more than {limit:g} s"}
    if run.returncode:
        if run.returncode < 0:  # killed, as the system does where memory ends
            return {"hole": f"ended by signal {-run.returncode}"}
        return {"hole": (run.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return json.loads(run.stdout)


def summary(row: Row, steps: int, found: dict, plain_peak: float | None) -> dict:
    """What the table shows of one case: cost in plain steps, and per inner step ("training")."""
    told = {"row": asdict(row), "steps": steps, **found}
    if "hole" in found:
        return told
    cost = median(found["outer"]) / median(found["plain"])
    told |= {"cost": cost, "training": cost / steps, "memory": None}
    if found["peak_bytes"] is not None and plain_peak is not None and plain_peak >= LEAST_PEAK:
        told["memory"] = found["peak_bytes"] / plain_peak
    return told


# --- showing --------------------------------------------------------------------------------------


def cells(told: dict) -> list[str]:
    """Columns of a row beside its name."""
    if "hole" in told:
        return [str(told["steps"]), "-", "-", "-", "-", told["hole"]]
    peak, memory = told["peak_bytes"], told["memory"]
    counts = ", ".join(str(told["counts"][k]) for k in COUNTS)
    return [
        str(told["steps"]),
        f"{told['cost']:.1f}",
        f"{told['training']:.2f}",
        "-" if peak is None else f"{peak / 1e6:.1f}",
        "-" if memory is None else f"{memory:.1f}",
        counts,
    ]


HEAD = ["method", "inner steps", "plain steps", "a step", "peak MB", "times plain",
        "gradients in, out; products H, mixed"]  # fmt: skip


def title(block: dict) -> str:
    """The size's line."""
    peak = block["plain_peak_bytes"]
    return (
        f"{block['parameters']:,} parameters ({block['network']}), batches of {block['batch']}: "
        f"{block['inputs']}; plain training peaks "
        + ("unknown" if peak is None else f"+{peak / 1e6:.1f} MB")
    )


def show(block: dict) -> None:
    """One size as text."""
    lines = [HEAD, *([t["row"]["name"], *cells(t)] for t in block["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD) - 1)]
    print("\n" + title(block))
    for line in lines:
        print("  " + "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=False)), line[-1])


def markdown(about: dict, blocks: list[dict]) -> str:
    """All sizes, the methods' claims beside their largest and smallest cost."""
    lines = [
        f"Measured on {about['processor']} ({about['cores']} cores, one used), torch "
        f"{about['torch']}, medians of {about['repeats']}, {about['clock']} seconds.",
    ]
    for block in blocks:
        lines += ["", f"### {title(block)}", "", "| " + " | ".join(HEAD) + " |",
                  "|" + "---|" * len(HEAD)]  # fmt: skip
        lines += ["| " + " | ".join([t["row"]["name"], *cells(t)]) + " |" for t in block["rows"]]
    lines += ["", "### Beside the papers", "",
              "| method | plain steps an inner step, by size | memory, times plain | claim |",
              "|---|---|---|---|"]  # fmt: skip
    for i, first in enumerate(blocks[0]["rows"] if blocks else []):
        told = [b["rows"][i] for b in blocks]
        time = ", ".join("-" if "hole" in t else f"{t['training']:.1f}" for t in told)
        space = ", ".join(f"{t['memory']:.1f}" if t.get("memory") else "-" for t in told)
        lines.append(f"| {first['row']['name']} | {time} | {space} | {first['row']['claim']} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure the methods and sizes asked for; 1 where a method failed for no limit's sake."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", nargs="+", type=int, default=SIZES, help="numbers of parameters, about")
    add("--methods", nargs="*", default=["*"], help="names or patterns; see --list")
    add("--list", action="store_true", help="name the methods and stop")
    add("--steps", type=int, default=20, help="inner steps T, where the method does not say")
    add("--batch", type=int, default=100, help="images of an inner and of an outer batch")
    add("--repeats", type=int, default=5, help="timed repeats after one warm-up")
    add("--block", type=float, default=0.1, help="least seconds of a repeat")
    add("--memory-gb", type=float, default=8.0, help="most memory of a process")
    add("--seconds", type=float, default=120.0, help="most time of a process")
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine")
    add("--json", type=Path, metavar="OUT", help="write everything measured there")
    add("--markdown", type=Path, metavar="OUT", help="write the tables there")
    options = parser.parse_args(arguments)
    rows = [r for r in ROWS if any(fnmatch.fnmatch(r.name, p) for p in options.methods)]
    if options.list or not rows:
        print("\n".join(r.name for r in ROWS))
        return 0 if options.list else 2
    about = {**turns.machine(), "clock": options.clock, "repeats": options.repeats}
    blocks: list[dict] = []
    x, y, kind = images(2 * options.batch, 784)
    for size in options.sizes:
        side, hidden = network(size)
        arrays = {"x": shrunk(x, side), "y": y}
        common = {"hidden": hidden, "clock": options.clock, "repeats": options.repeats,
                  "block": options.block, "memory_gb": options.memory_gb}  # fmt: skip
        plain = measure({**common, "method": None}, arrays, options.seconds)
        if "hole" in plain:
            raise SystemExit(f"plain training at {size} parameters: {plain['hole']}")
        block: dict = {
            "parameters": hidden * (side**2 + 1 + CLASSES) + CLASSES,
            "network": f"{side**2}-{hidden}-{CLASSES}", "batch": options.batch,
            "inputs": kind if side == 28 else f"{kind}, averaged to {side}x{side}",
            "plain_peak_bytes": plain["peak_bytes"], "rows": [],
        }  # fmt: skip
        blocks.append(block)
        for row in rows:
            steps = options.steps if row.steps == "T" else int(row.steps)
            settings = {"inner_steps": steps, "inner_lr": LR, **row.settings}
            case = {**common, "method": row.method, "settings": settings}
            found = measure(case, arrays, options.seconds)
            block["rows"].append(summary(row, steps, found, plain["peak_bytes"]))
        show(block)
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps({"machine": about, "sizes": blocks}, indent=1))
        if options.markdown:
            options.markdown.write_text(markdown(about, blocks))
    limits = ("needs more than", "takes more than")
    holes = [t["hole"] for b in blocks for t in b["rows"] if "hole" in t]
    return 1 if any(not h.startswith(limits) for h in holes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
