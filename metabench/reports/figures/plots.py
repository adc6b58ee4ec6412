"""The plots of a suite as PNG and PDF: learning, cost, trajectories, ranking, profile, frontier.

Colours are Okabe and Ito's, which the colour-blind can tell apart; methods also differ by marker.
Only finished runs are drawn. Footnotes say what the shades are and what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.analysis.curves import Line, Part, line, spaced, trajectory
from metabench.analysis.results import Records, Results, check_names, read_curves
from metabench.core.costs import Counts
from metabench.core.errors import NotDrawn
from metabench.core.settings import fields, several
from metabench.core.text import listed
from metabench.reports.figures.cost_frontier import WORDS, costs_known, frontier
from metabench.reports.figures.critical_difference import ranking
from metabench.reports.figures.drawn import Drawn
from metabench.reports.figures.profiles import profile_figure
from metabench.reports.figures.style import (
    axis_label,
    empty,
    finish,
    label_left,
    panels,
    plain,
    save,
    styled,
)
from metabench.reports.figures.tracks import draw_tracks
from metabench.store.record import Curve
from metabench.suites.schema import COSTS, DERIVATIVES, PLOTS, Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metabench.suites.suite import Suite

KINDS = PLOTS
USUAL = tuple(kind for kind in KINDS if kind != "frontier")
"""What is drawn of a suite that does not say."""
COSTLY = frozenset({"cost", "frontier"})
"""The kinds that have an axis of cost."""
DERIVATIVES_SUM = "derivatives"
"""The cost that is the sum of ``DERIVATIVES``."""
DEFAULT_COST = "inner_gradients"
MOST_PARTS = 10
"""How many lines of a trajectory are drawn: those that move most."""
LONGEST_NAME = 16
"""Letters of a part of lam at the end of its line."""
UNEQUAL = 5.0
"""Outer steps that differ in cost by more than this are no axis to compare rows on."""
UNEVEN = 30
"""A trajectory's axis is logarithmic where the largest line is so many times the smallest."""


class Figures:
    """The figures of results, each made once, however many files and pages it goes to."""

    def __init__(self, results: Results, store: Records) -> None:
        self.results = results
        self.curves, self.unread = read_curves(results, store)
        """Learning curves by key, and what could not be read, in words."""
        self._made: dict[tuple[str, str], dict[str, Figure]] = {}

    def of(self, kinds: Sequence[str], cost: str) -> dict[str, Figure]:
        """File name without suffix to figure, of these kinds. Trajectories: one for each column.

        ``cost`` is the cost axis. Raises UnknownName for an unknown kind or a cost that nothing
        has, NotDrawn where a kind has nothing to show.
        """
        check_names("kind of plot", several("kind", kinds), KINDS)
        out: dict[str, Figure] = {}
        for kind in kinds:
            at = kind, cost if kind in COSTLY else ""
            if at not in self._made:
                with styled():
                    self._made[at] = self._figures(kind, cost)
            out |= self._made[at]
        return out

    def own(self, kind: str) -> dict[str, Figure]:
        """Of one kind, a figure for each of the suite's own costs that shows something. Raises
        NotDrawn where none does."""
        out: dict[str, Figure] = {}
        why: NotDrawn | None = None
        for cost in self.results.suite.costs or [DEFAULT_COST]:
            try:
                if kind in COSTLY and cost not in self.costs(kind):
                    raise NotDrawn(f"no {kind} of {self.results.suite.name}: no run has {cost!r}")
                out |= self.of([kind], cost)
            except NotDrawn as error:
                why = why or error
        if why is not None and not out:
            raise why
        return out

    def costs(self, kind: str) -> list[str]:
        """What the axis of cost of such a figure can show: the costs of its runs; every one where
        none has finished."""
        if kind == "frontier":
            return costs_known(self.results) or list(COSTS)
        found = _summed(name for curve in self.curves.values() for name in curve)
        return sorted(found or {*fields(Counts), DERIVATIVES_SUM, "seconds"})

    @cached_property
    def by_cost(self) -> bool:
        """Whether curves of a suite that asks for no plot are read against all derivatives: in some
        column an outer step of one row takes more than ``UNEQUAL`` times those of another's, and
        rows end nearer to each other in derivatives than in steps."""
        columns = [] if self.results.suite.plots else self.results.columns
        return any(self._by_cost(column.id) for column in columns)

    def _by_cost(self, column: str) -> bool:
        last = []
        for row in self.results.rows:
            known = _curves_of(self.results, self.curves, row.id, column)
            found = line([*map(_with_sum, known)], f"cost/{DERIVATIVES_SUM}")
            if found is not None and found.x[-1] > 0:
                last.append((found.x[-1], found.y[-1]))
        # A step of what needs no derivatives has another price, which is not known here.
        if not last or min(cost for _, cost in last) <= 0:
            return False
        steps, costs, prices = (
            max(values) / min(values)
            for values in (*zip(*last, strict=True), [c / s for s, c in last])
        )
        return bool(prices > UNEQUAL and costs < steps)

    def repeats(self) -> bool:
        """Whether the suite extends another whose metric has the same curves."""
        suite = self.results.suite
        base, own = f"valid/{suite.extended_metric}", f"valid/{suite.metric}"
        return bool(suite.extended_metric) and all(
            curve.get(base) == curve.get(own) for curve in self.curves.values()
        )

    def _figures(self, kind: str, cost: str) -> dict[str, Figure]:
        results, curves = self.results, self.curves
        if kind == "learning":
            return {kind: _learning(results, curves)}
        if kind in COSTLY:
            check_names("cost called", [cost], self.costs(kind))
        if kind == "cost":
            logarithmic = cost == DERIVATIVES_SUM and self.by_cost
            return {f"cost-{cost}": _against_cost(results, curves, cost, logarithmic)}
        if kind == "trajectories":
            drawn = {c.id: _trajectories(results, curves, c) for c in results.columns}
            return {f"trajectories-{_slug(at)}": f for at, f in drawn.items() if f is not None}
        if kind == "ranking":
            return {kind: ranking(results)}
        if kind == "frontier":
            return {f"{kind}-{cost}": frontier(results, cost)}
        return {kind: profile_figure(results)}


