"""Prints what there is: names, descriptions, suites with their papers and data, this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from metabench.cli.printing import terminal
from metabench.core.text import unwrapped, without_markup

if TYPE_CHECKING:
    from rich.console import Console

    from metabench.api.describe import Description
    from metabench.core.environment.findings import Finding
    from metabench.core.registry import Entry
    from metabench.suites.listing import ListedSuite

LONGEST_DEFAULT = 60
"""Characters of a default that `show` prints."""
MOST_DATA = 3
"""Data sets that the line of a suite names; of more it says how many."""


def print_listing(out: Console, listing: dict[str, list[Entry]]) -> None:
    """Names by kind, each with its author's line."""
    for kind, entries in listing.items():
        terminal.heading(out, f"{kind}s")
        foreign = any(e.origin != "built-in" for e in entries)
        header = ("name", "from", "what") if foreign else ("name", "what")
        told = [(e, without_markup(e.summary)) for e in entries]
        rows = [(e.name, e.origin, what) if foreign else (e.name, what) for e, what in told]
        terminal.grid(out, header, rows, whole=len(header) - 1)


def print_suites(out: Console, suites: Sequence[ListedSuite]) -> None:
    """Suites with their papers, their data and what their published runs took."""
    from metabench.core.text import duration

    terminal.heading(out, "suites")
    rows = []
    for s in suites:
        data = ", ".join(f"{name} (not here)" if name in s.missing else name for name in s.data)
        if len(s.data) > MOST_DATA:
            lack = f", {len(s.missing)} not here" if s.missing else ""
            data = f"{len(s.data)} data sets{lack}"
        taken = "" if s.seconds is None else duration(s.seconds)
        rows.append((s.name, s.title, s.reference, data, taken))
    header = ("name", "what", "paper", "data", "laptop")
    if terminal.wide(header, rows) <= out.width:
        terminal.grid(out, header, rows)
    else:  # columns of two words each would be no table
        for name, title, *others in rows:
            terminal.prose(out, f"{name}: {title}")
            told = [
                f"{what}: {text}" for what, text in zip(header[2:], others, strict=True) if text
            ]
            if told:
                terminal.prose(out, f"    {'; '.join(told)}", "dim")
    terminal.prose(
        out,
        "\nlaptop: what all cells of the published run took, one after another, on two cores",
    )


def print_descriptions(out: Console, descriptions: Iterable[Description]) -> None:
    """All of each description: paragraphs wrapped anew, without a docstring's markup."""
    for d in descriptions:
        terminal.heading(out, f"{d.kind} {d.name}: {without_markup(d.title)}")
        if d.text.strip() != d.title:
            terminal.prose(out, without_markup(unwrapped(d.text)))
        for name, text in d.facts:
            terminal.prose(out, f"{name}: {text}")
        if d.settings:
            terminal.heading(out, "settings")
            rows = [(s.name, _short(s.default), s.type, without_markup(s.doc)) for s in d.settings]
            terminal.grid(out, ("name", "default", "type", "meaning"), rows)
        for title, (header, *table) in d.tables:
            terminal.heading(out, title.lower())
            terminal.grid(out, header, table)
        terminal.prose(out, f"\nsource: {d.source}")


def _short(default: str) -> str:
    """A default that is a page of its own (a prompt), by its beginning."""
    if len(default) <= LONGEST_DEFAULT:
        return default
    return default[: LONGEST_DEFAULT - 4].rstrip() + " ..."


def print_findings(out: Console, findings: Sequence[Finding]) -> None:
    """What the doctor found, by section, and then what to type."""
    for section in dict.fromkeys(f.section for f in findings):
        terminal.heading(out, section)
        rows = [(f.name, f.verdict, f.detail) for f in findings if f.section == section]
        terminal.grid(out, ("what", "how it is", "detail"), rows)
    repairs: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        if finding.repair:
            repairs.setdefault(finding.repair, []).append(finding)
    if repairs:
        terminal.heading(out, "to repair it")
    for commands, group in repairs.items():
        need = "needed" if any(f.essential for f in group) else "optional"
        terminal.prose(out, f"{', '.join(f.name for f in group)} ({need}):")
        for command in commands:
            terminal.line(out, f"    {command}")
