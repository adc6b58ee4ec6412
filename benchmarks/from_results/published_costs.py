"""What the published runs took: the table that ``metabench plan`` estimates by before a first run.

    python -m benchmarks.from_results.published_costs

Reads the committed records of every suite at laptop budget and measures nothing; writes
metabench/suites/published_costs.json. Means over seeds, by row and column, so that the seeds of a
place together take what they took. Records of cells that their suite does not plan any more are
left out. See docs/budgets.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.records import committed
from metabench.core.catalogue import suite_names
from metabench.core.cell import Budget
from metabench.core.costs import COUNT_NAMES
from metabench.store.files import write_atomic
from metabench.store.record import Record
from metabench.suites import loading as suites
from metabench.suites.listing import COSTS
from metabench.suites.published_costs import CLOCKS, Place, PublishedSuite, Table, settings_key

ROOT = Path(__file__).parents[2] / "results"
BUDGET = "laptop"
COMMAND = "python -m benchmarks.from_results.published_costs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT, help="where suites' results lie")
    parser.add_argument("--out", type=Path, default=COSTS)
    given = parser.parse_args(arguments)
    table = collected(given.results, suite_names())
    write_atomic(given.out, rendered(table).encode())
    cells = sum(suite.cells for suite in table.suites.values())
    print(f"wrote {given.out}: {len(table.suites)} suites, {cells} cells")
    return 0


def collected(results: Path, names: Iterable[str]) -> Table:
    """The table of these suites."""
    budgets: dict[str, int] = {}
    out = {}
    for name in names:
        records = committed(results / name / BUDGET)
        if not records:
            continue
        places: dict[tuple[str, str], list[Record]] = {}
        for item in suites.load(name).cells(BUDGET):
            record = records.get(item.cell.key)
            if record is not None and record.status == "done":
                places.setdefault((item.row, item.column), []).append(record)
        found = {r.key: r for group in places.values() for r in group}
        if found:
            out[name] = PublishedSuite(
                machine(found.values()),
                len(found),
                round(sum(r.cost[clock] for r in found.values() for clock in CLOCKS), 1),
                [place(*at, group, budgets) for at, group in places.items()],
            )
    return Table(COMMAND, [json.loads(text) for text in budgets], out)


def place(row: str, column: str, records: Sequence[Record], budgets: dict[str, int]) -> Place:
    """A row and column; its budget is added to ``budgets``."""
    cell = records[0].cell
    budget = json.dumps(cell.budget, sort_keys=True)
    # Counts matter where a budget is set in them.
    counted = {"cost"} & cell.budget.keys() or {*Budget.LIMITS} & cell.budget.keys()
    names = [n for n in COUNT_NAMES if counted == {"cost"} or n in counted]
    cost = {n: statistics.fmean(r.cost[n] for r in records) for n in [*names, *CLOCKS]}
    return Place(
        row,
        column,
        settings_key(cell),
        budgets.setdefault(budget, len(budgets)),
        statistics.fmean(r.steps for r in records),
        {name: float(f"{value:.4g}") for name, value in cost.items()},
    )


def machine(records: Iterable[Record]) -> str:
    """On what most of them ran."""
    kinds = Counter(_machine(r.environment) for r in records)
    return kinds.most_common(1)[0][0]


def _machine(environment: dict[str, Any]) -> str:
    found = environment.get("machine", {})
    device = environment.get("device", "cpu")
    on = "" if device == "cpu" else f", {device}"
    return f"{found.get('processor', 'unknown')}, {found.get('cores', '?')} cores{on}"


def rendered(table: Table) -> str:
    """JSON, a place a line."""
    data = asdict(table)
    suites_ = []
    for name, suite in data["suites"].items():
        lines = ",\n".join(f"   {json.dumps(p)}" for p in suite.pop("places"))
        head = json.dumps(suite)[:-1]
        suites_.append(f'  {json.dumps(name)}: {head}, "places": [\n{lines}]}}')
    budgets = ",\n".join(f"  {json.dumps(b)}" for b in data["budgets"])
    body = ",\n".join(suites_)
    return (
        f'{{"command": {json.dumps(table.command)},\n "budgets": [\n{budgets}],\n'
        f' "suites": {{\n{body}}}}}\n'
    )


if __name__ == "__main__":
    sys.exit(main())