def draw(
    results: Results,
    store: Records,
    kinds: Sequence[str] | None = None,
    out_dir: str | Path = ".",
    cost: str | None = None,
    known: Figures | None = None,
) -> list[Path]:
    """Write every figure of these kinds as PNG and PDF into ``out_dir``; returns the paths.

    ``kinds`` None: the suite's own. ``cost`` is the cost axis: a count, or "seconds"; None: the
    suite's own, a figure for each that some run has, or inner gradients. Raises UnknownName for an
    unknown kind or a ``cost`` that nothing has. ``known``: figures of these results, where some
    have been made.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    made = figures(results, store, kinds, cost, known)
    with styled():
        for name, figure in made.items():
            for suffix in ("png", "pdf"):
                out.append(folder / f"{name}.{suffix}")
                save(figure, out[-1])
    return out


def figures(
    results: Results,
    store: Records,
    kinds: Sequence[str] | None = None,
    cost: str | None = None,
    known: Figures | None = None,
) -> dict[str, Figure]:
    """File name without suffix to figure; as :func:`draw`.

    Raises NotDrawn where one of ``kinds`` has nothing to show; of the suite's own kinds such a one
    is left out, and so is each of its own costs that no run has.
    """
    known = Figures(results, store) if known is None else known
    out: dict[str, Figure] = {}
    for kind in kinds_of(results.suite) if kinds is None else several("kind", kinds):
        try:
            out |= known.of([kind], cost) if cost else known.own(kind)
        except NotDrawn:
            if kinds is not None:
                raise
    return out


def kinds_of(suite: Suite) -> Sequence[str]:
    """The kinds of plots that a suite asks for."""
    return suite.plots or USUAL


def shows_cost(kinds: Iterable[str]) -> bool:
    """Whether a figure of these kinds has an axis of cost."""
    return not COSTLY.isdisjoint(kinds)


def costs_of(curves: dict[str, Curve]) -> list[str]:
    """Names of the costs that some curve counts and that are not zero throughout."""
    columns = (n for curve in curves.values() for n, values in curve.items() if any(values))
    return sorted(_summed(columns))


def _summed(columns: Iterable[str]) -> set[str]:
    """The names of costs among those of a curve's columns, with that of their sum."""
    found = {name.removeprefix("cost/") for name in columns if name.startswith("cost/")}
    return found if found.isdisjoint(DERIVATIVES) else found | {DERIVATIVES_SUM}


def _with_sum(curve: Curve) -> Curve:
    """A curve with the column of all derivatives together."""
    parts = [curve[name] for n in DERIVATIVES if (name := f"cost/{n}") in curve]
    if not parts:
        return curve
    sums: list[float | None] = [sum(n or 0 for n in at) for at in zip(*parts, strict=True)]
    return curve | {f"cost/{DERIVATIVES_SUM}": sums}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def _curves_of(results: Results, curves: dict[str, Curve], row: str, column: str) -> list[Curve]:
    found = (curves.get(record.key) for record in results.table_cells[row, column].done)
    return [curve for curve in found if curve]


def _tracks(
    results: Results, curves: dict[str, Curve], x: str, xlabel: str, level: str, logarithmic: bool
) -> Figure:
    where = f"no curves of {results.suite.name} against {xlabel}"
    if results.suite.gap:
        metric = results.suite.metric
        raise NotDrawn(f"{where}: {metric!r} is a difference of two splits, and 0 on either")
    figure, axes = panels([column.label or column.id for column in results.columns])
    first = (lambda found: sum(v <= 0 for v in found.x)) if logarithmic else (lambda _: 0)
    drawn = Drawn()
    draw_tracks(results, partial(_curves_of, results, curves), x, axes, first, drawn)
    if not results.states.get("done"):
        return empty(xlabel.capitalize(), "No finished run has a learning curve yet.")
    if not drawn.handles:
        metric = results.suite.metric
        raise NotDrawn(f"{where}: no finished run has {metric!r} in its learning curve")
    if nothing := drawn.nothing():
        raise NotDrawn(f"{where}: {nothing}")
    for axis in axes:
        axis.set_xlabel(xlabel)
        if logarithmic and axis.lines:
            axis.set_xscale("log")
        elif x != "cost/seconds" and axis.lines:
            axis.locator_params("x", integer=True)
    label_left(axes, axis_label(results, "validation"))
    return finish(figure, drawn.footnotes(level), drawn.handles)


