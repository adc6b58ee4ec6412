from __future__ import annotations

from pathlib import Path

import pytest

from metabench import api
from metabench.api.output import format_of
from metabench.core.errors import UnknownName


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> api.Table:
    store = tmp_path_factory.mktemp("runs")
    suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel", "fixed"])
    api.run(suite, budget="smoke", only=["bilevel"], store=store)
    return api.table(suite, budget="smoke", store=store)


def test_a_table_prints_as_text(table: api.Table) -> None:
    assert str(table) == repr(table) == table.text() == table.text("text")
    assert "bilevel" in str(table) and "<table" not in str(table)


def test_a_notebook_shows_html(table: api.Table) -> None:
    shown = table._repr_html_()
    assert shown == table.text("html")
    assert "<table" in shown and "bilevel" in shown


def test_a_frame_has_a_line_for_each_place(table: api.Table) -> None:
    frame = table.frame.set_index("row")
    assert list(frame.index) == ["bilevel", "fixed"]
    assert frame.loc["bilevel", "seeds_done"] == 1 and frame.loc["fixed", "seeds_done"] == 0
    (record,) = table.results.records
    mean = record.metrics["test"]["loss"].mean
    assert frame.loc["bilevel", "ours_mean"] == pytest.approx(mean, rel=1e-14)
    assert len(table.results.frame) == 1


@pytest.mark.parametrize(
    ("format", "part"), [("markdown", "| bilevel"), ("latex", r"\begin{tabular}"), ("csv", ",")]
)
def test_other_formats(table: api.Table, format: str, part: str) -> None:
    assert part in table.text(format)


def test_unknown_formats_are_refused(table: api.Table) -> None:
    with pytest.raises(UnknownName, match="near: markdown"):
        table.text("markdwn")
    with pytest.raises(UnknownName):
        format_of(Path("table.docx"))


def test_costs_in_its_place(table: api.Table) -> None:
    costs = api.Table(table.results, cost=True)
    assert "inner gradients" in str(costs) and "inner gradients" not in str(table)
    (record,) = table.results.records
    assert costs.frame.loc[0, "inner_gradients"] == record.cost["inner_gradients"] > 0
