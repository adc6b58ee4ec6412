"""Three methods whose place is known, ranked on arena-1: whether `metabench rank` finds it.

    python -m benchmarks.studies.arena_entrants --store DIR [--jobs 2] [--out results/arena-1]

On the quick problems, by the scores that ship: unrolling under another name has to tie with
unrolling, unrolling that throws away its theta has to be last, and the method of tests/third_party,
a stranger's, has to stand somewhere. Runs the commands that it prints, five minutes of a core each;
what is done is in the store. Scores that ship are of another machine, so the tuned finals of
unrolling itself are run here, too, and held against those of the copy. Writes entrants.csv, every
row of every table, copy.csv, every final of the copy, and entrants.md, which follows from both.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[2]
FOLDER = "benchmarks/studies/entrants"
ARENA, BUDGET = "arena-1", "laptop"
BAD = "forgetful"
"""The entrant that has to be last."""
COPY = ("problem", "seed", "original_ships", "original_here", "copy_here", "bound_minus_fixed")
"""Columns of copy.csv."""
Line = Mapping[str, str]
"""A line of entrants.csv: a row of the table of a track and ruleset that an entrant stands in."""


@dataclass(frozen=True)
class Entrant:
    """A method that enters, by the file that registers it, what it is, and whom it has to tie
    with."""

    name: str
    file: str
    what: str
    space: str | None = None
    like: str | None = None

    def command(self) -> list[str]:
        """What ranks it."""
        space = ["--space", f"{FOLDER}/{self.space}"] if self.space else []
        return ["metabench", "rank", f"{FOLDER}/{self.file}", *space, "--arena", ARENA, "--quick"]


ENTRANTS = (
    Entrant(
        "renamed", "renamed.py", "unrolling under another name, in the space of `bilevel`",
        like="bilevel",
    ),
    Entrant(
        "forgetful", "forgetful.py",
        "unrolling whose theta stays at its first value; no setting changes its score, so that "
        "its space has one",
    ),
    Entrant(
        "central_differences", "third_party.py",
        "the method of tests/third_party, in unrolling's space; of A it applies to one problem",
        space="third_party.toml",
    ),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Rank them, and write both files."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.arena_entrants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", type=Path, required=True, help="where records are kept")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / ARENA)
    given = parser.parse_args(arguments)
    lines: list[Line] = []
    store = given.store.resolve() / "entrants"
    for entrant in ENTRANTS:
        reports = given.store / "reports" / entrant.name
        more = ["--store", store, "--output", reports.resolve()]
        command = [*entrant.command(), "--jobs", given.jobs, *more]
        print(" ".join(entrant.command()), flush=True)
        subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True)
        lines += read((reports / "standing.csv").read_text(encoding="utf-8"))
    copied = finals_of_both(given.store, given.jobs)
    for name, text in (
        ("entrants.csv", written(lines)), ("copy.csv", written(copied)),
        ("entrants.md", rendered(lines, copied)),
    ):  # fmt: skip
        (given.out / name).write_text(text, encoding="utf-8")
    return 0


def finals_of_both(folder: Path, jobs: int) -> list[Line]:
    """The tuned finals of the copy beside those of its original, as they ship and as they run here:
    the metric on test, to the last bit."""
    from metabench.api.arena import tournament
    from metabench.store.store import Store

    copy, store = ENTRANTS[0], Store(folder / "original")
    with tempfile.TemporaryDirectory() as empty:
        plan = tournament.plan(ARENA, budget=BUDGET, store=empty)
    quick = {p.id for p in plan.arena.problems if p.quick}
    asked = [p for p in plan.finals if p.row == copy.like and p.column in quick]
    tournament.play(
        [replace(p, state="open", record=None) for p in asked], store, jobs, "cpu", None
    )
    here = {r.key: r for r in (*store.records(), *Store(folder / "entrants").records())}
    metrics = tournament.metrics(plan.arena)
    lines: list[Line] = []
    for p in asked:
        of = (p.record, here[p.cell.key], here[replace(p.cell, method=copy.name).key])
        values = [repr(r.metrics["test"][metrics[p.column]].mean) for r in of if r is not None]
        scale = next(x for x in plan.arena.problems if x.id == p.column)
        seed = str(p.cell.seed)
        lines.append(
            dict(zip(COPY, (p.column, seed, *values, repr(scale.bound - scale.fixed)), strict=True))
        )
    return lines


def read(text: str) -> list[Line]:
    """The lines of a CSV file."""
    return [*csv.DictReader(io.StringIO(text))]


def written(lines: Sequence[Line]) -> str:
    """The same as a file."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


