"""Tables of an arena's track: standings, problem by problem, and pairs; as text and as CSV.

What the columns mean and cannot say stands in the footnotes, and in docs/arena.md.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence

from metabench.analysis import stats
from metabench.analysis.arena import scores as scoring
from metabench.analysis.arena.costs import cost_ratios, median_cost, reached
from metabench.analysis.arena.track import Line, TrackResults
from metabench.core.text import human, listed
from metabench.reports.arena import significance
from metabench.reports.tables.csv_export import field
from metabench.reports.tables.renderers import Footnote, Grid, Item
from metabench.suites.arena.definition import AS_SHIPPED, TRACKS

NONE = "—"
ANEW = "retrained"
AFTER_SCORES = ("target", "cost", "over-fit", "lost")
AS_ABOVE = ("Columns as of the tuned.",)
RULESETS = {True: "tuned", False: "as shipped"}
FAR = 1000.0
"""From here on a score is no more than a sign that something ran away."""

STANDINGS = (
    "track", "ruleset", "row", "label", "problems", "mean_rank", "score", "score_low", "score_high",
    "targets", "cost_ratio", "one_trial", "near_best", "trial_runs_lost", "regret_as_shipped",
    "validation_minus_test", "finals_lost", "score_retrained", "rows_shown_better",
)  # fmt: skip
"""Columns of the CSV of standings: a line a row of the finals. ``rows_shown_better``: how many rows
of its ruleset it is shown to be worse than; empty where ranks are not tested."""
PROBLEMS = (
    "track", "ruleset", "row", "label", "problem", "trial", "seeds", "score", "score_pm", "rank",
    "reached", "cost_to_target", "cost_ratio", "trials", "near_best", "trial_runs_lost",
    "regret_as_shipped", "validation_minus_test", "score_retrained",
)  # fmt: skip
"""Columns of the CSV of problems: a line a row and problem; shares are of 1."""
PAIRS = ("track", "a", "b", "problems", "wins", "wins_low", "wins_high", "interval_over", "p_holm")
"""Columns of the CSV of pairs of tuned methods: how probable a higher score of ``a`` is."""


def standings_grid(track: TrackResults, tuned: bool = True) -> Grid:
    """Where the rows of one ruleset stand; of the tuned also how their trials fared."""
    found, order = track.lines(tuned), track.ranked(tuned)
    worse = significance.shown_better(order) or {}
    n = len(track.problems)
    finals = ("rank", "score", "95 %", *([ANEW] if _anew(track) else []), *AFTER_SCORES)
    trials = ("1 trial", "near", "trials lost", "regret") if tuned else ()
    lines = [
        [
            *_finals_items(track, x, bool(worse.get(x.standing.row))),
            *(_trials_items(x) if tuned else []),
        ]
        for x in found
    ]
    tests = significance.said(order, lambda row: track.label(row.removesuffix(AS_SHIPPED)))
    notes = [*(_footnotes(track) if tuned else AS_ABOVE), tests, *(without(track) if tuned else ())]
    return Grid(
        f"Track {track.track}, {TRACKS[track.track]}, {RULESETS[tuned]}: "
        f"{n} problem{'s' * (n != 1)}",
        [("", 1 + len(finals) + len(trials))],
        ["", *finals, *trials],
        lines,
        [*map(Footnote, notes)],
        label=f"{track.arena}-{track.track}-{RULESETS[tuned].replace(' ', '-')}",
    )


def retrained_grid(track: TrackResults) -> Grid | None:
    """Where tuned methods stand by a theta trained anew at their lam, beside the rank of the theta
    that each ends with; None where no problem has this readout."""
    found = track.retrained_standings()
    if not found:
        return None
    own = {line.standing.row: line.standing.rank for line in track.lines()}
    heads = ("rank", "score", "95 %", "rank, own theta")
    order = track.ranked_anew()
    worse = significance.shown_better(order) or {}
    n = found[0].problems
    return Grid(
        f"Track {track.track}, {TRACKS[track.track]}, {RULESETS[True]}, theta trained anew: "
        f"{n} problem{'s' * (n != 1)}",
        [("", 1 + len(heads))],
        ["", *heads],
        [
            [
                Item(track.label(s.row)),
                Item(f"{s.rank:.2f}", worse=bool(worse.get(s.row))),
                Item(_score(s.score)),
                Item(f"{_score(s.low)}–{_score(s.high)}"),
                Item(f"{own[s.row]:.2f}"),
            ]
            for s in found
        ],
        [
            Footnote(
                "What the lam found is worth by itself: theta is trained from its start, in the "
                "same way for all. Trials were chosen by the theta that a method ends with."
            ),
            Footnote(significance.said(order, track.label)),
        ],
        label=f"{track.arena}-{track.track}-{ANEW}",
    )


def _anew(track: TrackResults) -> bool:
    """Whether some problem has the second readout."""
    return any(p.retrain for p in track.problems)


def _finals_items(track: TrackResults, line: Line, worse: bool) -> list[Item]:
    s = line.standing
    return [
        Item(track.label(s.row.removesuffix(AS_SHIPPED))),
        Item(f"{s.rank:.2f}", worse=worse),
        Item(_score(s.score)),
        Item(f"{_score(s.low)}–{_score(s.high)}"),
        *([Item(NONE if line.retrained is None else _score(line.retrained))] * _anew(track)),
        Item(f"{line.targets}/{len(track.problems)}"),
        Item(NONE if line.ratio is None else f"{line.ratio:.2f}"),
        Item(NONE if line.gap is None else _score(line.gap)),
        Item(str(s.failures)),
    ]


def _trials_items(line: Line) -> list[Item]:
    s = line.standing
    return [
        Item(NONE if line.one is None else _score(line.one)),
        Item(NONE if s.near is None else f"{100 * s.near:.0f} %"),
        Item(f"{100 * line.failed:.0f} %"),
        Item(NONE if s.regret is None else _score(s.regret)),
    ]


def _footnotes(track: TrackResults) -> Iterator[str]:
    yield (
        "Finals. rank: mean over problems, 1 the best. score: interquartile mean of test scores "
        "over problems and seeds, 0 no learning, 1 the bound; its interval is of seeds, by a "
        "bootstrap within problems. target: problems on which most seeds come four fifths of the "
        "way at one of their looks, on the examples that choose the state, not on test"
        f"{_fitted(track)}. cost: to that target, in units of the cheapest method's, the median "
        f"over problems (— where half of them or fewer have it); looks lie {_grid(track)} of the "
        "cap apart, and smaller differences are none. over-fit: score on the validation split, "
        "which lam was fitted to, minus that on test. lost: runs without numbers, which score 0 or "
        "as the worst; a row that lost every seed of a problem has the last rank there."
    )
    if _anew(track):
        anew = [p.label or p.id for p in track.problems if p.retrain]
        where = "" if len(anew) == len(track.problems) else f" (on {listed(anew)})"
        yield (
            f"retrained: the score of a theta that is trained anew at the lam found{where}, in the "
            "same way for all methods, and not counted: what lam alone is worth. A training that "
            f"runs away scores 0 or as the worst.{_zero(track)}"
        )
    yield (
        "Trials. 1 trial: the test score that one of the settings tried has on average. near: "
        f"settings with at least {scoring.NEAR:g} of the method's best tuning score. trials lost: "
        "runs without numbers. regret: what the settings as shipped lack to the best, in tuning "
        f"scores. In 1 trial and regret a run below {scoring.LEAST:g} counts as "
        f"{scoring.LEAST:g}: how far a bad one runs away says nothing."
    )


def _fitted(track: TrackResults) -> str:
    """Where the examples that choose the state are those that lam is fitted to."""
    same = [f'"{p.label or p.id}"' for p in track.problems if p.select == "best_valid"]
    return f" (on {listed(same)}: the validation split, which lam is fitted to)" if same else ""


def _grid(track: TrackResults) -> str:
    """How far apart the looks of a run are."""
    most, least = (of(p.looks for p in track.problems) for of in (max, min))
    return f"1/{least}" if least == most else f"1/{most} to 1/{least}"


def _zero(track: TrackResults) -> str:
    """What no outer learning has in the second readout, whose own training it is."""
    return "".join(
        f" Compare with {track.label(line.standing.row)}, which has {_score(line.retrained)} "
        "there, not with 0."
        for line in track.lines()
        if line.standing.row in track.unlearned and line.retrained is not None
    )


def without(track: TrackResults) -> Iterator[str]:
    """Who does not stand in the tables and figures of a track, and why."""
    for why, methods in (
        ("not on every problem", track.left_out),
        ("applies to no problem", track.nowhere),
        ("every final failed", track.failed),
    ):
        if methods:
            yield f"Left out, {why}: {listed(map(track.label, methods))}."


def problems_grid(track: TrackResults) -> Grid:
    """Of each tuned method and problem: the mean test score, and the median cost to target."""
    rows = []
    for line in track.lines():
        row = line.standing.row
        items = [Item(track.label(row))]
        for p in track.problems:
            cost = median_cost(track.costs[row][p.id])
            had = reached(track.costs[row][p.id])
            items += [
                Item(_with_half(track.scores[row][p.id])),
                Item((NONE if cost is None else human("cost", round(cost))) + f" ({had:.0%})"),
            ]
        rows.append(items)
    return Grid(
        f"Track {track.track}, problem by problem, tuned",
        [("", 1), *[(p.label or p.id, 2) for p in track.problems]],
        ["", *["score", "cost"] * len(track.problems)],
        rows,
        [
            Footnote(
                "score: mean test score, ± the half-width of the 95 % t-interval over seeds. cost: "
                "inner gradients to the first look with the target, the median over seeds; in "
                "parentheses the seeds that have it."
            )
        ],
        label=f"{track.arena}-{track.track}-problems",
    )


def _with_half(scores: Sequence[float]) -> str:
    half = stats.half_width(scores)
    mean = _score(stats.mean(scores))
    return mean if half is None else f"{mean} ± {_score(half)}"


def _score(value: float) -> str:
    """Two places; of a run that went far below no learning, one figure and the power of ten."""
    return f"{value + 0.0:.2f}" if abs(value) < FAR else f"{value:.0e}"


def csv_of(names: Sequence[str], lines: Iterator[dict[str, object]]) -> str:
    """A CSV file with a head; what is not known is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: field("" if v is None else v) for k, v in line.items()})
    return file.getvalue()


