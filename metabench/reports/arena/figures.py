"""The figures of an arena's track, each with its caption, and the page of tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.analysis.arena.track import TrackResults
from metabench.core.errors import NotDrawn
from metabench.reports.arena import costs, pairs, scores, tables
from metabench.reports.figures.style import save, styled
from metabench.reports.tables.renderers import Grid, markdown, markdown_escape, text
from metabench.suites.arena.definition import TRACKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDTH = 100
"""Characters of a line of ``standings.txt``."""


@dataclass(frozen=True)
class Kind:
    """A kind of figure: its title, how it is drawn, and what it shows and cannot say."""

    title: str
    draw: Callable[[TrackResults], Figure]
    caption: Callable[[TrackResults], Sequence[str]]


KINDS = {
    "scores": Kind("Scores", scores.scores_figure, scores.scores_caption),
    "retrained": Kind("Theta trained anew", scores.retrained_figure, scores.retrained_caption),
    "ranks": Kind("Ranks", scores.ranks_figure, scores.ranks_caption),
    "critical-difference": Kind(
        "Critical differences", scores.difference_figure, scores.difference_caption
    ),
    "pairs": Kind("Pairs", pairs.pairs_figure, pairs.pairs_caption),
    "cost-to-target": Kind("Cost to target", costs.cost_figure, lambda _: costs.cost_caption()),
    "cost-profile": Kind("Profile of costs", costs.profile_figure, costs.profile_caption),
    "trials": Kind("What trials are worth", costs.trials_figure, lambda _: costs.trials_caption()),
    "robustness": Kind("Robustness", scores.robustness_figure, scores.robustness_caption),
    "overfitting": Kind(
        "Over-fitting of the outer level", scores.overfitting_figure, scores.overfitting_caption
    ),
}
"""In the order of the page."""


def figures(track: TrackResults) -> tuple[dict[str, Figure], dict[str, str]]:
    """Kind to figure; and of the kinds that have nothing to show, why."""
    out, not_drawn = {}, {}
    with styled():
        for name, kind in KINDS.items():
            try:
                out[name] = kind.draw(track)
            except NotDrawn as why:
                not_drawn[name] = str(why)
    return out, not_drawn


def write(tracks: Sequence[TrackResults], folder: Path) -> list[Path]:
    """Figures of every track as PNG and PDF (``TRACK-KIND``), ``standings.md`` with tables, figures
    and captions, ``standings.txt``, and ``standings.csv``, ``problems.csv``, ``pairs.csv``; returns
    the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    out, page, plain_text = [], [], []
    for track in tracks:
        drawn, not_drawn = figures(track)
        with styled():
            for name, figure in drawn.items():
                for suffix in ("png", "pdf"):
                    out.append(folder / f"{track.track}-{name}.{suffix}")
                    save(figure, out[-1])
        grids = _grids(track)
        page.append(_section(track, grids, drawn, not_drawn))
        plain_text += [text(grid, WIDTH) for grid in grids]
    title = f"# {markdown_escape(tracks[0].title)}: standings"
    files = {
        "standings.md": "\n".join([title, "", *page]),
        "standings.txt": "\n".join(plain_text),
        "standings.csv": tables.csv_of(
            tables.STANDINGS, chain.from_iterable(map(tables.standings_lines, tracks))
        ),
        "problems.csv": tables.csv_of(
            tables.PROBLEMS, chain.from_iterable(map(tables.problem_lines, tracks))
        ),
        "pairs.csv": tables.csv_of(
            tables.PAIRS, chain.from_iterable(map(tables.pair_lines, tracks))
        ),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
        out.append(folder / name)
    return out


def _grids(track: TrackResults) -> list[Grid]:
    anew = tables.retrained_grid(track)
    return [
        tables.standings_grid(track),
        *([anew] if anew else []),
        tables.standings_grid(track, tuned=False),
        tables.problems_grid(track),
    ]


def _section(
    track: TrackResults,
    grids: Sequence[Grid],
    drawn: dict[str, Figure],
    not_drawn: dict[str, str],
) -> str:
    """A track's part of the page, in Markdown."""
    lines = [f"## Track {track.track}: {TRACKS[track.track]}", ""]
    for grid in grids:
        lines.append(markdown(grid))
    for name, kind in KINDS.items():
        lines += [f"### {kind.title} ({track.track})", ""]
        if name in drawn:
            lines += [f"![{kind.title}]({track.track}-{name}.png)", ""]
            lines += [f"- {markdown_escape(said)}" for said in kind.caption(track)]
        else:
            lines += [markdown_escape(not_drawn[name])]
        lines.append("")
    return "\n".join(lines)
