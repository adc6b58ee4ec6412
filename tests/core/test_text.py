"""Words for people."""

from __future__ import annotations

import json

import pytest

from metabench.core.text import (
    human,
    printable,
    rounded,
    type_of,
    unwrapped,
    with_article,
    without_markup,
)


def test_an_article_fits_the_letter_that_follows() -> None:
    words = [with_article(word) for word in ("int", "Episode", "tuple", "State")]
    assert words == ["an int", "an Episode", "a tuple", "a State"]
    assert (type_of(7), type_of("x"), type_of(None)) == ("an int", "a str", "a NoneType")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (2.5, 2, "2.5"),
        (99.4, 2, "99"),
        (99.6, 2, "100"),
        (254.0, 2, "254"),
        (8512.0, 3, "8,512"),
        (-254.0, 2, "-254"),
        (0.0254, 2, "0.025"),
        (0.0, 2, "0"),
    ],
)
def test_a_large_number_has_no_power_of_ten(value: float, digits: int, text: str) -> None:
    assert rounded(value, digits) == text


def test_costs_have_no_power_of_ten_either() -> None:
    assert human("peak_memory_bytes", 1020.4 * 1024) == "1,020 KiB"
    assert human("seconds", 0.9998) == "1,000 ms"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\u001b[31mred"),
        ("a\rb\x7f\x9b\0", r"a\u000db\u007f\u009b\u0000"),
        ("\u202eevil\u2066\u200b", r"\u202eevil\u2066\u200b"),
        ("\ud800", r"\ud800"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("5 ± 3 °C, λ\u00a0\u2009ü 漢 😀", "5 ± 3 °C, λ\u00a0\u2009ü 漢 😀"),
    ],
)
def test_text_never_acts_on_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    dumped = json.dumps(text, ensure_ascii=False)
    assert json.loads(printable(dumped)) == text


def test_paragraphs_and_items_are_lines_and_what_stands_indented_keeps_its_own() -> None:
    text = """A paragraph
in two lines.

    a = b
    c = d

- an item
  in two
- another
full       what it means
           in two
Then this.
"""
    assert unwrapped(text).split("\n") == [
        *("A paragraph in two lines.", "", "    a = b", "    c = d", ""),
        *("- an item in two", "- another", "full       what it means in two", "Then this."),
    ]
    assert unwrapped(unwrapped(text)) == unwrapped(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("``rank`` and ``a.b``", "rank and a.b"),
        (":func:`~a.b.run` of :mod:`metabench.api`", "run of metabench.api"),
        (":class:`a run <a.b.Run>`", "a.b.Run"),
        ("a `word` and 5:30", "a `word` and 5:30"),
    ],
)
def test_roles_and_double_backticks_go(text: str, plain: str) -> None:
    assert without_markup(text) == plain
