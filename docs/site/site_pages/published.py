"""What was measured: one page a published suite, and what of it belongs to a method or a task."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from metabench.core.catalogue import suite_names
from metabench.core.text import with_pm
from metabench.suites import loading
from metabench.suites.suite import Suite

from .notation import table
from .places import ROOT, link

BUDGETS = ("paper", "laptop", "smoke")
WIDE = 12
"""Suites with more columns are named beside a method, and not repeated."""
HOW = """
±: the half-width of the 95 % interval over seeds. Whether two rows differ, and what stands behind
the numbers, is said below the table of the suite.
"""


@dataclass(frozen=True)
class Number:
    """One entry of a published table, as text."""

    suite: str
    budget: str
    row: str
    column: str
    ours: str
    paper: str
    method: str
    task: str

    @property
    def page(self) -> str:
        """Where the whole table is."""
        return f"results/{self.suite}/{self.budget}.md"


@cache
def suite(name: str) -> Suite:
    """A built-in suite, read once."""
    return loading.load(name)


@cache
def suites() -> dict[str, Suite]:
    """Every built-in suite by its name."""
    return {name: suite(name) for name in suite_names()}


@cache
def tables() -> tuple[tuple[str, str], ...]:
    """(suite, budget) of every published table, in the order of the suites' names."""
    found = {(p.parts[-3], p.parts[-2]) for p in (ROOT / "results").glob("*/*/table.csv")}
    return tuple(sorted(f for f in found if f[0] in suites() and f[1] in BUDGETS))


@cache
def numbers() -> tuple[Number, ...]:
    """Every entry of every published table."""
    return tuple(number for name, budget in tables() for number in _of_table(name, budget))


def _of_table(name: str, budget: str) -> Iterator[Number]:
    methods = {row.id: row.method for row in suite(name).rows}
    tasks = {column.id: column.task for column in suite(name).columns}
    with (ROOT / "results" / name / budget / "table.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["kind"] != "method" or line["row"] not in methods:
                continue
            yield Number(
                name, budget, line["row_label"], line["column_label"],
                _shown(line["ours_mean"], line["ours_pm"], line["unit"]),
                _shown(line["paper_value"], line["paper_pm"], line["unit"]),
                methods[line["row"]], tasks.get(line["column"], ""),
            )  # fmt: skip


def _shown(value: str, pm: str, unit: str) -> str:
    if not value:
        return ""
    text = with_pm(float(value), float(pm)) if pm else f"{float(value):.4g}"
    return f"{text} {unit}".strip()


def beside(found: Iterable[Number], page: str, who: str) -> str:
    """Numbers grouped by suite, with the papers' beside them; ``who`` says whose they are."""
    by_suite: dict[str, list[Number]] = {}
    for number in found:
        by_suite.setdefault(number.page, []).append(number)
    if not by_suite:
        return f"\nNo published table has {who} yet.\n"
    parts, wide = [HOW], []
    for where, group in by_suite.items():
        name, budget = group[0].suite, group[0].budget
        title = f"{link(where, page, name)} ({budget})"
        if len({n.column for n in group}) > WIDE or len(group) > 4 * WIDE:
            wide.append(title)
            continue
        s = suite(name)
        goal = "higher" if s.goal == "max" else "lower"
        rows = [*pivoted(group)]
        parts.append(f"### {title}\n\n{s.title}: {s.metric}, {goal} is better.\n\n{table(rows)}")
    if wide:
        parts.append(f"Too large to repeat here: {', '.join(wide)}.\n")
    return "\n".join(parts)


def pivoted(group: Sequence[Number]) -> Iterator[tuple[str, ...]]:
    """Rows by columns, the header first; a paper's number stands behind ours."""
    columns = [*dict.fromkeys(n.column for n in group)]
    yield ("", *columns)
    for row in dict.fromkeys(n.row for n in group):
        own = {n.column: n for n in group if n.row == row}
        yield (row, *(_entry(own[c]) if c in own else "" for c in columns))


def _entry(number: Number) -> str:
    ours = number.ours or "—"
    return f"{ours} (paper: {number.paper})" if number.paper else ours


def mentions(page: str, name: str, kind: str) -> str:
    """The suites that have a method among their rows, or a task among their columns."""
    found = []
    for s in suites().values():
        names = {r.method for r in s.rows} if kind == "method" else {c.task for c in s.columns}
        if name in names:
            known = [b for n, b in tables() if n == s.name]
            found.append(
                link(f"results/{s.name}/{known[0]}.md", page, s.name) if known else f"`{s.name}`"
            )
    return ", ".join(found) if found else "none"


def paragraph(name: str) -> str:
    """What results/README.md says of a suite: the paragraph that begins with its name in bold."""
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for head, body in re.findall(r"^\*\*([a-z][\w, -]*)\.\*\* (.+?)(?=\n\n|\Z)", text, re.M | re.S):
        if name in re.split(r",\s*", head):
            return str(body)
    return ""


def suite_page(name: str, budget: str) -> tuple[str, str]:
    """A published table as a page, and the text of results/README.md about it, which has links."""
    s, folder = suite(name), ROOT / "results" / name / budget
    body = (folder / "table.md").read_text(encoding="utf-8")
    body = re.sub(r"\A#+ .*\n+", "", body)
    page = f"results/{name}/{budget}.md"
    parts = [f"# {s.title}", f"Suite `{name}`, budget `{budget}`. {s.description.strip()}"]
    parts.append(f"    {s.command or f'metabench run {name} --budget {budget}'}")
    if (folder / "figure.png").is_file():
        parts.append(f"![The published figure of {name}]({budget}/figure.png)")
    parts.append(f'<div class="published" markdown="1">\n\n{body}\n\n</div>')
    rows = sorted({r.method for r in s.rows})
    columns = sorted({c.task for c in s.columns})
    parts.append("Methods: " + ", ".join(link(f"methods/{m}.md", page, m) for m in rows) + ".")
    parts.append("Tasks: " + ", ".join(link(f"tasks/{t}.md", page, t) for t in columns) + ".")
    return "\n\n".join(parts) + "\n", paragraph(name)
