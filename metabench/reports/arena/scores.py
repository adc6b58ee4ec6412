"""Strips of an arena's scores, own and trained anew, ranks, robustness and over-fitting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from metabench.analysis import stats
from metabench.analysis.arena import scores as scoring
from metabench.analysis.arena.track import TrackResults
from metabench.analysis.rankings import FEWEST
from metabench.core.errors import NotDrawn
from metabench.core.text import counted, listed
from metabench.reports.arena.strips import (
    Strip,
    colour_of,
    draw_strips,
    mark,
    order_of,
    strip_panels,
)
from metabench.reports.arena.tables import without
from metabench.reports.figures.critical_difference import diagram
from metabench.reports.figures.style import finish
from metabench.suites.arena.definition import AS_SHIPPED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = -0.5
"""Scores below stand at the left end: a run that has gone astray would hide all others."""


def scores_figure(track: TrackResults) -> Figure:
    """Each method's scores in the finals, tuned, and their interquartile mean; as shipped too."""
    figure, (axis,) = strip_panels(track, ["Scores in the finals"])
    strips = {}
    for line in track.lines():
        s = line.standing
        of = track.scores[s.row]
        strips[s.row] = Strip(
            [max(LOWEST, stats.mean(of[p.id])) for p in track.problems],
            max(LOWEST, s.score),
            (max(LOWEST, s.low), max(LOWEST, s.high)),
        )
    handles = draw_strips(track, axis, strips)
    handles["interquartile mean, tuned"] = mark("centre")
    shipped = track.lines(tuned=False)
    at = {x.standing.row.removesuffix(AS_SHIPPED): x.standing.score for x in shipped}
    _hollow(track, axis, at)
    handles["as shipped"] = mark("shipped")
    axis.set_xlabel("score (0 no learning, 1 the bound)")
    return finish(figure, scores_caption(track), handles)


def scores_caption(track: TrackResults) -> list[str]:
    """What the figure of scores shows and cannot say."""
    few = [n for of in track.scores.values() for runs in of.values() if (n := len(runs)) < 2]
    return [
        "Test scores of the finals: 0 what no learning has, 1 the bound. Diamond: interquartile "
        "mean over problems and seeds"
        + ("." if few else ", with the 95 % interval of a bootstrap within problems."),
        f"It cannot say whether two methods differ (see the pairs), nor how they do on other "
        f"problems: the interval is of seeds. Means below {LOWEST:g} stand at the left end. "
        "Targets and bounds are conventions of this arena; half a score is not half as good.",
        *without(track),
    ]


def retrained_figure(track: TrackResults) -> Figure:
    """Each tuned method's scores by a theta trained anew at its lam, and by the theta that it ends
    with. Raises NotDrawn where no problem has that readout."""
    anew = track.retrained_standings()
    if not anew:
        raise NotDrawn(f"no problem of track {track.track} has theta trained anew")
    figure, (axis,) = strip_panels(track, ["What lam alone is worth"])
    strips = {method: Strip([]) for method in track.methods}
    for s in anew:
        dots = [max(LOWEST, stats.mean(runs)) for runs in track.retrained[s.row].values()]
        ends = max(LOWEST, s.low), max(LOWEST, s.high)
        strips[s.row] = Strip(dots, max(LOWEST, s.score), ends)
    handles = draw_strips(track, axis, strips)
    handles["interquartile mean, theta trained anew"] = mark("centre")
    own = {line.standing.row: line.standing.score for line in track.lines()}
    _hollow(track, axis, own)
    handles["the same of the theta that it ends with"] = mark("shipped")
    axis.set_xlabel("score (0 no learning, 1 the bound)")
    return finish(figure, retrained_caption(track), handles)


def retrained_caption(track: TrackResults) -> list[str]:
    """What the figure of thetas trained anew shows and cannot say."""
    return [
        "Test scores of a theta that is trained from its start at the lam found, in the same way "
        "for all and not counted. Diamond: interquartile mean over problems and seeds, with the "
        "95 % interval of a bootstrap within problems; hollow: that of the theta that a method "
        "ends with. Far to the left of it, a method owes its score to how it trains theta, and not "
        "to lam.",
        "It cannot say whether two methods differ, nor what a method would find that is tuned for "
        "this: trials were chosen by the theta that a method ends with. No outer learning need not "
        f"be at 0. Means below {LOWEST:g} stand at the left end.",
        *without(track),
    ]


def _hollow(track: TrackResults, axis: Axes, scores: Mapping[str, float]) -> None:
    """A hollow diamond at the score of each method."""
    for place, method in enumerate(order_of(track)):
        look: dict[str, Any] = {"mfc": "white", "mec": colour_of(track, method), "mew": 0.9}
        at = max(LOWEST, scores[method])
        axis.plot([at], [-place], "D", ms=4.2, zorder=1.9, **look)


