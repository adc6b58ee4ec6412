"""Suite files: TOML that says what to run for one paper table, and what the papers report.

Grammar (``results/suites/omniglot.toml`` is an example)::

    title, description     text
    reference              the paper whose table it is, "Finn et al. 2017"; optional
    data                   names of the data sets that the laptop budget reads, for lists to name
    metric                 metric of the table, a key of Problem.metrics
    goal                   "max" or "min"
    evaluation             named evaluation of the table ("test"); "test@5_steps" of a budget that
                           has test_after = [5]: the same states after 5 inner steps
    percent                true: numbers are shown times 100
    logs                   true: numbers span powers of ten, so methods are compared by logarithms
    resolution             values of the metric that are smaller are round-off, and equal in tests,
                           marks and claims; the description says why; optional
    gap                    true: the metric is itself a signed difference of two splits: no bold, no
                           curves, and no table of validation minus test
    floor                  a metric that needs no learning, shown as a row of its own; optional
    floor_label            that row's label
    command                the command that reproduces the table
    no_learning            the row that learns nothing, 0 on normalised scales; without, the one row
                           of method "fixed"
    plots                  kinds of plots to draw; without, those of learning curves and rankings
    costs                  costs that they show, in the report and in files; optional
    extends                a suite in the same folder that gives every key which this one does not:
                           another metric of the same cells; columns = ["ID", ...] keeps some of its

    [budgets.NAME]         seeds = [...], the fields of cell.Budget,
                           set.task.*, set.method.*, set.solver.* for every cell
    [[columns]]            id, label, task, set.{task,budget}.* for the column, budgets.BUDGET.*;
                           problem: a word shared by columns that are looks at one problem (one
                           block of rankings); bound: the best value that can be had, in the
                           table's unit (100 where a percentage is to be large)
    [[rows]]               id, label, method, solver (without: the method's own default),
                           chosen: how the settings were chosen, required: "published" (the
                           paper's or its code's; reference says which), "default" (the method's:
                           the row sets none), "own" (set by hand, no trial recorded), or trials,
                           { tuned = "what was compared", trials = 4, seeds = [0] }, with a text
                           for a number that is not known; where budgets differ:
                           { laptop = "own", paper = "published" }, each but smoke is named,
                           series: the line of the plot "frontier" that the row is a point of,
                           set.{task,method,solver,budget}.*,
                           columns.COLUMN.*, budgets.BUDGET.* and both, cells.BUDGET.COLUMN.*,
                           with the same kind of tables, skip = ["column", ...] with skip_reason
    [[paper]]              row, column, value, pm, pm_meaning, source, label: one labelled "memory"
                           is in no table unless asked for (--unverified)
    [[claims]]             better = ["row", ...], than = "row", source: what a paper says of these
                           rows, tested on ours; or_equal = true: no worse; within = 0.01: at most
                           that part of what "than" has apart; columns = [...]: of these alone;
                           by = "reach": by the cost to reach the level of [reach]
    [reach]                metric, goal (may be left out where the metric is the table's), cost,
                           level = VALUE or within = PART: the cost until the metric on the
                           validation split has the value, or is within this part of the best that
                           any row has in the column and seed: a second table

Later settings win: column, budget, column's budget, row, row's budget, row's column, row's cells,
command line.
Paper rows may name a row that is not run here: give it under [[paper_rows]] (id, label).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from metabench.core import toml
from metabench.core.catalogue import arena_names, suite_folder, suite_names
from metabench.core.cell import Budget
from metabench.core.errors import SuiteError, UnknownName
from metabench.core.settings import fields, strictly
from metabench.core.text import listed, shortened
from metabench.suites import mistakes
from metabench.suites.schema import (
    BUDGETS,
    COSTS,
    GROUPS,
    HOW,
    LABELS,
    PLOTS,
    Column,
    Row,
    Tuned,
)
from metabench.suites.suite import Suite

T = TypeVar("T")


def load(name: str | Path) -> Suite:
    """A built-in suite by name, or any suite by the path of its file.

    Raises UnknownName for a name that is neither, SuiteError for a file that is no suite.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) in arena_names():
            raise SuiteError(f"{name} is an arena and no suite: metabench arena {name}")
        if str(name) not in suite_names():
            raise UnknownName("suite", str(name), suite_names(), "or give the path of a .toml file")
        path = suite_folder() / f"{name}.toml"
    elif not path.is_file():
        raise SuiteError(f"no suite file {str(path)!r}")
    data = _read(path)
    if data.get("kind") == "arena":
        raise SuiteError(f"{path} is an arena and no suite: metabench arena {name}")
    if "kind" in data:
        hint = "a suite has none"
        raise SuiteError(f"{path}: {UnknownName('kind', str(data['kind']), ['arena'], hint)}")
    if "extends" in data:
        name = str(data.pop("extends"))
        base = path.parent / f"{name}.toml"
        beside = base.parent == path.parent and base.is_file()
        given = _read(base) if beside else {"extends": ""}
        if "extends" in given:
            raise SuiteError(f"{path}: extends {name!r}: no whole suite beside it")
        columns = data.get("columns")
        if isinstance(columns, list) and any(isinstance(c, str) for c in columns):
            from_dict(given, base)
            given = _narrowed(given, data.pop("columns"), path)
        metric, other = given.get("metric"), data.get("metric", given.get("metric"))
        if other != metric and given.get("claims") and "claims" not in data:
            raise SuiteError(
                f"{path}: the claims of {name} are of its metric {metric!r}; this suite's is "
                f"{other!r}: give it [[claims]] of its own, or claims = []"
            )
        # Of other cells curves are others, too.
        same_cells = data.keys().isdisjoint({"budgets", "columns", "rows"})
        data = {**given, **data, "extended_metric": (metric or "") if same_cells else ""}
    return from_dict(data, path)


