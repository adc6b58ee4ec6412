"""The footnote about published numbers that nobody has looked up."""

from __future__ import annotations

from metabench.analysis.results import Results
from metabench.core.text import counted
from metabench.reports.tables.renderers import Footnote


def unverified_footnotes(results: Results) -> list[Footnote]:
    """How many numbers from memory are left out, or what their mark means; none without them."""
    found = sum(not number.verified for number in results.suite.paper)
    if not found:
        return []
    if results.unverified:
        return [Footnote("?: recalled from memory and not looked up, not to be relied on.")]
    are, them = ("is", "it") if found == 1 else ("are", "them")
    said = f"{counted(found, 'published number')} from memory {are} left out"
    return [Footnote(f"{said}; --unverified shows {them}.")]
