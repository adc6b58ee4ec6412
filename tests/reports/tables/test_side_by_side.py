"""A comparison on paper: text that fits, Markdown, CSV that holds the bits."""

from __future__ import annotations

import csv
import io

import pytest

from metabench.analysis.comparisons import Pair
from metabench.analysis.side_by_side import Difference, Line, Only, SideBySide, View
from metabench.core.errors import UnknownName
from metabench.reports.tables.side_by_side import FIELDS, FORMATS, draw

VIEW = View("test", "accuracy", "max", percent=True)
LINE = Line(
    "maml/5w|1s",
    VIEW,
    (0, 1, 2),
    0.9,
    0.9512345678901234,
    Pair(0.05, 0.01, 0.004, 3, 0.0123),
    0.011,
    (1,),
    {"method.lr": ("0.1", "=evil")},
)
FOUND = SideBySide(
    "one",
    "two",
    (LINE,),
    (Only("A", "ift/5w1s", (0, 4), "failed"),),
    (Difference("version of torch", "2.6", "2.7"),),
    (Difference("budget.outer_steps", "3", "9"),),
)


def test_text_has_the_numbers_in_the_tables_unit_and_fits() -> None:
    text = draw(FOUND, "text", 80)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for said in (
        "A: one; B: two", "95.12", "5.0 ± 1.0", "0.012", "1.100", "B better (1 identical)",
        "3 paired cells, 1 identical to the last bit", "accuracy of 'test' (higher is better)",
        "Only A has: ift/5w1s (seeds 0, 4; failed in the other)",
        "Settings differ: budget.outer_steps: A 3, B 9", "version of torch: A 2.6, B 2.7",
        "Settings of maml/5w|1s differ: method.lr: A 0.1, B =evil",
        "Holm's over 1 line",
    ):  # fmt: skip
        assert said in words, said
    assert "Identical:" not in text


def test_markdown_keeps_its_columns() -> None:
    lines = draw(FOUND, "markdown").splitlines()
    row = next(line for line in lines if line.startswith("| maml"))
    assert row.replace("\\|", "").count("|") == lines[2].count("|") == 9


def test_the_csv_gives_back_every_bit() -> None:
    rows = list(csv.DictReader(io.StringIO(draw(FOUND, "csv"))))
    assert list(rows[0]) == list(FIELDS)
    assert [row["kind"] for row in rows] == ["pair", "setting", "only", "setting", "made with"]
    pair = rows[0]
    assert float(pair["b"]) == LINE.b and float(pair["difference"]) == 0.05
    assert (pair["seeds"], pair["identical_seeds"], pair["p_holm"]) == ("0 1 2", "1", "0.0123")
    assert rows[1]["b_has"] == "'=evil"  # a spreadsheet shows it and computes nothing


def test_identical_is_the_first_word() -> None:
    same = Line("r/c", VIEW, (0,), 0.9, 0.9, Pair(0.0, None, None, 1), None, (0,), {})
    text = draw(SideBySide("one", "two", (same,), (), (), ()), "text")
    assert "Identical: in all 1 cell the metrics" in text


def test_another_format_is_named() -> None:
    with pytest.raises(UnknownName, match="near: markdown"):
        draw(FOUND, "markdow")
    assert all(draw(FOUND, name) for name in FORMATS)
