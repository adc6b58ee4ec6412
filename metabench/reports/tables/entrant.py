"""Where a method stands in an arena: text for a terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metabench.analysis.arena.entrant import Against, Over, Place, Verdict
from metabench.analysis.arena.scores import LEAST
from metabench.analysis.rankings import FEWEST
from metabench.core.settings import typed
from metabench.core.text import counted, listed
from metabench.suites.arena.definition import TRACKS, Arena, ArenaMethod
from metabench.suites.arena.space import Range

WORDS: Mapping[Verdict, str] = {
    "better": "shown better than",
    "worse": "shown worse than",
    "not told apart": "not told apart from",
    "equal": "equal to",
    "not tested": "not tested against",
}
ALONE = (
    "It has no search space, so that it is not tuned: it stands as shipped alone. A space is a "
    "class attribute, space, or a file, --space FILE (docs/arena.md)."
)
HEAD = ("row", "rank", "score", "95 % from to", "near", "regret", "lost")
LEGEND = (
    "rank: the mean over problems, 1 the best. score: interquartile mean over problems and seeds, "
    "0 no learning, 1 the bound, with its 95 % interval. near: trials within a tenth of the "
    "method's best. regret: what the settings as shipped lack to it, where a run below "
    f"{LEAST:g} counts as {LEAST:g}. lost: runs without numbers, which score 0 or as the worst; "
    "who lost every seed of a problem is last there. Cost is counted, on whatever machine; seconds "
    "are not compared."
)
WHERE: Mapping[Over, str] = {"seeds": "on these problems", "problems": "on problems like these"}
OVER: Mapping[Over, str] = {
    "seeds": (
        "On these problems: shown where p is below 5 % in a paired t-test over seeds, Holm's "
        "correction. It is said of these problems, and of no others."
    ),
    "problems": (
        "On problems like these: shown where p is below 5 % in Wilcoxon's test over problems, "
        f"Holm's correction, from {FEWEST} problems on."
    ),
}


@dataclass(frozen=True)
class About:
    """What was ranked, and on what; ``without``: problem to the reason why it was left out;
    ``endings``: how runs ended where the tables do not say it."""

    method: ArenaMethod
    arena: Arena
    budget: str
    quick: bool
    without: Mapping[str, str] = field(default_factory=dict)
    endings: Sequence[str] = ()

    @property
    def title(self) -> str:
        """What, where, and under which budget."""
        quick = ", quick problems" if self.quick else ""
        return f"{self.method.id} in {self.arena.name} (budget {self.budget}{quick})"


def heading(place: Place) -> str:
    """Track, ruleset, and on how many of the track's problems."""
    how = "tuned" if place.tuned else "as shipped"
    n = len(place.problems)
    some = f"{n} of {counted(place.of, 'problem')}" if n != place.of else counted(n, "problem")
    return f"Track {place.track}, {TRACKS[place.track]}, {how}: {some}"


def table(place: Place) -> list[tuple[str, ...]]:
    """The rows of the standings, without their head; that of the method has a mark."""
    return [
        (
            f"{s.row} *" if s.row == place.method else s.row,
            f"{s.rank:.2f}",
            f"{s.score:.2f}",
            f"{s.low:.2f}  {s.high:.2f}",
            "" if s.near is None else f"{100 * s.near:.0f} %",
            "" if s.regret is None else f"{s.regret:.2f}",
            str(s.failures),
        )
        for s in place.standings
    ]


def said(place: Place) -> list[str]:
    """The verdicts in words, one a line."""
    own = place.own
    better = sum(s.rank < own.rank for s in place.standings)
    ties = sum(s.rank == own.rank for s in place.standings)
    shared = " (shared)" if ties > 1 else ""
    rows = len(place.standings)
    out = [f"{place.method} is number {better + 1}{shared} of {rows}, mean rank {own.rank:.2f}."]
    for over in place.overs:
        for verdict, words in WORDS.items():
            if names := place.verdicts(verdict, over):
                least = place.least_p if (over, verdict) == ("problems", "not told apart") else None
                no_less = "" if least is None else f" (no p can be below {least:.2g} here)"
                out.append(f"{WHERE[over]}, {words}{no_less}: {', '.join(names)}")
    return [*out, *left_out(place)]


def left_out(place: Place) -> list[str]:
    """Who has not played all problems, a line a reason, the one of most methods first."""
    who: dict[str, dict[str, None]] = {}
    where: dict[str, dict[str, None]] = {}
    for name, of in place.left_out.items():
        for problem, causes in of.items():
            for cause in causes:
                who.setdefault(cause, {})[name] = None
                where.setdefault(cause, {})[problem] = None
    return [
        f"left out, {cause} ({', '.join(where[cause])}): {counted(len(who[cause]), 'method')}: "
        f"{', '.join(who[cause])}"
        for cause in sorted(who, key=lambda c: -len(who[c]))
    ]


