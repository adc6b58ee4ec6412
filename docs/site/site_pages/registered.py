"""A page a method and a page a task, from what ``metabench show`` knows and what was published."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path

from metabench.api.describe import Description, show
from metabench.core.catalogue import listing
from metabench.core.registry import REGISTRIES

from . import published, standings
from .notation import Told, formula, prose, table, told, word
from .places import ROOT, link

KINDS = ("method", "task")
LEGEND = """
??? note "How to read it"

    lam is the outer variable, theta the inner one; `F` and `G` are the outer and the inner loss,
    each call on the batch that is due. `dF_dlam`, `dG_dtheta` and the like are partial derivatives
    at `(lam, theta)`, `d2G_dtheta2` and `d2G_dlam_dtheta` the Hessian and the mixed derivative as
    matrices (`d2G_dlam_dtheta` has a row for each entry of lam). `grad(y, x)` is the whole
    derivative, through all that x entered. The loop is one outer step; k is its number, and what
    it does not make goes on from the last one. Other names are settings of the method, or say what
    they do. Plain descent stands for whatever solvers are set.
"""


@cache
def names(kind: str) -> tuple[str, ...]:
    """The built-in methods or tasks, sorted."""
    return tuple(e.name for e in listing(kind)[kind] if e.origin == "built-in")


@cache
def described(kind: str, name: str) -> Description:
    """What ``metabench show NAME`` shows."""
    return show(name, kind)[0]


def said(name: str) -> Told:
    """What the class of a method says in its docstring. Raises ValueError, which ends the build,
    where that has no formula or no loop."""
    cls = REGISTRIES["method"].get(name)
    found = told(inspect.getdoc(cls) or "")
    for section, text in (("Formula:", found.formulas), ("Loop:", found.loop)):
        if not text:
            raise ValueError(
                f"method {name}: the docstring of {cls.__module__}.{cls.__qualname__} has no "
                f"section {section!r}: see CONTRIBUTING.md"
            )
    return found


def page(kind: str, name: str) -> str:
    """The page of a method or a task."""
    about = described(kind, name)
    where = f"{kind}s/{name}.md"
    facts = dict(about.facts)
    parts = [f"# {name}", f"*{prose(about.title)}*", _links(about, where)]
    if kind == "method":
        parts.append(_formula(name))
    parts += [f"## What it is\n\n{prose(about.text)}", _facts(facts)]
    rows = [(word(s.name), s.type, word(s.default), prose(s.doc)) for s in about.settings]
    settings = table([("setting", "type", "default", "meaning"), *rows])
    parts.append(f"## Settings\n\n{settings or 'It has none.'}")
    if kind == "method":
        parts.append(f"## Where it ranks\n\n{standings.of(name)}")
    own = [n for n in published.numbers() if getattr(n, kind) == name]
    who = f"this {kind}"
    suites = f"Suites: {published.mentions(where, name, kind)}."
    parts.append(f"## What was measured\n\n{suites}\n{published.beside(own, where, who)}")
    for title, crossed in about.tables:
        parts.append(f"## {title}\n\n{_crossing(title, crossed, where)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _links(about: Description, where: str) -> str:
    """The file, the numbers, and a command."""
    path = Path(about.source).resolve().relative_to(ROOT).as_posix()
    source = link(f"source/{path}.md", where, path)
    numbers = "[What was measured](#what-was-measured)"
    return f"File: {source}. {numbers}.\n\n    metabench show {about.name}"


def _formula(name: str) -> str:
    """Formula and loop of a method."""
    about = said(name)
    formulas = "\n\n".join(map(formula, about.formulas))
    return f"## Formula\n\n{formulas}\n\n## As a loop\n\n```python\n{about.loop}\n```\n{LEGEND}"


def _facts(facts: dict[str, str]) -> str:
    """Short statements as a list."""
    known = [(k, v) for k, v in facts.items() if v]
    return "\n".join(f"- **{name}**: {prose(text)}" for name, text in known)


def _crossing(title: str, rows: tuple[tuple[str, ...], ...], where: str) -> str:
    """What it can be crossed with: names of those that apply, and a folded table of reasons."""
    folder = title.lower()
    yes = [link(f"{folder}/{n}.md", where, n) for n, verdict in rows[1:] if verdict == "yes"]
    no = [(link(f"{folder}/{n}.md", where, n), v.removeprefix("no: "))
          for n, v in rows[1:] if v != "yes"]  # fmt: skip
    text = f"Under default settings it applies to: {', '.join(yes) or 'none'}."
    if folder == "methods":
        text = f"Under default settings these apply: {', '.join(yes) or 'none'}."
    if not no:
        return text
    folded = table([(folder.removesuffix("s"), "why not"), *no]).replace("\n", "\n    ").rstrip()
    return f'{text}\n\n??? note "Not applicable: {len(no)}"\n\n    {folded}'


def index(kind: str) -> str:
    """All methods or tasks, a line each."""
    where = f"{kind}s/index.md"
    rows = [(kind, "what it is", "tables")]
    for name in names(kind):
        tables = {n.page for n in published.numbers() if getattr(n, kind) == name}
        entry = link(f"{kind}s/{name}.md", where, name)
        rows.append((entry, prose(described(kind, name).title), str(len(tables))))
    how = (
        f"Made from the code: each page is what `metabench show NAME` says of a {kind}, with its "
        "numbers in the published tables."
    )
    return f"# {kind.title()}s\n\n{how}\n\n{table(rows)}"
