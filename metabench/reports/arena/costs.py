"""What methods of an arena pay: costs to the target, their profile, and what trials are worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from metabench.analysis import stats
from metabench.analysis.arena.costs import cost_profile, cost_ratios, reached
from metabench.analysis.arena.scores import LEAST
from metabench.analysis.arena.track import TrackResults
from metabench.analysis.arena.tuning import BestOf, best_of
from metabench.core.errors import NotDrawn
from metabench.core.text import human
from metabench.reports.arena.strips import (
    Strip,
    colour_of,
    draw_strips,
    mark,
    order_of,
    spread,
    strip_panels,
)
from metabench.reports.figures.style import (
    GREY,
    finish,
    label_left,
    look_of,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = "#d0d0d0"
FARTHEST = 32.0
"""The largest ratio of a profile's axis."""
APART = 0.8
"""Points of a per cent between lines that would hide each other."""
LOW = -0.3
"""The lowest score of an axis."""


def cost_figure(track: TrackResults) -> Figure:
    """Inner gradients to the target, a panel a problem, a dot a seed."""
    titles = [p.label or p.id for p in track.problems]
    figure, axes = strip_panels(track, titles)
    handles: dict[str, Any] = {}
    medians = track.medians()
    for problem, axis in zip(track.problems, axes, strict=True):
        costs = {m: track.costs[m][problem.id] for m in track.methods}
        strips = {m: Strip(of, medians[problem.id][m]) for m, of in costs.items()}
        handles |= draw_strips(track, axis, strips, dots="seed")
        edge = axis.get_yaxis_transform()
        for place, method in enumerate(order_of(track)):
            of = costs[method]
            look: dict[str, Any] = {"mfc": "white", "mec": colour_of(track, method), "mew": 0.7}
            look |= {"clip_on": False}
            for cost, dy in zip(of, spread(len(of)), strict=True):
                if cost is None:
                    axis.plot([1.0], [-place + dy], ">", transform=edge, ms=3.0, **look)
            had = f"{round(reached(of) * len(of))}/{len(of)}"
            axis.annotate(
                had, (1.0, -place), (6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=6.5, color=GREY,
                annotation_clip=False,
            )  # fmt: skip
        _cost_axis(axis, [c for of in costs.values() for c in of if c is not None], problem.cap)
        axis.set_xlabel("inner gradients")
    handles["median over seeds"] = mark("centre")
    handles["without the target at the end"] = mark("censored")
    return finish(figure, cost_caption(), handles)


def _cost_axis(axis: Axes, costs: list[float], cap: float) -> None:
    """Up to the cap; logarithmic where costs are far apart."""
    least = min(costs, default=cap)
    if least > 0 and cap > 8 * least:
        axis.set_xscale("log")
        low, room = least / 1.2, (1.2 * cap / least) ** 0.07
        axis.set_xlim(low, cap * room)
    else:
        axis.set_xlim(0, 1.07 * cap)
    axis.axvline(cap, color="#999999", lw=0.8, ls=(0, (4, 3)), zorder=0.6)
    axis.xaxis.set_major_formatter(lambda value, _: human("cost", value))


def cost_caption() -> list[str]:
    """What the figure of costs to target shows and cannot say."""
    return [
        "Counted cost, at the problem's prices, of the first look with the target, four fifths of "
        "the way from no learning to the bound, on the split that chooses; at the right, of how "
        "many seeds. A median is given where more than half of the seeds have the target.",
        "It cannot say when between two looks the target was reached, nor what a run that ends "
        "without it would have cost (dashed: the cap). The cost of finding the settings is not "
        "in it, and a method made for another target may stand elsewhere.",
    ]


def profile_figure(track: TrackResults) -> Figure:
    """The share of problems on which a method needs at most so many times the least cost. Raises
    NotDrawn where nobody reaches a target."""
    medians = track.medians()
    finite = [r for of in cost_ratios(medians).values() for r in of.values() if r < math.inf]
    if not finite:
        raise NotDrawn(
            f"no profile of costs in track {track.track}: on no problem do most seeds of a method "
            "reach the target"
        )
    most = min(FARTHEST, max(2.0, 1.1 * max(finite)))
    grid = sorted({1.0, *(r for r in finite if r <= most), most})
    shares = cost_profile(medians, grid)
    figure, (axis,) = panels(["Cost to target, as a profile"])
    handles: dict[str, Any] = {}
    methods = order_of(track)
    for place, method in enumerate(methods):
        number = track.numbers[track.methods.index(method)]
        look = look_of(number) | {"ms": 3.4}
        apart = APART * ((len(methods) - 1) / 2 - place)
        ys = [100 * s + apart for s in shares[method]]
        (handle,) = axis.plot(grid, ys, drawstyle="steps-post", markevery=[0], **look)
        handles[track.label(method)] = handle
    axis.set_xscale("log", base=2)
    axis.set_xlim(0.97, most)
    beyond = 1 + APART * len(methods) / 2
    axis.set_ylim(-beyond - 1, 101 + beyond)
    ticks = [2.0**i for i in range(math.floor(math.log2(most)) + 1)]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("cost to target, times the least of any method")
    axis.set_ylabel("problems, %")
    return finish(figure, profile_caption(track), handles)


def profile_caption(track: TrackResults) -> list[str]:
    """What the profile shows and cannot say."""
    n = len(track.problems)
    return [
        "The share of problems on which a method's median cost to target is at most so many times "
        "the least of any method (Dolan, Moré 2002). At 1: where it is the cheapest; at the right "
        "end: where it has the target at all.",
        f"It cannot rank the second and third: ratios are to the best of these methods, and change "
        f"with who takes part. Of {n} problem{'s' * (n != 1)} each is a step of {100 / n:.0f} %; "
        "no step has an interval. Lines are moved apart a little where they would coincide.",
    ]


def trials_figure(track: TrackResults) -> Figure:
    """What k trials are worth, a panel a method, the others in grey. Raises NotDrawn where all
    methods have one setting."""
    found = {m: best_of(track.trials_of(m)) for m in order_of(track)}
    several = [m for m in order_of(track) if len(found[m].test) > 1]
    if not several:
        raise NotDrawn(f"no curve of trials in track {track.track}: all methods have one setting")
    figure, axes = panels([track.label(m) for m in several])
    most = max(len(of.test) for of in found.values())
    handles: dict[str, Any] = {}
    for method, axis in zip(several, axes, strict=True):
        for other in found:
            if other != method:
                handles["the other methods"] = _line(axis, found[other].test, most, PALE)
        handles |= _own(axis, found[method], most, colour_of(track, method))
        runs = [[max(LEAST, s) for s in track.scores[method][p.id]] for p in track.problems]
        final = stats.mean([stats.mean(of) for of in runs])
        axis.plot(
            [len(found[method].test)], [final], "D", ms=4.6, color=colour_of(track, method),
            mec="white", mew=0.5, clip_on=False,
        )  # fmt: skip
        axis.set_xlabel("trials")
        axis.set_xlim(0.5, most + 0.5)
    handles["finals, on fresh seeds"] = mark("centre")
    _same_scores(axes)
    label_left(axes, "score, mean over problems")
    return finish(figure, trials_caption(), handles)


def _own(axis: Axes, of: BestOf, most: int, colour: str) -> dict[str, Any]:
    """A method's own curves and band; their handles are grey, since each panel has its colour."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    xs = range(1, len(of.test) + 1)
    axis.fill_between(xs, of.low, of.high, color=colour, alpha=0.15, lw=0)
    axis.plot(xs, of.tuning, color=colour, lw=1.0, ls=":")
    _line(axis, of.test, most, colour)
    return {
        "test score": Line2D([], [], color=GREY, lw=1.5),
        "95 % band": Patch(color=GREY, alpha=0.2, lw=0),
        "tuning score": Line2D([], [], color=GREY, lw=1.0, ls=":"),
    }


def _line(axis: Axes, ys: tuple[float, ...], most: int, colour: str) -> Any:
    """One curve; a single setting stays what it is however many trials there are."""
    if len(ys) == 1:
        ys = ys * most
    look: dict[str, Any] = {"zorder": 1.2} if colour == PALE else {"lw": 1.5}
    return axis.plot(range(1, len(ys) + 1), ys, color=colour, **look)[0]


def _same_scores(axes: list[Axes]) -> None:
    """One range of scores for all panels, not below ``LOW``."""
    low = min(axis.get_ylim()[0] for axis in axes)
    high = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(max(LOW, low), max(high, LOW + 0.1))


def trials_caption() -> list[str]:
    """What the curve of trials shows and cannot say."""
    return [
        "Of k settings drawn without replacement from those tried, the best by its tuning score is "
        "taken: its expected test score on the tuning seeds, exact over all draws; dotted, the "
        "tuning score itself, which choosing makes too good. Band: 95 %, by a bootstrap of the "
        f"trials of each problem. A run below {LEAST:g} counts as {LEAST:g}.",
        "It cannot say what more trials than these would find: at the right end the band is that "
        "of the best known, and too narrow. The settings as shipped count as one of the draws. "
        "The finals may be lower: their seeds are others.",
    ]