def over(places: Sequence[Place]) -> list[str]:
    """What "shown" means in these tables."""
    used = {over for p in places for over in p.overs}
    return [text for name, text in OVER.items() if name in used]


def text(place: Place) -> list[str]:
    """The table, for a terminal of 80 columns, and the verdicts, each of any length."""
    from tabulate import tabulate

    drawn = tabulate(table(place), HEAD, tablefmt="simple", disable_numparse=True)
    return [f"{heading(place)}\n{drawn}", *said(place)]


def markdown(about: About, places: Sequence[Place]) -> str:
    """The whole report: what was ranked, every table, verdicts, chances to win."""
    from tabulate import tabulate

    rules = about.arena.budget(about.budget)
    seeds = f"{counted(len(rules.seeds), 'seed')} of finals"
    tuned = any(p.tuned for p in places)
    trials = (
        f"{counted(rules.trials, 'trial')} on {counted(len(rules.tuning_seeds), 'seed')}, {seeds}."
        if tuned
        else f"{seeds[0].upper()}{seeds[1:]}. {ALONE}"
    )
    parts = [f"# {about.title}", trials]
    if about.method.space:
        parts.append("Space:\n\n" + "\n".join(map(_range, about.method.space.items())))
    if given := {str(g): s for g, s in about.method.set.items() if s}:
        parts.append(f"As shipped: {', '.join(_settings(given))}, else the defaults.")
    if about.without:
        out = (f"{name} ({why})" for name, why in about.without.items())
        parts.append(f"Not played: {listed(out)}.")
    parts += [f"{said}." for said in about.endings]
    for place in places:
        parts.append(f"## {heading(place)}")
        parts.append(tabulate(table(place), HEAD, tablefmt="github", disable_numparse=True))
        parts.append("\n".join(f"- {line}" for line in said(place)))
        chances = [
            (
                a.other, f"{a.wins:.2f}", f"{a.low:.2f} to {a.high:.2f}",
                *(text for over in place.overs for text in _tested(a, over)),
            )
            for a in place.against
        ]  # fmt: skip
        if chances:
            head = ["against", "scores higher", "95 % interval"]
            head += [text for over in place.overs for text in ("p", WHERE[over])]
            parts.append(tabulate(chances, head, tablefmt="github", disable_numparse=True))
    parts += [LEGEND, *over(places)]
    return "\n\n".join(parts) + "\n"


def _tested(against: Against, over: Over) -> tuple[str, str]:
    """p and the verdict of a test."""
    found = against.tested[over]
    return "" if found.p is None else f"{found.p:.2g}", found.verdict


def _range(item: tuple[str, Range]) -> str:
    name, of = item
    if of.choices:
        return f"- `{name}`: {', '.join(typed(c) for c in of.choices)}"
    words = [w for w, on in (("logarithmic", of.log), ("whole", of.whole)) if on]
    words += ["over L"] * of.per_smoothness
    return f"- `{name}`: {of.low:g} to {of.high:g}" + (f" ({', '.join(words)})" if words else "")


def _settings(groups: Mapping[str, Mapping[str, object]]) -> list[str]:
    return [f"`{g}.{n} = {typed(v)}`" for g, values in groups.items() for n, v in values.items()]


COLUMNS = (
    *("track", "ruleset", "row", "problems", "rank", "score", "low", "high", "near", "regret"),
    *("lost", "entrant", "entrant_wins", "wins_low", "wins_high", "wins_over"),
    *("p_seeds", "verdict_seeds", "p_problems", "verdict_problems", "least_p_problems"),
)


def as_csv(places: Sequence[Place]) -> str:
    """One line a row of each table; of the others also how the method fares against them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place in places:
        found = {a.other: a for a in place.against}
        for s in place.standings:
            a = found.get(s.row)
            writer.writerow(
                (
                    place.track, "tuned" if place.tuned else "as shipped", s.row, s.problems,
                    s.rank, s.score, s.low, s.high, s.near, s.regret, s.failures, place.method,
                    *(("",) * 9 if a is None else _fields(place, a)),
                )
            )  # fmt: skip
    return out.getvalue()


def _fields(place: Place, against: Against) -> tuple[object, ...]:
    """What is known of the method against another; empty where a test is not made."""
    over: tuple[Over, ...] = ("seeds", "problems")
    found = [against.tested.get(name) for name in over]
    tested = (x for t in found for x in (("", "") if t is None else (t.p, t.verdict)))
    return against.wins, against.low, against.high, against.over, *tested, place.least_p