@dataclass(frozen=True)
class Place:
    """Where an entrant stands in a table."""

    entrant: str
    track: str
    ruleset: str
    rows: Sequence[Line]

    @property
    def own(self) -> Line:
        """Its row."""
        return next(r for r in self.rows if r["row"] == self.entrant)

    @property
    def number(self) -> int:
        """1 and those with a better mean rank."""
        return 1 + sum(float(r["rank"]) < float(self.own["rank"]) for r in self.rows)

    @property
    def is_last(self) -> bool:
        """Whether every other row has a better mean rank."""
        return self.number == len(self.rows)

    def others(self, verdict: str) -> list[str]:
        """The rows with this verdict of the test over seeds."""
        return [r["row"] for r in self.rows if r["verdict_seeds"] == verdict]


def places(lines: Iterable[Line]) -> Iterator[Place]:
    """Each table that an entrant stands in, in the order of the file."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["entrant"], line["track"], line["ruleset"]), []).append(line)
    yield from (Place(*key, rows) for key, rows in found.items())


def rendered(lines: Sequence[Line], copied: Sequence[Line]) -> str:
    """The page in Markdown."""
    found = [*places(lines)]
    parts = [
        f"# Three methods whose place is known, in {ARENA}",
        _filled(
            "`python -m benchmarks.studies.arena_entrants --store DIR`: each method has 20 trials "
            "on 2 seeds and 10 seeds in the finals, on the quick problems that it applies to "
            "(two of track A, two of C), beside the scores that ship. All rows are in "
            "`entrants.csv`. Shown: a paired t-test over seeds, Holm's correction."
        ),
        "\n".join(_item(f"`{' '.join(e.command())}`: {e.what}.") for e in ENTRANTS),
        tabulate(
            [_line(place) for place in found],
            ["method", "track", "settings", "problems", "place", "mean rank", "score",
             "shown better than", "equal to", "shown worse than"],
            tablefmt="github", disable_numparse=True,
        ),
        *(_filled(said) for said in (*verdicts(found), of_the_copy(copied))),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _line(place: Place) -> tuple[str, ...]:
    own = place.own
    interval = f"{float(own['low']):.2f} to {float(own['high']):.2f}"
    return (
        place.entrant, place.track, place.ruleset, own["problems"],
        f"{place.number} of {len(place.rows)}", f"{float(own['rank']):.2f}",
        f"{float(own['score']):.2f} ({interval})", *(_few(place.others(v)) for v in WORDS),
    )  # fmt: skip


WORDS = ("better", "equal", "worse")


def _few(names: Sequence[str]) -> str:
    """A few names, or how many there are."""
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} rows"


def verdicts(found: Sequence[Place]) -> list[str]:
    """What was to be seen, and whether it was."""
    out = []
    for entrant in ENTRANTS:
        if entrant.like is not None:
            of = [p for p in found if p.entrant == entrant.name]
            tied = [p for p in of if entrant.like in p.others("equal")]
            other = [
                f"in {p.track}, {p.ruleset}, it is {r['verdict_seeds']} from it (p = "
                f"{float(r['p_seeds']):.2g}), with mean ranks {float(p.own['rank']):.2f} and "
                f"{float(r['rank']):.2f}"
                for p in of if p not in tied for r in p.rows if r["row"] == entrant.like
            ]  # fmt: skip
            equal = f"{entrant.name} is equal to {entrant.like} in {len(tied)} of {len(of)} tables"
            out.append("; ".join([equal, *other]) + ".")
    of = [p for p in found if p.entrant == BAD]
    last = [p for p in of if p.is_last]
    above = dict.fromkeys(
        r["row"] for p in of for r in p.rows
        if r["row"] != p.entrant and float(r["rank"]) >= float(p.own["rank"])
    )  # fmt: skip
    behind = f"; it is not behind {', '.join(above)}" if above else ""
    better = dict.fromkeys(other for p in of for other in p.others("better"))
    return [
        *out,
        f"{BAD} is last in {len(last)} of {len(of)} tables{behind}. It is shown better than "
        f"{', '.join(better) or 'nobody'}.",
    ]


def of_the_copy(copied: Sequence[Line]) -> str:
    """How the finals of the copy and of its original agree, here and with those that ship."""
    same = sum(x["original_here"] == x["copy_here"] for x in copied)
    apart = {
        problem: max(
            abs(float(x["copy_here"]) - float(x["original_ships"]))
            / abs(float(x["bound_minus_fixed"]))
            for x in copied if x["problem"] == problem
        )
        for problem in dict.fromkeys(x["problem"] for x in copied)
    }  # fmt: skip
    far = ", ".join(f"{size:.1g} on {problem}" for problem, size in apart.items())
    return (
        f"Of the {len(copied)} tuned finals, copy and original are the same to the last bit in "
        f"{same} where both are run on one machine. From the scores that ship, which another "
        f"machine made with an older commit, they differ by at most (in scores): {far}."
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _item(text: str) -> str:
    return textwrap.fill(
        text, 100, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