def _narrowed(suite: dict[str, Any], columns: list[str], path: Path) -> dict[str, Any]:
    """A whole suite with no more than the named columns of it."""
    there = [c["id"] for c in suite["columns"]]
    if strange := [c for c in columns if c not in there]:
        unknown = UnknownName("column", str(strange[0]), there)
        raise SuiteError(f"{path}: {unknown}")

    def kept(table: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in table.items() if k in columns}

    rows = []
    for row in suite["rows"]:
        own: dict[str, Any] = {}
        if "columns" in row:
            own["columns"] = kept(row["columns"])
        if "skip" in row:
            own["skip"] = [c for c in row["skip"] if c in columns]
        if "cells" in row:
            own["cells"] = {budget: kept(at) for budget, at in row["cells"].items()}
        rows.append({**row, **own})
    return {
        **suite,
        "columns": [c for c in suite["columns"] if c["id"] in columns],
        "rows": rows,
        "paper": [n for n in suite.get("paper", []) if n["column"] in columns],
        "claims": [
            {**claim, "columns": [c for c in claim.get("columns", []) if c in columns]}
            for claim in suite.get("claims", [])
            if not claim.get("columns") or {*claim["columns"]} & {*columns}
        ],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return toml.read(path)
    except ValueError as error:
        raise SuiteError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}") from None


def from_dict(data: dict[str, Any], path: Path) -> Suite:
    """A suite from parsed TOML; ``path`` names it and stands in errors."""
    data = {"name": path.stem, **data}
    limits = set(fields(Budget))
    budgets = data.get("budgets")
    for name, budget in budgets.items() if isinstance(budgets, dict) else ():
        if isinstance(budget, dict):
            if "limits" in budget:  # the dataclass has it; a file names each limit by itself
                wrong = UnknownName("setting called", "limits", {"seeds", "set"} | limits)
                raise SuiteError(f"{path}: budgets.{name}: {wrong}")
            rest = {k: v for k, v in budget.items() if k not in limits}
            own = {k: v for k, v in budget.items() if k in limits}
            data["budgets"] = {**data["budgets"], name: {**rest, "limits": own}}
    try:
        suite = strictly(TypeAdapter(Suite), data)
    except ValidationError as error:
        loc = mistakes.first(error)["loc"]
        if loc[:1] == ("rows",) and loc[2:3] == ("chosen",):
            raise SuiteError(f"{path}: {_not_chosen(data['rows'][loc[1]])}") from None
        said = mistakes.told(error, data, Suite, {"seeds", "set"} | limits)
        raise SuiteError(f"{path}: {said}") from None
    _check(suite, path)
    return suite


