"""Over-fitting of the outer level: how much better a run does on what lam was fitted to."""

from __future__ import annotations

from metabench.analysis import stats
from metabench.analysis.results import Results
from metabench.suites.planning import Planned

VALID = "valid"


def fitted_columns(results: Results) -> list[str]:
    """The columns whose outer level learns on the validation split, where the table is of another
    evaluation."""
    if results.suite.evaluation == VALID:
        return []
    first: dict[str, Planned] = {}
    for run in results.runs:
        first.setdefault(run.column, run)
    return [at for at, run in first.items() if run.declaration.outer_on_validation]


def gaps(results: Results, row: str, column: str) -> list[float]:
    """Validation minus test of the table's metric, of the tested state of each finished seed."""
    cell = results.table_cells[row, column]
    tested = cell.estimates(*results.metric)
    valid = cell.estimates(VALID, results.suite.metric)
    return [valid[seed].mean - tested[seed].mean for seed in tested if seed in valid]


def gap(results: Results, row: str, column: str) -> tuple[float, float | None] | None:
    """Mean over seeds of :func:`gaps` and the half-width of its 95 % t-interval; None where nothing
    is known."""
    found = gaps(results, row, column)
    return (stats.mean(found), stats.half_width(found)) if found else None
