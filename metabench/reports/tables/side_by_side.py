"""Two sets of runs side by side as text, Markdown, HTML or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from metabench.analysis.side_by_side import Line, SideBySide
from metabench.core.errors import UnknownName
from metabench.core.text import counted, listed, with_pm
from metabench.reports.tables import renderers
from metabench.reports.tables.csv_export import field
from metabench.reports.tables.renderers import Footnote, Grid, Item

FORMATS = ("text", "markdown", "csv", "html")
FIELDS = (
    "kind", "label", "evaluation", "metric", "goal", "seeds", "a", "b", "difference", "pm",
    "p_holm", "detectable", "logs", "identical_seeds", "verdict", "what", "a_has", "b_has",
)  # fmt: skip
"""Columns of the CSV: ``kind`` is pair, only, bad file, made with, or setting; numbers are as
recorded."""
EXAMPLES = 8
"""Lines or cells that a footnote names."""


def draw(found: SideBySide, format: str = "text", width: int | None = None) -> str:
    """A comparison in one of ``FORMATS``; text fits into ``width`` characters. Raises
    UnknownName."""
    if format not in FORMATS:
        raise UnknownName("format of a comparison called", format, FORMATS)
    if format == "csv":
        return _csv(found)
    if format == "text":
        return renderers.text(grid(found), width)
    return renderers.markdown(grid(found)) if format == "markdown" else renderers.html(grid(found))


def grid(found: SideBySide) -> Grid:
    """A line for each group of paired cells; the rest below."""
    heads = ["cells", "seeds", "A", "B", "B-A", "p", "detectable", "shown"]
    rows = [[Item(text) for text in _row(line)] for line in found.lines]
    footnotes = [Footnote(text) for text in (*_summary(found), *_bad_files(found), *_below(found))]
    return Grid(f"A: {found.a}; B: {found.b}", [("", len(heads))], heads, rows, footnotes, left=1)


def _row(line: Line) -> list[str]:
    if line.pair is None or line.a is None or line.b is None:
        return [line.label, str(len(line.seeds)), "", "", "", "", "", line.verdict]
    scale = 100.0 if line.view.percent else 1.0
    by = 1.0 if line.logs else scale
    p, size = line.pair.p, line.detectable
    return [
        line.label,
        str(line.pair.seeds),
        with_pm(line.a, None, scale),
        with_pm(line.b, None, scale),
        with_pm(line.pair.gain, line.pair.pm, by),
        "" if p is None else f"{p:.2g}",
        "" if size is None else with_pm(size, None, by),
        line.verdict,
    ]


def _summary(found: SideBySide) -> Iterator[str]:
    if found.identical:
        cells = sum(len(line.seeds) for line in found.lines)
        yield (
            f"Identical: in all {counted(cells, 'cell')} the metrics, counts, lam and learning "
            "curves agree to the last bit"
        )
        return
    pairs = sum(len(line.seeds) for line in found.lines)
    same = sum(len(line.identical) for line in found.lines)
    yield f"{counted(pairs, 'paired cell')}, {same} identical to the last bit"
    views = dict.fromkeys((x.view.evaluation, x.view.metric, x.view.goal) for x in found.lines)
    named = [
        f"{metric} of {evaluation!r} ({'higher' if goal == 'max' else 'lower'} is better)"
        for evaluation, metric, goal in views
    ]
    if named:
        yield f"Compared by {listed(named[:EXAMPLES])}"
    if any(line.view.percent for line in found.lines):
        yield "Numbers are percentages"
    if any(line.logs for line in found.lines):
        yield "B-A and what is detectable are differences of natural logarithms"
    if any(len(line.seeds) > 1 for line in found.lines):
        yield "B-A: the mean over seeds of paired differences, with its 95 % t-interval"
    if found.tests:
        yield (
            f"p: of the paired t-test, Holm's over {counted(found.tests, 'line')}; shown below "
            "0.05. detectable: the difference that is shown with 80 % power"
        )


def _bad_files(found: SideBySide) -> Iterator[str]:
    for side, bad in found.bad_files:
        yield f"Bad file of {side}, what it holds is left out: {bad}"


def _below(found: SideBySide) -> Iterator[str]:
    for name in ("A", "B"):
        group = [only for only in found.only if only.side == name]
        told = [
            f"{o.label} (seed{'s' * (len(o.seeds) != 1)} {', '.join(map(str, o.seeds))}"
            f"{f'; {o.why} in the other' if o.why else ''})"
            for o in group[:EXAMPLES]
        ]
        if group:
            more = f" and {len(group) - EXAMPLES} more" if len(group) > EXAMPLES else ""
            yield f"Only {name} has: {', '.join(told)}{more}"
    for kind, all_ in (("Settings differ", found.settings), ("Made with", found.made_with)):
        if all_:
            told = [f"{d.what}: A {d.a}, B {d.b}" for d in all_]
            yield f"{kind}: {'; '.join(told)}"
    own = [line for line in found.lines if line.settings]
    for line in own[:EXAMPLES]:
        told = [f"{name}: A {a}, B {b}" for name, (a, b) in line.settings.items()]
        yield f"Settings of {line.label} differ: {'; '.join(told)}"
    if len(own) > EXAMPLES:
        yield f"Settings of {len(own) - EXAMPLES} more lines differ: the CSV has them"


def _csv(found: SideBySide) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n", restval="")
    writer.writeheader()
    for line in (*_pairs(found), *_others(found)):
        writer.writerow({name: field(value) for name, value in line.items()})
    return file.getvalue()


def _pairs(found: SideBySide) -> Iterator[dict[str, object]]:
    for line in found.lines:
        told: dict[str, object] = {
            "kind": "pair",
            "label": line.label,
            "evaluation": line.view.evaluation,
            "metric": line.view.metric,
            "goal": line.view.goal,
            "seeds": " ".join(map(str, line.seeds)),
            "identical_seeds": " ".join(map(str, line.identical)),
            "verdict": line.verdict,
            "logs": line.logs,
        }
        if line.pair is not None:
            told |= {
                "a": line.a,
                "b": line.b,
                "difference": line.pair.gain,
                "pm": line.pair.pm,
                "p_holm": line.pair.p,
                "detectable": line.detectable,
            }
        yield told
        for name, (a, b) in line.settings.items():
            yield {"kind": "setting", "label": line.label, "what": name, "a_has": a, "b_has": b}


def _others(found: SideBySide) -> Iterator[dict[str, object]]:
    for o in found.only:
        yield {
            "kind": "only",
            "label": o.label,
            "seeds": " ".join(map(str, o.seeds)),
            "verdict": f"only {o.side} has it",
            "what": o.why,
        }
    for side, bad in found.bad_files:
        yield {"kind": "bad file", "verdict": f"left out of {side}", "what": bad}
    for kind, all_ in (("setting", found.settings), ("made with", found.made_with)):
        for d in all_:
            yield {"kind": kind, "what": d.what, "a_has": d.a, "b_has": d.b}
