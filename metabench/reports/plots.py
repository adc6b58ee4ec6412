"""The plots of a suite as PNG and PDF: learning, cost, trajectories, ranking, profile, frontier.

Colours are Okabe and Ito's, which the colour-blind can tell apart; methods also differ by marker.
Only finished runs are drawn. Figures say in words what their shades are and what they lack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.analysis.curves import Line, line, spaced, trajectory
from metabench.analysis.results import Records, Results, check_names, read_curves
from metabench.core.cell import Budget
from metabench.core.text import listed
from metabench.reports.cost_frontier import costs_known, frontier
from metabench.reports.diagrams import profile_figure, ranking
from metabench.reports.figure_style import (
    GREY,
    axis_label,
    empty,
    finish,
    look_of,
    panels,
    plain,
    scale_of,
    styled,
)
from metabench.store.record import Curve
from metabench.suites.schema import PLOTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = PLOTS
USUAL = tuple(kind for kind in KINDS if kind != "frontier")
"""What is drawn of a suite that does not say."""
DEFAULT_COST = "inner_gradients"
MOST_PARTS = 10
"""Lines of a trajectory that are drawn; those that move most are kept."""
UNEVEN = 30
"""From which ratio of the largest line to the smallest on a trajectory's axis is logarithmic."""


def draw(
    results: Results,
    store: Records,
    kinds: Sequence[str] | None = None,
    out_dir: str | Path = ".",
    cost: str | None = None,
) -> list[Path]:
    """Write every figure of these kinds as PNG and PDF into ``out_dir``; returns the paths.

    ``kinds`` None: the suite's own. ``cost`` is the cost axis: a count, or "seconds"; None: the
    suite's own, a figure each, or inner gradients. Raises UnknownName for a kind that there is not
    or a cost that nothing has.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    with styled():
        for name, figure in figures(results, store, kinds, cost).items():
            for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path, metadata=metadata)
                out.append(path)
    return out


def figures(
    results: Results,
    store: Records,
    kinds: Sequence[str] | None = None,
    cost: str | None = None,
) -> dict[str, Figure]:
    """File name without suffix to figure; as :func:`draw`. Trajectories are one a column."""
    curves = read_curves(results, store)[0]
    out: dict[str, Figure] = {}
    for each in [cost] if cost else results.suite.costs or [DEFAULT_COST]:
        out |= figures_of(results, curves, kinds_of(results) if kinds is None else kinds, each)
    return out


def kinds_of(results: Results) -> Sequence[str]:
    """The kinds of plots that a suite asks for."""
    return results.suite.plots or USUAL


def figures_of(
    results: Results, curves: dict[str, Curve], kinds: Sequence[str], cost: str
) -> dict[str, Figure]:
    """As :func:`figures`, from learning curves by key."""
    check_names("kind of plot", kinds, KINDS)
    out: dict[str, Figure] = {}
    with styled():
        for kind in kinds:
            if kind == "learning":
                out[kind] = _learning(results, curves)
            elif kind == "cost":
                _check_cost(cost, curves)
                out[f"cost-{cost}"] = _against_cost(results, curves, cost)
            elif kind == "trajectories":
                for column in results.columns:
                    figure = _trajectories(results, curves, column.id)
                    if figure is not None:
                        out[f"trajectories-{_slug(column.id)}"] = figure
            elif kind == "ranking":
                out[kind] = ranking(results)
            elif kind == "frontier":
                check_names("cost called", [cost], costs_known(results) or [cost])
                out[f"{kind}-{cost}"] = frontier(results, cost)
            else:
                out[kind] = profile_figure(results)
    return out


def costs_of(curves: dict[str, Curve]) -> list[str]:
    """Names of the costs that some curve counts and that are not zero throughout."""
    found = {
        name.removeprefix("cost/")
        for curve in curves.values()
        for name, values in curve.items()
        if name.startswith("cost/") and any(values)
    }
    return sorted(found)


def _check_cost(cost: str, curves: dict[str, Curve]) -> None:
    known = {n.removeprefix("cost/") for c in curves.values() for n in c if n.startswith("cost/")}
    check_names("cost called", [cost], known or set(Budget.LIMITS) - {"outer_steps"})


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def _curves_of(results: Results, curves: dict[str, Curve], row: str, column: str) -> list[Curve]:
    found = (curves.get(record.key) for record in results.table_cells[row, column].done)
    return [curve for curve in found if curve]


def _lines(
    results: Results,
    curves: dict[str, Curve],
    x: str,
    axes: Sequence[Axes],
    start: Callable[[Line], int],
    level: str,
) -> tuple[dict[str, Any], list[str]]:
    """Draw the validation metric of every row in every panel; returns handles by label, and
    notes on what is missing. A row that does not move along x is a level line, which the notes
    explain by ``level``."""
    y = f"valid/{results.suite.metric}"
    scale = scale_of(results)
    handles: dict[str, Any] = {}
    missing: list[str] = []
    levels: list[str] = []
    seeds = 0
    for column, axis in zip(results.columns, axes, strict=True):
        for number, row in enumerate(results.rows):
            crossing = results.table_cells[row.id, column.id]
            found = line(_curves_of(results, curves, row.id, column.id), y, x)
            label = row.label or row.id
            if found is None:
                continue
            seeds = max(seeds, found.seeds)
            look = look_of(number)
            first = start(found)
            xs, ys, lows, highs = (
                [v * s for v in values[first:]]
                for values, s in (
                    (found.x, 1.0),
                    (found.y, scale),
                    (found.low, scale),
                    (found.high, scale),
                )
            )
            if len(set(found.x)) < 2:
                value = found.y[-1] * scale
                handle = axis.axhline(value, color=look["color"], linestyle=(0, (5, 2)), lw=1.2)
                levels.append(label)
            else:  # a row that is looked at once, after its start, is a point with its interval
                every = max(1, len(xs) // 6)
                (handle,) = axis.plot(xs, ys, **look, markevery=(number % every, every))
                if results.suite.percent:
                    lows = [max(0.0, v) for v in lows]
                    highs = [min(100.0, v) for v in highs]
                if len(xs) > 1:
                    axis.fill_between(xs, lows, highs, color=look["color"], alpha=0.15, lw=0)
                else:
                    axis.vlines(xs, lows, highs, color=look["color"], alpha=0.4, lw=1.2)
            if found.seeds < len(crossing.runs):
                n = f"{found.seeds} of {len(crossing.runs)} seeds"
                missing.append(f"{label} ({column.label or column.id}: {n})")
            handles.setdefault(label, handle)
        if not axis.lines:
            axis.set(xticks=[], yticks=[])
            axis.text(0.5, 0.5, "no curves", transform=axis.transAxes, ha="center", color=GREY)
    notes = [
        "Mean over finished seeds; shade: 95 % t-interval over seeds."
        if seeds > 1
        else "One finished seed: nothing is said of others."
    ]
    if levels:
        notes.append(f"Level dashes: {listed(dict.fromkeys(levels))}, {level}.")
    if missing:
        notes.append(f"Incomplete: {'; '.join(missing)}.")
    return handles, notes


def _tracks(
    results: Results, curves: dict[str, Curve], x: str, xlabel: str, level: str, logarithmic: bool
) -> Figure:
    figure, axes = panels([column.label or column.id for column in results.columns])
    first = (lambda found: sum(v <= 0 for v in found.x)) if logarithmic else (lambda _: 0)
    handles, notes = _lines(results, curves, x, axes, first, level)
    if not handles:
        return empty(xlabel.capitalize(), "No finished run has a learning curve yet.")
    for axis in axes:
        axis.set_xlabel(xlabel)
        if logarithmic and axis.lines:
            axis.set_xscale("log")
    for axis in axes[:: min(2, len(axes))]:
        axis.set_ylabel(axis_label(results, "validation"))
    return finish(figure, notes, handles)


def _far_apart(results: Results, curves: dict[str, Curve], x: str) -> bool:
    """Whether some runs get so much further along x than others that these would be a blot."""
    keys = {record.key for crossing in results.table_cells.values() for record in crossing.done}
    known = (curves.get(key, {}).get(x, []) for key in keys)
    last = [max(v for v in values if v is not None) for values in known if any(values)]
    return bool(last) and max(last) > 8 * min(last)


def _learning(results: Results, curves: dict[str, Curve]) -> Figure:
    logarithmic = _far_apart(results, curves, "step")
    return _tracks(results, curves, "step", "outer steps", "without training", logarithmic)


def _against_cost(results: Results, curves: dict[str, Curve], cost: str) -> Figure:
    """The validation metric against what has been spent; a log axis where spending differs much."""
    name = f"cost/{cost}"
    logarithmic = _far_apart(results, curves, name)
    words = "training seconds" if cost == "seconds" else cost.replace("_", " ")
    words = words.replace("hvps", "Hessian products")
    return _tracks(results, curves, name, words, "at no such cost (last value)", logarithmic)


def _trajectories(results: Results, curves: dict[str, Curve], column: str) -> Figure | None:
    """lam against outer steps, a panel a method; None where no lam moves."""
    import matplotlib as mpl

    found = {}
    for row in results.rows:
        parts = trajectory(_curves_of(results, curves, row.id, column))
        if any(part.moved for part in parts):
            found[row.label or row.id] = parts
    if not found:
        return None
    large = any(part.large for parts in found.values() for part in parts)
    task = next(c.label or c.id for c in results.columns if c.id == column)
    what = (
        "root mean square of the entries of each part of lam, less its value at the start"
        if large
        else "entries of lam"
    )
    several = any(part.line.seeds > 1 for parts in found.values() for part in parts)
    spread = "mean over finished seeds, shade from the least to the greatest"
    notes = [f"{task}: {what}; {spread if several else 'one finished seed'}."]
    cut = {label: len(parts) for label, parts in found.items() if len(parts) > MOST_PARTS}
    if cut:
        counts = ", ".join(f"{n} of {label}" for label, n in cut.items())
        notes.append(f"The {MOST_PARTS} that move most (there are {counts}).")
    figure, axes = panels(list(found))
    colours = mpl.colormaps["viridis"]
    for axis, (_, parts) in zip(axes, found.items(), strict=True):
        kept = sorted(sorted(parts, key=lambda p: -p.moved)[:MOST_PARTS], key=parts.index)
        for i, part in enumerate(kept):
            colour = colours(0.82 * i / max(1, len(kept) - 1))
            x, y = part.line.x, part.line.y
            axis.plot(x, y, color=colour, lw=1.2)
            axis.fill_between(x, part.line.low, part.line.high, color=colour, alpha=0.12, lw=0)
        _scaled(axis, [p.line for p in kept])
        _end_labels(axis, [(p.label, p.line) for p in kept], colours)
        axis.set_xlabel("outer steps")
    for axis in axes[:: min(2, len(axes))]:
        axis.set_ylabel("change of size" if large else "lam")
    return finish(figure, notes)


def _scaled(axis: Axes, lines: Sequence[Line]) -> None:
    """Logarithmic, through 0, where one entry would hide another: a rotation a dropout rate."""
    sizes = [size for line in lines if (size := max(map(abs, [*line.low, *line.high]))) > 0]
    if sizes and max(sizes) > UNEVEN * min(sizes):
        axis.set_yscale("symlog", linthresh=min(sizes), linscale=0.5)


def _end_labels(axis: Axes, lines: Sequence[tuple[str, Line]], colours: Any) -> None:
    """Names to the right of where lines end, moved apart where they would touch."""

    def height(y: float) -> float:
        return float(axis.transScale.transform((0.0, y))[1])

    low, high = map(height, axis.get_ylim())
    right = max(found.x[-1] for _, found in lines)
    ends = [height(found.y[-1]) for _, found in lines]
    places = spaced(ends, 0.085 * (high - low), low, high)
    for i, ((label, found), end, place) in enumerate(zip(lines, ends, places, strict=True)):
        colour = colours(0.82 * i / max(1, len(lines) - 1))
        short = label if len(label) <= 16 else "…" + label[-15:]
        axis.annotate(
            plain(short),
            (right, found.y[-1]),
            (6, (place - end) / (high - low) * 120),
            textcoords="offset points",
            fontsize=6.5,
            color=colour,
            va="center",
            annotation_clip=False,
        )
