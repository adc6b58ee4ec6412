"""Over-fitting of the outer level: how much better a run does on what lam was fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metabench.analysis import stats
from metabench.analysis.comparisons import ROUND_OFF
from metabench.analysis.results import Results
from metabench.suites.planning import Planned

VALID = "valid"
Place = tuple[str, str]
"""(row, column)."""


def fitted(results: Results) -> set[Place]:
    """The places whose outer level learns on the validation split; none where the table is of that
    split, or its metric is itself a difference of two (``Suite.gap``). A row that has no validation
    examples of its own is at none, whatever stands under that name in its records."""
    if results.suite.evaluation == VALID or results.suite.gap:
        return set()
    return {
        at
        for at, cell in results.table_cells.items()
        if cell.runs[0].declaration.outer_on_validation
    }


def gaps(results: Results) -> dict[Place, list[float]]:
    """Validation minus test of the table's metric, of the tested state of each finished seed, at
    the fitted places that have both and whose column is not :func:`one_number`."""
    one = one_number(results)
    return {at: found for at, found in _known(results).items() if at[1] not in one}


def one_number(results: Results) -> list[str]:
    """The columns in which validation and test are the same number in every fitted run: the metric
    is of no split, or both splits are the same examples."""
    found = _known(results)
    differ = {column for (_, column), values in found.items() if any(values)}
    known = {column for _, column in found}
    return [column.id for column in results.columns if column.id in known - differ]


def why_none(results: Results) -> str:
    """Why no row that learns outside can be judged by validation minus test; "" where one can,
    where the metric is itself that difference, and where nothing of the kind is finished."""
    learning = [run for run in results.runs if run.state == "done" and learns(run)]
    if not learning or results.suite.gap:
        return ""
    if not any(run.declaration.outer_on_validation for run in learning):
        return "the outer level learns on no validation examples"
    if results.suite.evaluation == VALID:
        return "what is reported is of the validation examples, which the outer level learns on"
    if gaps(results):
        return ""
    if one_number(results):
        return "validation and test are one number in every run"
    return "no finished run has the metric on both splits"


def learns(run: Planned) -> bool:
    """Whether the outer level of a run takes any step."""
    return run.declaration.learns and run.cell.budget.get("outer_steps") != 0


def mean_gap(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and the half-width of its 95 % t-interval."""
    return stats.mean(values), stats.half_width(values)


def _known(results: Results) -> dict[Place, list[float]]:
    """The differences of the seeds that have both numbers, without what is round-off alone."""
    out = {}
    for at in fitted(results):
        tested = results.table_cells[at].estimates(*results.metric)
        valid = results.table_cells[at].estimates(VALID, results.suite.metric)
        pairs = [(valid[seed].mean, tested[seed].mean) for seed in tested if seed in valid]
        if pairs:
            out[at] = [0.0 if math.isclose(a, b, rel_tol=ROUND_OFF) else a - b for a, b in pairs]
    return out