def standings_lines(track: TrackResults) -> Iterator[dict[str, object]]:
    """The lines of the CSV of standings, tuned and as shipped."""
    for tuned, ruleset in RULESETS.items():
        better = significance.shown_better(track.ranked(tuned)) or {}
        for line in track.lines(tuned):
            s = line.standing
            values = (
                track.track, ruleset, s.row, track.label(s.row), s.problems, s.rank, s.score, s.low,
                s.high, line.targets, line.ratio, line.one, s.near, line.failed, s.regret,
                line.gap, s.failures, line.retrained, better.get(s.row),
            )  # fmt: skip
            yield dict(zip(STANDINGS, values, strict=True))


def problem_lines(track: TrackResults) -> Iterator[dict[str, object]]:
    """The lines of the CSV of problems, tuned and as shipped."""
    for tuned, ruleset in RULESETS.items():
        rows = track.rows(tuned)
        ratios = cost_ratios(track.medians(tuned))
        for p in track.problems:
            ranks = track.ranks_on(p.id, tuned)
            for row, rank, method in zip(rows, ranks, track.methods, strict=True):
                scores, costs = track.scores[row][p.id], track.costs[row][p.id]
                trials = track.trials[method, p.id]
                known = scoring.robustness(trials)
                several = len(trials) > 1
                ratio = ratios[row][p.id]
                values = (
                    track.track, ruleset, row, track.label(row), p.id,
                    scoring.choose({(method, p.id): trials})[method, p.id] if tuned else 0,
                    len(scores), stats.mean(scores), stats.half_width(scores), rank, reached(costs),
                    median_cost(costs), ratio if math.isfinite(ratio) else None, len(trials),
                    known.near if several else None, known.failed,
                    known.regret if several else None, track.gap(row, p.id),
                    stats.mean(anew) if (anew := track.retrained[row].get(p.id)) else None,
                )  # fmt: skip
                yield dict(zip(PROBLEMS, values, strict=True))


def pair_lines(track: TrackResults) -> Iterator[dict[str, object]]:
    """The lines of the CSV of pairs."""
    for (a, b), one in track.duels.items():
        values = (track.track, a, b, one.problems, one.wins, one.low, one.high, one.over, one.p)
        yield dict(zip(PAIRS, values, strict=True))