def _far_apart(results: Results, curves: dict[str, Curve], x: str) -> bool:
    """Whether some runs get so much further along x than others that a linear axis hides those."""
    keys = {record.key for table_cell in results.table_cells.values() for record in table_cell.done}
    known = (curves.get(key, {}).get(x, []) for key in keys)
    last = [max(v for v in values if v is not None) for values in known if any(values)]
    return bool(last) and max(last) > 8 * min(last)


def _learning(results: Results, curves: dict[str, Curve]) -> Figure:
    logarithmic = _far_apart(results, curves, "step")
    return _tracks(results, curves, "step", "outer steps", "no outer step taken", logarithmic)


def _against_cost(
    results: Results, curves: dict[str, Curve], cost: str, logarithmic: bool
) -> Figure:
    """The validation metric against the cost so far, on a ``logarithmic`` axis or one that is where
    runs end far apart."""
    name = f"cost/{cost}"
    if cost == DERIVATIVES_SUM:
        curves = {key: _with_sum(curve) for key, curve in curves.items()}
    logarithmic = logarithmic or _far_apart(results, curves, name)
    words = "training seconds" if cost == "seconds" else WORDS.get(cost, cost.replace("_", " "))
    return _tracks(results, curves, name, words, "at no such cost (last value)", logarithmic)


def _trajectories(results: Results, curves: dict[str, Curve], column: Column) -> Figure | None:
    """lam against outer steps, a panel for each method; None where no lam moves."""
    import matplotlib as mpl

    found = {}
    for row in results.rows:
        parts = trajectory(_curves_of(results, curves, row.id, column.id))
        if any(part.moved for part in parts):
            found[row.label or row.id] = parts
    if not found:
        return None
    large = any(part.large for parts in found.values() for part in parts)
    figure, axes = panels(list(found))
    begins: dict[str, None] = {}
    colours = mpl.colormaps["viridis"]
    for axis, parts in zip(axes, found.values(), strict=True):
        kept = sorted(sorted(parts, key=lambda p: -p.moved)[:MOST_PARTS], key=parts.index)
        for i, part in enumerate(kept):
            colour = colours(0.82 * i / max(1, len(kept) - 1))
            x, y = part.line.x, part.line.y
            axis.plot(x, y, color=colour, lw=1.2)
            axis.fill_between(x, part.line.low, part.line.high, color=colour, alpha=0.12, lw=0)
        _scaled(axis, [p.line for p in kept])
        begin = _common([p.label for p in kept])
        begins |= {begin.rstrip("._"): None} if begin else {}
        _end_labels(axis, [(p.label.removeprefix(begin), p.line) for p in kept], colours)
        axis.set_xlabel("outer steps")
    label_left(axes, "change of size" if large else "lam")
    footnotes = _trajectory_footnotes(column.label or column.id, found, large)
    if begins:
        footnotes.append(f"Left out of names: {listed(begins)}.")
    return finish(figure, footnotes)


def _common(names: Sequence[str]) -> str:
    """What the names that are too long to be shown begin with, up to a point or stroke."""
    long = [name for name in names if len(name) > LONGEST_NAME]
    if len(long) < 2:
        return ""
    shared = min(long)
    while not all(name.startswith(shared) for name in long):
        shared = shared[:-1]
    return shared[: max(shared.rfind("."), shared.rfind("_")) + 1]


def _trajectory_footnotes(task: str, found: dict[str, list[Part]], large: bool) -> list[str]:
    what = (
        "root mean square of the entries of each part of lam, less its value at the start"
        if large
        else "entries of lam"
    )
    several = any(part.line.seeds > 1 for parts in found.values() for part in parts)
    spread = "mean over finished seeds, shade from the least to the greatest"
    out = [f"{task}: {what}; {spread if several else 'one finished seed'}."]
    cut = {label: len(parts) for label, parts in found.items() if len(parts) > MOST_PARTS}
    if cut:
        counts = ", ".join(f"{n} of {label}" for label, n in cut.items())
        out.append(f"The {MOST_PARTS} that move most (there are {counts}).")
    return out


def _scaled(axis: Axes, lines: Sequence[Line]) -> None:
    """Logarithmic, through 0, where a large entry (a rotation) would hide a small one (a rate)."""
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
        short = label if len(label) <= LONGEST_NAME else "…" + label[1 - LONGEST_NAME :]
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
