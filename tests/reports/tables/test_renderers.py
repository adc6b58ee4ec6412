import html.parser
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from metabench.reports.tables import renderers
from metabench.reports.tables.renderers import Footnote, Grid, Item

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def grid(text: str) -> Grid:
    return Grid(
        "t",
        [("", 1), ("g", 1)],
        ["a", "b"],
        [[Item(text), Item(text, True)]],
        [Footnote(text, code="c" + text)],
    )


@given(TEXT)
def test_html_shows_any_text_and_makes_no_tag_of_it(text):
    plain, wild = Reader(), Reader()
    plain.feed(renderers.html(grid("x")))
    wild.feed(renderers.html(grid(text)))
    assert wild.tags == plain.tags
    shown = "".join(wild.texts).replace("\xa0", " ")
    assert renderers.one_line(text).replace("\xa0", " ") in shown


@given(TEXT)
def test_markdown_keeps_its_columns(text):
    lines = [x for x in renderers.markdown(grid(text)).splitlines() if x.startswith("|")]
    assert len(lines) == 3
    for row in lines:
        bare = row.replace("\\\\", "").replace("\\|", "")
        assert bare.count("|") == 3
        assert "<" not in row


@given(TEXT)
def test_one_line_is_one_line(text):
    out = renderers.one_line(text)
    assert len(out.splitlines()) <= 1
    assert renderers.one_line(out) == out


def test_code_with_backticks_is_fenced():
    text = renderers.markdown(grid("a `b` ``c``"))
    assert "``` ca `b` ``c`` ```" in text


def test_rich_splits_what_does_not_fit():
    from rich.console import Console

    wide = Grid(
        "t",
        [("", 12)],
        ["name", *[f"column{i}" for i in range(11)]],
        [[Item("row"), *[Item("1,000,000")] * 11]],
    )
    for width, tables in ((200, 1), (60, 3)):
        console = Console(width=width, file=None, record=True, no_color=True)
        with console.capture() as capture:
            console.print(renderers.rich(wide, width))
        text = capture.get()
        assert text.count("row ") == tables
        assert text.count("1,000,000") == 11
        assert "…" not in text


@given(st.lists(TEXT, min_size=1, max_size=6), st.lists(TEXT, max_size=3), st.integers(20, 120))
def test_text_fits_a_width_and_keeps_every_letter(heads, notes, width):
    wide = Grid(
        "a title",
        [("", 1), ("group of columns", len(heads))],
        ["name", *heads],
        [[Item("a label of many words"), *[Item(head, True, True, ("a", "1")) for head in heads]]],
        [Footnote(note, "a", "metabench x") for note in notes],
    )
    out = renderers.text(wide, width)
    assert max(map(cell_len, out.splitlines())) <= width

    def letters(text):
        return Counter(c for c in text if c.isalnum())

    assert not letters(renderers.text(wide)) - letters(out)


def test_a_command_that_does_not_fit_beside_its_footnote_stands_below_it():
    note = Footnote("Reproduce with:", code="metabench reproduce omniglot")
    narrow = Grid("t", [("", 1)], ["a"], [[Item("b")]], [note])
    assert renderers.text(narrow, 50).splitlines()[-1] == f"{note.text} {note.code}"
    assert renderers.text(narrow, 40).splitlines()[-2:] == [note.text, note.code]


def test_a_number_and_its_half_width_stand_in_one_line():
    wide = Grid("t", [("", 3)], ["a", "b", "c"], [[Item("x"), *[Item("(1.23 ± 0.04)e-15")] * 2]])
    for width in (45, 25):
        assert renderers.text(wide, width).count("(1.23 ± 0.04)e-15") == 2
