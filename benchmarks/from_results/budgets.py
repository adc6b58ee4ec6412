"""What the laptop budget took, by family, and what the paper budget would take on a GPU.

    python -m benchmarks.from_results.budgets laptop             # from the records under results/
    python -m benchmarks.from_results.budgets paper              # count what is not counted yet
    python -m benchmarks.from_results.budgets paper seal-knowledge --again   # one suite anew
    python -m benchmarks.from_results.budgets paper --minutes 2  # go on another time
    python -m benchmarks.from_results.budgets paper --minutes 0 --card "H100 80 GB" --bf16 989 \
        --bandwidth 3350

Both write a table and its numbers to results/budgets/. ``laptop`` reads the committed records and
measures nothing. ``paper`` is an ESTIMATE: it builds each different cell, counts one outer step and
one episode of each evaluation (benchmarks/harness/counting.py; language models: language.py
beside it), multiplies, and divides by what a card is said to do. Counts are kept in paper.json,
cell by cell: a second call goes on, and another card is a matter of seconds. See docs/budgets.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.from_results.budget_tables import ROOT
from benchmarks.from_results.laptop_budget import measured
from benchmarks.from_results.paper_budget import estimated


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one of the two tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.from_results.budgets", description=__doc__.partition("\n")[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    laptop = verbs.add_parser("laptop", help="what was measured")
    laptop.add_argument("--results", type=Path, default=ROOT, help="where suites' results lie")
    paper = verbs.add_parser("paper", help="an estimate from counted costs")
    paper.add_argument("suites", nargs="*", metavar="SUITE", help="count these alone")
    paper.add_argument("--minutes", type=float, help="begin no other cell after so long")
    paper.add_argument("--again", action="store_true", help="count anew what is counted")
    paper.add_argument("--card", default="A100 80 GB")
    for name, default, what in (
        ("fp32", 19.5, "peak of the card in float32, TFLOP/s"),
        ("bf16", 312.0, "the same in bfloat16"),
        ("fp64", 9.7, "the same in float64"),
        ("bandwidth", 2039.0, "of its memory, GB/s"),
        ("utilisation", 0.3, "part of the peak that is reached"),
        ("bandwidth-use", 0.6, "part of the bandwidth that is reached"),
        ("op-us", 10.0, "microseconds that an operation takes at least"),
    ):
        paper.add_argument(f"--{name}", type=float, default=default, help=what)
    for verb in (laptop, paper):
        verb.add_argument("--out", type=Path, default=ROOT / "budgets")
    given = parser.parse_args(arguments)
    said = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.from_results.budgets", *said])
    given.out.mkdir(parents=True, exist_ok=True)
    return (measured if given.verb == "laptop" else estimated)(given, command)


if __name__ == "__main__":
    sys.exit(main())
