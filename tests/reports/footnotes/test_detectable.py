"""The difference that would have been shown, in a number only where the number tells something."""

from __future__ import annotations

import pytest

from metabench.analysis.comparisons import compare
from metabench.analysis.estimates import column_entries
from metabench.analysis.results import collect
from metabench.reports.footnotes.general import mark_footnotes
from metabench.store.record import Estimate

APART = {"maml": (0.10, 0.11, 0.12), "anil": (0.90, 0.92, 0.93)}
TANGLED = {"maml": (0.1, 0.5, 0.9), "anil": (0.9, 0.1, 0.6)}
POWERS_APART = {"maml": (1e-9, 1e-6, 1e-8), "anil": (1.0, 10.0, 100.0)}
FACTORS_APART = {"maml": (1.0, 1.1, 1.2), "anil": (90.0, 92.0, 93.0)}


def notes(helpers, first, second, **changes):
    """The footnotes on detectable differences of two columns: row to a number for each seed."""
    rows = [{"id": row, "method": "bilevel", "set": {"method": {"inner_steps": n}}}
            for n, row in enumerate(first, 1)]  # fmt: skip
    given = {"paper": [], "paper_rows": [], "floor": "", "floor_label": "", **changes}
    suite = helpers.make_suite(rows=rows, **given)
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        values = (first if place.column == suite.columns[0].id else second)[place.row]
        found = {"test": {"accuracy": Estimate(values[place.cell.seed], 600, 0.1, 0.01)}}
        store.add(place, metrics=found)
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    entries = {c.id: column_entries(results, c.id) for c in results.columns}
    texts = [note.text for note in mark_footnotes(results, entries)]
    return [text for text in texts if "power" in text]


NONE = "No difference of a size that occurs here would be shown, between most methods, with 80 %"


def test_a_column_that_would_show_some_difference_has_a_number(helpers) -> None:
    (note,) = notes(helpers, APART, APART)
    assert note.startswith("A difference is shown with 80 % power from about this on, in points: ")
    assert "5-way 1-shot" in note and "5-way 5-shot" in note


def test_one_that_would_show_none_that_occurs_is_named_instead(helpers) -> None:
    number, none = notes(helpers, APART, TANGLED)
    assert "5-way 1-shot" in number and "5-way 5-shot" not in number
    assert none.startswith(f"{NONE} power: 5-way 5-shot. It would have to be larger than")


def test_where_no_column_would_there_is_no_number(helpers) -> None:
    (note,) = notes(helpers, TANGLED, TANGLED)
    assert note.startswith(f"{NONE} power: 5-way 1-shot; 5-way 5-shot. ")


@pytest.mark.parametrize("percent", [False, True])
def test_a_factor_of_thousands_is_not_told_by_its_digits(helpers, percent: bool) -> None:
    (note,) = notes(helpers, FACTORS_APART, POWERS_APART, logs=True, percent=percent)
    assert "5-way 5-shot a factor of more than 1,000 (least" in note
    assert "5-way 1-shot a factor of 1." in note


STEADY_PAIR = {"maml": (0.5, 0.6, 0.7), "anil": (0.49, 0.5899, 0.69), "fixed": (0.9, 0.1, 0.6)}
"""Two rows that are told apart by 0.01, beside one that scatters by more than all means differ."""


def test_a_column_with_a_dagger_is_never_said_to_show_nothing(helpers) -> None:
    (note,) = notes(helpers, STEADY_PAIR, STEADY_PAIR)
    found = detectable(helpers, STEADY_PAIR)
    assert (
        found.worse == {"anil"} and found.detectable.least < 0.01 < 0.07 < found.detectable.median
    )
    ends = f"{100 * found.detectable.least:.3g} to {100 * found.detectable.most:.3g}"
    said = f"5-way 1-shot {ends}; 5-way 5-shot {ends} (least to most of the column's pairs)."
    assert note.endswith(f"from about this on, in points: {said}")


def detectable(helpers, rows):
    return compare({row: dict(enumerate(values)) for row, values in rows.items()})


def test_many_columns_have_the_range_of_all(helpers) -> None:
    ids = [f"c{i}" for i in range(7)]
    columns = [{"id": i, "task": "ridge", "label": i.upper()} for i in ids]
    (note,) = notes(helpers, APART, STEADY_PAIR | APART, columns=columns)
    one = detectable(helpers, APART).detectable
    assert one.least == one.most
    value = f"{100 * one.least:.3g}"
    assert note.endswith(f": {value} (C0) to {value} (C0), least to most of all columns' pairs.")
