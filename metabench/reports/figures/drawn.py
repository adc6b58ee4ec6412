"""What a figure of validation metrics shows, and what its footnotes say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metabench.core.text import listed

FEWEST_POINTS = 3
"""Of a curve: a start and one look at a run are two numbers, which a table tells as well. A figure
is drawn where at least half of its curves have so many."""
MOST_NAMED = 3
"""Groups of coincident lines that a footnote names, and holes where there are many."""
MOST_HOLES = 8
"""All of so many cells with missing seeds are named."""


@dataclass
class Drawn:
    """What has been drawn of validation metrics: handles by label, and what footnotes tell."""

    handles: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    alike: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    panels: int = 0
    seeds: int = 0
    bands: set[str] = field(default_factory=set)
    """Of which kinds bands are: "interval", "logarithms"."""
    thin: bool = False
    bars: bool = False
    floored: bool = False
    logarithmic: bool = False
    lines: int = 0
    """That move along x."""
    courses: int = 0
    """Of those the lines of at least ``FEWEST_POINTS``."""
    varied: bool = False
    """Whether the values of some panel differ."""

    def footnotes(self, level: str) -> list[str]:
        """What lines and shades are, what coincides and what is missing; ``level`` explains the
        level lines."""
        out = [self._spread()] if self.seeds > 1 else ["One finished seed: other seeds may differ."]
        if self.floored:
            out.append("Values of 0 or less are drawn at the bottom of a logarithmic axis.")
        if self.levels:
            out.append(f"Dashed level lines: {listed(dict.fromkeys(self.levels))}, {level}.")
        if self.alike:
            # Those in most panels first; of as many, in the order of rows.
            most = sorted(self.alike.items(), key=lambda found: -len(found[1]))[:MOST_NAMED]
            together = "; ".join(f"{listed(them)} ({self._where(at)})" for them, at in most)
            among = f"{len(self.alike)} groups, among them " if len(self.alike) > len(most) else ""
            out.append(f"Lines that coincide: {among}{together}.")
        if self.missing:
            many = len(self.missing) > MOST_HOLES
            named = self.missing[:MOST_NAMED] if many else self.missing
            among = f"{len(self.missing)} cells of the table, among them " if many else ""
            out.append(f"Incomplete: {among}{'; '.join(named)}.")
        return out

    def nothing(self) -> str:
        """Why these lines show nothing that a table does not tell; empty where they do."""
        if not self.courses:
            return "no run is looked at more than once on its way"
        if 2 * self.courses < self.lines:
            return "most runs are looked at no more than once on their way"
        return "" if self.varied else "all values are equal"

    def _spread(self) -> str:
        kinds = {"interval": "over seeds", "logarithms": "of logarithms on logarithmic axes"}
        parts = ["Mean over finished seeds"]
        if self.logarithmic:
            parts[0] += ", geometric on logarithmic axes"
        if self.bands:
            what = ", ".join(text for kind, text in kinds.items() if kind in self.bands)
            parts.append(f"shade: 95 % t-interval {what}")
        if self.thin:
            parts.append("thin lines: single seeds, where they are fewer than three or far apart")
        if self.bars:
            parts.append(
                "bars at the end: that interval of the last point, where seeds are far apart and "
                "too many to draw"
                if self.bands
                else "bars at the end: 95 % t-interval of the last point; seeds are far apart"
            )
        return "; ".join(parts) + "."

    def _where(self, panels: list[str]) -> str:
        if len(panels) == self.panels:
            return "in every panel" if self.panels > 1 else "all along"
        return listed(panels) if len(panels) < 3 else f"in {len(panels)} of {self.panels} panels"
