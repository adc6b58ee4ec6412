"""A table says where states are chosen by what the outer level learns on."""

from dataclasses import replace

from metabench.analysis.results import collect
from metabench.core.text import listed
from metabench.reports.footnotes.selection import selection_footnotes
from metabench.reports.tables import grids

SEES = "State selection sees what the outer level learns on"


def notes(helpers, change):
    suite = helpers.make_suite()
    columns = [change(column) for column in suite.columns]
    suite = replace(suite, columns=columns)
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    return [note.text for note in selection_footnotes(results)], grids.table(results)


def budget(column, **limits):
    return replace(column, set={**column.set, "budget": limits})


def test_all_columns_and_some(helpers):
    told, text = notes(helpers, lambda column: column)
    assert told == [f"{SEES} (all columns)."] and told[0] in text
    kept = {"5w1s": {"select": "best_selection"}}
    told, _ = notes(helpers, lambda c: budget(c, **kept.get(c.id, {})))
    assert told == [f"{SEES} (5-way 5-shot)."]


def test_where_nothing_is_chosen_there_is_no_note(helpers):
    assert notes(helpers, lambda column: budget(column, select="last"))[0] == []


def test_where_no_row_learns_outside_there_is_no_note(helpers):
    suite = helpers.make_suite()
    fixed = [replace(row, method="fixed", set={}) for row in suite.rows]
    results = collect(
        replace(suite, rows=fixed), "smoke", helpers.fill(replace(suite, rows=fixed), "smoke"),
        why_not=helpers.allowed,
    )  # fmt: skip
    assert len(results.records) > 0 and selection_footnotes(results) == []


def test_the_reason_where_the_task_keeps_no_examples(helpers):
    told, _ = notes(
        helpers, lambda c: replace(c, task="newsgroups", set={}) if c.id == "5w1s" else c
    )
    assert told == [
        f"{SEES} (5-way 1-shot): every later post validates or tests.",
        f"{SEES} (5-way 5-shot).",
    ]


def test_where_rows_of_a_column_differ_the_row_is_named(helpers):
    """The row ANIL learns on other examples: whichever run comes first, the note is of MAML."""
    suite = helpers.make_suite()
    results = collect(suite, "smoke", helpers.fill(suite, "smoke"), why_not=helpers.allowed)
    rows = [row.id for row in suite.rows if any(r.row == row.id for r in results.runs)]
    for other in ("maml", "anil"):
        changed = {
            at: replace(
                cell,
                runs=tuple(
                    replace(run, said=replace(run.declaration, outer_on_validation=False))
                    for run in cell.runs
                ),
            )
            for at, cell in results.table_cells.items()
            if at[0] == other
        }
        cells = {**results.table_cells, **changed}
        told = [note.text for note in selection_footnotes(replace(results, table_cells=cells))]
        seen = [r for r in rows if r not in (other, "fixed")]
        assert told == [f"{SEES} ({listed([results.row_label(r) for r in seen])})."]


def test_a_task_whose_outer_level_learns_on_other_examples(helpers):
    assert notes(helpers, lambda c: replace(c, task="quadratic", set={}))[0] == []
