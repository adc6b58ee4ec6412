"""The footnotes of a table that say how its rows are tested, where tasks have words for it."""

from __future__ import annotations

from metabench.analysis.results import Results
from metabench.core.text import listed
from metabench.reports.tables.renderers import Footnote


def protocol_footnotes(results: Results) -> list[Footnote]:
    """A sentence with each way of testing and where it holds; and one where rows of a column differ
    in it: their numbers are of different episodes."""
    ways: dict[str, list[str]] = {}
    mixed = []
    for column in results.columns:
        rows: dict[str, list[str]] = {}
        for row in results.rows:
            run = results.table_cells[row.id, column.id].runs[0]
            said = run.declaration.protocol if run.state != "not applicable" else ""
            if said:
                rows.setdefault(said, []).append(row.label or row.id)
        label = column.label or column.id
        most = max(rows, key=lambda said: len(rows[said]), default="")
        for said, labels in rows.items():
            those = "all other rows" if said == most else listed(labels)
            ways.setdefault(said, []).append(label if len(rows) == 1 else f"{label}: {those}")
        if len(rows) > 1:
            mixed.append(label)
    out = [
        Footnote(f"{said[0].upper()}{said[1:]} ({'; '.join(places)}).")
        for said, places in ways.items()
    ]
    if mixed:
        out.append(
            Footnote(
                f"Rows tested in different ways ({listed(mixed)}) meet different episodes: "
                "differences between them are those of the test, too."
            )
        )
    return out
