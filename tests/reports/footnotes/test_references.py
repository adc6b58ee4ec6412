"""A printed table says of each row what it is taken from; a terminal says where that stands."""

import pytest

from metabench.analysis.results import collect
from metabench.reports.footnotes.references import reference_footnotes
from metabench.reports.tables import grids

TERMINAL = "What each row is taken from, and where it departs from that: format markdown or html."


def results(helpers, rows):
    made = [
        {"method": "bilevel", "label": row["id"].upper(), **row,
         "set": {"method": {"inner_lr": n / 100}}}
        for n, row in enumerate(rows, 1)
    ]  # fmt: skip
    suite = helpers.make_suite(rows=made, paper=[], paper_rows=[])
    return collect(suite, "smoke", helpers.Fake(), why_not=helpers.allowed)


def told(helpers, rows):
    notes = reference_footnotes(results(helpers, rows))
    return [note.text for note in notes if note.only == "page"]


ROWS = [
    {"id": "maml", "reference": "Finn et al. 2017; at laptop budget 0.4, not 0.1."},
    {"id": "anil"},
    {"id": "reptile", "reference": "Nichol et al. 2018"},
    {"id": "fomaml", "reference": "Nichol et al. 2018"},
]


def test_each_row_once_and_those_of_one_reference_together(helpers):
    assert told(helpers, ROWS) == [
        "Row MAML: Finn et al. 2017; at laptop budget 0.4, not 0.1.",
        "Rows REPTILE and FOMAML: Nichol et al. 2018.",
    ]


def test_a_line_of_a_figure_is_named_once_unless_its_points_differ(helpers):
    own = [{"id": f"r{n}", "series": "Unrolling", "reference": "Franceschi 2017"} for n in (1, 2)]
    assert told(helpers, own) == ["Row Unrolling: Franceschi 2017."]
    own[1] = {**own[1], "reference": "this project"}
    assert told(helpers, own) == ["Row R1: Franceschi 2017.", "Row R2: this project."]


@pytest.mark.parametrize("fmt", ["markdown", "html", "latex"])
def test_a_page_has_them(helpers, fmt):
    text = grids.table(results(helpers, ROWS), fmt)
    assert text.count("Row MAML: Finn et al. 2017; at laptop budget 0.4, not 0.1.") == 1
    assert TERMINAL not in text


@pytest.mark.parametrize("fmt", ["text", "rich"])
def test_a_terminal_says_where_they_stand(helpers, fmt):
    text = grids.table(results(helpers, ROWS), fmt, 300)
    assert "Finn et al." not in text
    assert text.count(TERMINAL) == 1


def test_without_references_there_is_no_line(helpers):
    assert reference_footnotes(results(helpers, [{"id": "maml"}, {"id": "anil"}])) == []
