"""The plain table of ranks: each method's place in each problem, without a test."""

from __future__ import annotations

from metabench.analysis.rankings import ranked
from metabench.analysis.results import Results
from metabench.reports.tables.renderers import Footnote, Grid, Item


def ranks_grid(results: Results) -> Grid | None:
    """Rows are methods, the best mean rank first; columns are problems. None where there are fewer
    than two problems or two methods to rank."""
    found = ranked(results)
    if len(found.problems) < 2 or len(found.rows) < 2:
        return None
    means = found.means
    rows = [
        [
            Item(results.row_label(found.rows[i])),
            Item(f"{means[i]:.2f}"),
            *[
                Item(f"{ranks[i]:g}" if ranks[i].is_integer() else f"{ranks[i]:.2f}")
                for ranks in found.ranks
            ],
        ]
        for i in sorted(range(len(means)), key=lambda i: means[i])
    ]
    return Grid(
        f"Ranks: {results.suite.title} (budget {results.budget})",
        [("", 1), ("", 1), *[(name, 1) for name in found.problems]],
        ["1 is the best mean over seeds", "mean", *["rank"] * len(found.problems)],
        rows,
        [Footnote(note) for note in found.footnotes],
        label=f"{results.suite.name}-{results.budget}-ranks",
    )