CHOSEN = (
    f"say how its settings were chosen: chosen = {', '.join(map(json.dumps, HOW))} "
    'or chosen = { tuned = "validation accuracy", trials = 4, seeds = [0] }; where budgets differ: '
    'chosen = { laptop = "own", paper = "published" }'
)
"""An example of every right line."""


def _not_chosen(row: Mapping[str, Any]) -> str:
    """What is wrong with a row whose ``chosen`` is missing or malformed."""
    given = f"cannot be {shortened(repr(row['chosen']))}" if "chosen" in row else "is missing"
    return f"row {row.get('id')!r}: chosen {given}; {CHOSEN}"


def _check(suite: Suite, path: Path) -> None:
    """Cross references; raises SuiteError."""
    rows = [r.id for r in suite.rows] + [r.id for r in suite.paper_rows]
    columns = [c.id for c in suite.columns]
    for check in (_names, _words, _budgets, _chosen, _paper, _claims, _reach, _places):
        for broken in check(suite, rows, columns):
            raise SuiteError(f"{path}: {broken}")


def _names(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    for kind, ids in (("row", rows), ("column", columns)):
        if twice := _twice(ids):
            yield f"two {kind}s are called {twice!r}"
        # --set GROUP.NAME=VALUE could not tell it from the group.
        for name in ids:
            if not name or name in GROUPS:
                yield f"a {kind} cannot be called {name!r}"
    # It names a folder of results.
    wrong = {"/", "\\"} & {*suite.name} or not suite.name.isprintable() or len(suite.name) > 200
    if suite.name in ("", ".", "..") or wrong:
        yield f"a suite cannot be called {suite.name!r}"


def _words(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    yield from _unknown("kind of plot", suite.plots, PLOTS)
    yield from _unknown("cost", suite.costs, COSTS)
    if suite.no_learning:
        yield from _unknown("row", [suite.no_learning], [r.id for r in suite.rows])


def _budgets(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    for name, budget in suite.budgets.items():
        if _twice(budget.seeds) is not None:
            yield f"budgets.{name}.seeds: a seed stands there twice"
    missing = [b for b in BUDGETS if b not in suite.budgets]
    if missing:
        yield f"no budget {missing[0]!r}; every suite has {', '.join(BUDGETS)}"


def _chosen(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    for row in suite.rows:
        if isinstance(row.chosen, dict):
            where = f"row {row.id}: chosen"
            for unknown in _unknown("budget", row.chosen, suite.budgets):
                yield f"{where}: {unknown}; {CHOSEN}"
            # Smoke runs are cut short to test the machinery: nobody chooses for them.
            if missing := [b for b in suite.budgets if b != "smoke" and b not in row.chosen]:
                yield f"{where} says nothing of budget {missing[0]!r}"
        for how in row.chosen.values() if isinstance(row.chosen, dict) else [row.chosen]:
            if isinstance(how, Tuned):
                yield from _numbers_as_text(row.id, how)
        yield from _not_the_defaults(row, suite.budgets)


def _not_the_defaults(row: Row, budgets: Collection[str]) -> Iterator[str]:
    """A row that says of a budget "the method's defaults" and sets some of them."""
    always = [row.set, *row.columns.values()]
    for budget in budgets:
        groups = [*always, row.budgets.get(budget, {}), *row.cells.get(budget, {}).values()]
        own = sorted({name for group in groups for name in group.get("method", {})})
        if own and budget != "smoke" and row.how(budget) == "default":
            yield (
                f"row {row.id}: chosen is 'default', and the row sets {listed(own)} of its method "
                f'at budget {budget}: say chosen = "own"'
            )
            return


def _numbers_as_text(row: str, how: Tuned) -> Iterator[str]:
    """Seeds and trials that are known, but given as text: no table could say which of the seeds are
    its own."""
    found = re.findall(r"\d+", how.seeds) if isinstance(how.seeds, str) else []
    if found:
        right = f"seeds = [{', '.join(found)}]"
        yield f"row {row}: chosen: seeds = {how.seeds!r} has numbers as text; say {right}"
    if isinstance(how.trials, str) and how.trials.strip().isdigit():
        right = f"trials = {int(how.trials)}"
        yield f"row {row}: chosen: trials = {how.trials!r} is a number as text; say {right}"


def _paper(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    for number in suite.paper:
        for kind, name, known in (("row", number.row, rows), ("column", number.column, columns)):
            if name not in known:
                yield f"a paper number names {kind} {name!r}; known: {known}"
        where = f"paper number {number.row}/{number.column}"
        label = number.label.strip("[]")
        if label not in LABELS:
            yield f"{where}: {UnknownName('label of paper numbers called', number.label, LABELS)}"
        if number.pm is not None and not number.pm_meaning:
            yield f"{where}: +- {number.pm} of what? give pm_meaning"


def _claims(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    if suite.claims and suite.logs:
        yield "claims are tested by differences; logs = true compares methods by logarithms"
    run = [r.id for r in suite.rows]
    for claim in suite.claims:
        for unknown in (
            *_unknown("row", [*claim.better, claim.than], run),
            *_unknown("column", claim.columns, columns),
        ):
            yield f"a claim: {unknown}"
        if claim.or_equal and claim.within:
            yield "a claim is no worse (or_equal) or near (within), not both"
        if claim.than in claim.better:
            yield f"a claim compares row {claim.than!r} with itself"
        for names in (claim.better, claim.columns):
            if again := _twice(names):
                yield f"a claim names {again!r} twice"


def _reach(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    if suite.reach is None:
        if any(claim.by == "reach" for claim in suite.claims):
            yield 'a claim has by = "reach", and the suite has no [reach]'
        return
    yield from _unknown("cost", [suite.reach.cost], COSTS)
    if (suite.reach.level is None) == (suite.reach.within is None):
        yield "[reach] has level or within, one of the two"
    # A suite that extends another may turn the table's goal, and would turn this one's with it.
    if suite.reach.goal is None and suite.reach.metric != suite.metric:
        yield (
            f"[reach] metric {suite.reach.metric!r} is not the table's {suite.metric!r}: say which "
            'is better, goal = "min" or goal = "max"'
        )


def _places(suite: Suite, rows: list[str], columns: list[str]) -> Iterator[str]:
    places: list[Column | Row] = [*suite.columns, *suite.rows]
    for place in places:
        for name in [*place.budgets, *(place.cells if isinstance(place, Row) else ())]:
            if name not in suite.budgets:
                yield f"{place.id} names budget {name!r}"
    for row in suite.rows:
        for name in [*row.columns, *row.skip, *(c for at in row.cells.values() for c in at)]:
            if name not in columns:
                yield f"row {row.id} names column {name!r}; known: {columns}"
        if row.skip and not row.skip_reason:
            yield f"row {row.id} skips columns without a skip_reason"


def _unknown(kind: str, names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    known = list(known)
    for name in names:
        if name not in known:
            yield str(UnknownName(kind, name, known))


def _twice(names: Sequence[T]) -> T | None:
    """The first name that stands there more than once; None where all differ."""
    return next((name for name in names if names.count(name) > 1), None)