def ranks_figure(track: TrackResults) -> Figure:
    """The rank of each method in each problem, and their mean."""
    order = track.ranked()
    figure, (axis,) = strip_panels(track, ["Ranks, problem by problem"])
    by_method = zip(*order.ranks, strict=True)
    strips = {
        m: Strip(of, stats.mean(of)) for m, of in zip(track.methods, by_method, strict=True)
    }  # fmt: skip
    handles = draw_strips(track, axis, strips)
    handles["mean rank"] = mark("centre")
    axis.set_xlim(0.6, len(track.methods) + 0.4)
    axis.set_xticks(range(1, len(track.methods) + 1))
    axis.set_xlabel("rank (1 the best)")
    return finish(figure, ranks_caption(track), handles)


def ranks_caption(track: TrackResults) -> list[str]:
    """What the figure of ranks shows and cannot say."""
    n = len(track.problems)
    if n < FEWEST:
        said = (
            f"With {counted(n, 'problem')} nothing is tested (that needs {FEWEST}): the order "
            "describes these problems, and says nothing of others."
        )
    else:
        said = "Which of these differences are more than chance: the critical-difference diagram."
    return [
        "Ranks of mean scores over seeds; ties share a rank, and who lost every seed of a problem "
        "is last there. A block is a problem: seeds are repetitions.",
        f"{said} A rank cannot say by how much a method is better, and changes with who takes "
        "part.",
        *without(track),
    ]


def difference_figure(track: TrackResults) -> Figure:
    """The critical-difference diagram. Raises NotDrawn below six problems or three methods."""
    order = track.ranked()
    if order.ranking is None:
        raise NotDrawn(f"no critical differences in track {track.track}: {order.footnotes[0]}")
    return diagram(order, order.ranking, track.label, difference_caption(track)[1:])


def difference_caption(track: TrackResults) -> list[str]:
    """What the critical-difference diagram shows and cannot say."""
    return [
        "Mean ranks over problems, and the difference of two of them that is more than chance at "
        "5 % (Friedman, Nemenyi; Demsar 2006).",
        "It cannot say that joined methods are equally good: with few problems only large "
        "differences are seen. It speaks of problems like these, as far as these are a fair draw.",
        *without(track),
    ]


def robustness_figure(track: TrackResults) -> Figure:
    """How the settings that a method tried fare: near the best, lost, and the regret of those as
    shipped."""
    titles = ["Settings near the best", "Runs lost", "Regret as shipped"]
    figure, axes = strip_panels(track, titles, most=3)
    parts: list[Callable[[scoring.Robustness], float]] = [
        lambda found: 100 * found.near,
        lambda found: 100 * found.failed,
        lambda found: found.regret,
    ]
    handles: dict[str, Any] = {}
    for axis, part, label in zip(axes, parts, ("%", "%", "score"), strict=True):
        strips = {}
        for method in track.methods:
            tried = track.trials_of(method)
            if any(len(trials) < 2 for trials in tried) and part is not parts[1]:
                strips[method] = Strip([])
                continue
            dots = [part(scoring.robustness(trials)) for trials in tried]
            strips[method] = Strip(dots, stats.mean(dots))
        handles |= draw_strips(track, axis, strips)
        axis.set_xlabel(label)
        if label == "%":
            axis.set_xlim(-4, 104)
    handles["mean over problems"] = mark("centre")
    return finish(figure, robustness_caption(track), handles)


def robustness_caption(track: TrackResults) -> list[str]:
    """What the figure of robustness shows and cannot say."""
    alone = [
        track.label(m) for m in track.methods if any(len(t) < 2 for t in track.trials_of(m))
    ]  # fmt: skip
    return [
        f"Of the settings a method tried on a problem: the share whose tuning score is at least "
        f"{scoring.NEAR:g} of its own best, the share of runs that ended without numbers, and the "
        f"tuning score that the settings as shipped lack to the best, where a run below "
        f"{scoring.LEAST:g} counts as {scoring.LEAST:g}.",
        "It cannot compare how good methods are: a method that is bad everywhere is near its best "
        "everywhere. Shares depend on how wide a space the file gives, and the best of few trials "
        "is itself a matter of luck.",
        *([f"With one setting, hence no share and no regret: {listed(alone)}."] if alone else []),
        *without(track),
    ]


def overfitting_figure(track: TrackResults) -> Figure:
    """Validation minus test of the finals, problem by problem."""
    figure, (axis,) = strip_panels(track, ["Over-fitting of the outer level"])
    strips = {}
    for line in track.lines():
        row = line.standing.row
        strips[row] = Strip([track.gap(row, p.id) for p in track.problems], line.gap)
    handles = draw_strips(track, axis, strips)
    handles["mean over problems"] = mark("centre")
    axis.axvline(0.0, color="#999999", lw=0.8, zorder=0.6)
    axis.set_xlabel("validation minus test, in scores")
    return finish(figure, overfitting_caption(track), handles)


def overfitting_caption(track: TrackResults) -> list[str]:
    """What the figure of over-fitting shows and cannot say."""
    return [
        "The score of the tested state on the validation split, which the outer level learns on, "
        "minus that on the test split; means over finished seeds.",
        "Far to the right a method has learned the validation examples and not the task. It cannot "
        "say so near 0: the two splits differ by themselves, as the row of a method that learns "
        "nothing shows. A small gap is no merit where the score is low.",
        *without(track),
    ]
