"""The first figure of the README: the error of a hypergradient against Hessian products spent.

    python -m benchmarks.from_results.readme_figure            prints what it shows
    python -m benchmarks.from_results.readme_figure --write    draws it

The picture is results/hypergradient-fidelity/four-ways.png.

Four of the methods of the suite ``hypergradient-fidelity`` on one of its problems, from its
committed records: medians over seeds. Nothing is measured. The file keeps the numbers that it shows
(``Description``), so that a test can tell whether it is of these records.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.harness.records import committed
from metabench.core.cell import Cell
from metabench.store.record import Record

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results/hypergradient-fidelity/laptop"
PICTURE = ROOT / "results/hypergradient-fidelity/four-ways.png"
STEPS = 1000
"""Inner steps of all rows but unrolling's, whose products are its steps."""
PROBLEM = {"network": "linear", "decays": "unit", "start": "fresh"}
"""The column ``logistic``: logistic regression, ten decays to learn."""
LABELS = {
    "cg": "conjugate\ngradient",
    "neumann": "Neumann series",
    "unrolled": "unrolling",
    "pbgd": "V-PBGD: no product",
}
WIDTH, HEIGHT, DPI, LETTERS = 6.0, 4.2, 120, 14.0
"""Inches, dots an inch, points: at half its width, on a telephone, letters are those of a text."""

Lines = dict[str, list[tuple[float, float]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines, or draw them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.from_results.readme_figure",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("--write", action="store_true", help="draw the picture")
    parser.add_argument("--out", type=Path, default=PICTURE)
    given = parser.parse_args(arguments)
    found = lines(committed(RECORDS).values())
    if given.write:
        draw(found, given.out)
        print(f"wrote {given.out}: {given.out.stat().st_size / 1000:.0f} kB")
    else:
        for name, points in found.items():
            print(f"{name}: {', '.join(f'{x:g} {y:.2g}' for x, y in points)}")
    return 0


def lines(records: Iterable[Record]) -> Lines:
    """Of each method (products, relative error) by rising products; V-PBGD's one point is that of
    ``STEPS`` steps and no product. The errors are medians over seeds."""
    errors: dict[str, dict[float, list[float]]] = {name: defaultdict(list) for name in LABELS}
    for record in records:
        cell = record.cell
        if cell.task != "exact_decay" or not PROBLEM.items() <= cell.task_settings.items():
            continue
        if name := line_of(cell):
            error = record.metrics["test"]["relative_error"].mean
            errors[name][record.cost["hvps"]].append(error)
    return {
        name: [(x, float(f"{statistics.median(of[x]):.4g}")) for x in sorted(of)]
        for name, of in errors.items()
    }


def line_of(cell: Cell) -> str | None:
    """Which line a cell belongs to, whatever its problem."""
    method, how = cell.method, cell.method_settings
    whole = how.get("inner_steps") == STEPS
    if method == "bilevel" and how["mode"] == "reverse" and how["truncate"] is None:
        return "unrolled"
    if method == "ift" and whole and how["inverse"] in LABELS:
        return str(how["inverse"])
    return "pbgd" if method == "pbgd" and whole and how["penalty"] == "value" else None


def draw(found: Lines, path: Path) -> None:
    """One panel, each line with its name beside it."""
    from metabench.core.environment import drawing
    from metabench.reports.figures.style import COLOURS, styled

    drawing.matplotlib()
    from matplotlib.figure import Figure

    colours = dict(zip(LABELS, (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[3]), strict=True))
    with styled():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        for name, marker in zip(("unrolled", "neumann", "cg"), "oDs", strict=True):
            axes.plot(*zip(*found[name], strict=True), marker=marker, markersize=8, linewidth=2.5,
                      color=colours[name])  # fmt: skip
        ((_, bias),) = found["pbgd"]
        axes.axhline(bias, color=colours["pbgd"], linewidth=2.5, linestyle="--")
        for name, (x, y) in PLACES.items():
            axes.text(x, y, LABELS[name], fontsize=LETTERS, color=colours[name])
        axes.set(xscale="log", yscale="log", xlim=(2.6, 1700), ylim=(4e-11, 6))
        axes.set_xticks(TICKS, [f"{x:,}" for x in TICKS], fontsize=LETTERS)
        axes.set_xticks([], minor=True)
        axes.set_yticks([1e0, 1e-3, 1e-6, 1e-9], ["1", "10⁻³", "10⁻⁶", "10⁻⁹"], fontsize=LETTERS)
        axes.set_yticks([], minor=True)
        axes.set_xlabel("Hessian products", fontsize=LETTERS)
        axes.set_title("Relative error of the hypergradient", fontsize=LETTERS)
        figure.savefig(
            path,
            dpi=DPI,
            metadata={"Description": json.dumps(found), "Software": None},
            pil_kwargs={"optimize": True},
        )


TICKS = [3, 10, 30, 100, 300, 1000]
PLACES = {
    "cg": (3.0, 1e-8),
    "neumann": (60, 3e-8),
    "unrolled": (220, 0.15),
    "pbgd": (14.5, 4.5e-4),
}
"""Where a line's name begins, in the units of the axes."""


if __name__ == "__main__":
    sys.exit(main())
