import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from metabench.analysis.results import collect
from metabench.core.errors import StoreError
from metabench.reports.pages.html_report import report
from metabench.reports.tables.grids import table
from metabench.store.published import private

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Ids, links, addresses that would be fetched, text by element, and whether tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.fetched, self.stack = [], [], [], []
        self.json, self.text, self._into = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        for name in ("href", "xlink:href"):
            if name in attrs:
                self.links.append(attrs[name])
        if tag != "a" and "src" in attrs:
            self.fetched.append(attrs["src"])
        if tag == "link":
            self.fetched.append(attrs.get("href"))
        if tag == "pre" and attrs.get("class") in ("json", "curve"):
            self._into = (attrs["class"], attrs["data-key"])
            self.json[self._into] = ""
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        if tag == "pre":
            self._into = None

    def handle_data(self, data):
        self.text.append(data)
        if self._into is not None:
            self.json[self._into] += data


def made(results, store, tmp_path):
    path = report(results, store, tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    return Page(text), text


@pytest.fixture(scope="module")
def pages(few, holed, tmp_path_factory):
    """The reports of a table without and of one with holes, made once."""
    folder = tmp_path_factory.mktemp("reports")
    return {"full": made(*few, folder / "full"), "holed": made(*holed, folder / "holed")}


def test_it_is_whole_and_fetches_nothing(pages):
    page, text = pages["holed"]
    assert page.stack == []
    assert page.fetched == []
    assert not [link for link in page.links if not link.startswith("#")]
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not re.search(r"(src|href)=[\"']?https?:", text)


def test_every_link_leads_somewhere_and_no_id_is_twice(pages):
    for page, _ in pages.values():
        assert len(page.ids) == len(set(page.ids))
        assert {link[1:] for link in page.links} <= set(page.ids)


def test_every_number_of_the_table_leads_to_its_records(holed, pages):
    results, _ = holed
    _, text = pages["holed"]
    table = text[text.index('id="table"') : text.index("Over-fitting of the outer level")]
    targets = re.findall(r'<a href="#(at-\d+)">', table)
    *targets, one, other = targets
    assert (one, other) == (targets[0], targets[1]), "the floor is measured in the first row's runs"
    assert len(targets) == len(set(targets)) == 12
    for (_, crossing), target in zip(results.table_cells.items(), targets, strict=True):
        start = text.index(f'<section id="{target}">')
        section = text[start : text.index("</section>", start)]
        for run in crossing.runs:
            there = f'id="record-{run.cell.key[:16]}"' in section
            assert there == (run.state != "not applicable")


def test_records_and_curves_are_there_as_json(holed, pages):
    results, store = holed
    page, _ = pages["holed"]
    for record in results.records:
        assert json.loads(page.json["json", record.key]) == json.loads(
            json.dumps(private(record).as_dict())
        )
        assert json.loads(page.json["curve", record.key]) == store.curve(record)


def test_failures_and_bad_files_are_on_top_with_reason_and_traceback(pages):
    _, text = pages["holed"]
    top = text[: text.index('id="table"')]
    assert "4 of 36 cells came to nothing" in top
    assert "ANIL, 5-way 1-shot, seed 1" in top
    assert "cannot be read as a record" in top
    assert "Traceback (most recent call last)" in text
    assert "<script>alert" not in text
    assert text.count("<script") == 1  # its own, which opens a record that a link leads to


def test_a_record_says_what_it_was_run_with(pages):
    page, _ = pages["full"]
    said = " ".join(page.text)
    for words in (
        "0123456789abcdef",
        "2.9.0",
        "a processor",
        "inner_steps",
        "outer_steps",
        "405 MiB",
        "2026-01-05T10:00:00+00:00",
        "valid/accuracy",
    ):
        assert words in said, words


@pytest.mark.parametrize("budget", ["smoke", "laptop"])
def test_an_empty_store_still_gives_a_report(suite, helpers, tmp_path, budget):
    store = helpers.Fake()
    results = collect(suite, budget, store, why_not=helpers.allowed)
    page, text = made(results, store, tmp_path)
    assert "cells are not finished" in text
    assert page.stack == []


def test_wild_names_stay_names(helpers, tmp_path):
    wild = "</title><script>alert(1)</script>&amp;'\""
    suite = helpers.make_suite(
        title=wild,
        description=wild,
        paper=[],
        paper_rows=[],
        rows=[{"id": wild, "method": "bilevel", "label": wild, "reference": wild}],
    )
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    page, text = made(results, store, tmp_path)
    assert text.count("<script") == 1
    assert wild in "".join(page.text)


def test_rows_that_share_their_cells_share_no_id(helpers, tmp_path):
    rows = [{"id": name, "method": "bilevel"} for name in ("one", "two", "three")]
    suite = helpers.make_suite(rows=rows, paper=[], paper_rows=[])
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    page, _ = made(results, store, tmp_path)
    assert len(page.ids) == len(set(page.ids))
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))


def test_what_a_record_should_not_hold_is_never_fatal(helpers, tmp_path):
    suite = helpers.make_suite()
    store = helpers.Fake()
    for place in suite.cells("smoke"):
        reason = {"status": "failed", "metrics": {}, "reason": "no file '/data/\udcff'"}
        store.add(place, environment={"git": "none", "machine": 3}, **reason)
    store.bad = ["runs/\udcff: does not belong in a store"]
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    page, _ = made(results, store, tmp_path)
    assert r"no file '\udcff'" in "".join(page.text)


def test_a_folder_gets_report_html(suite, helpers, tmp_path):
    store = helpers.Fake()
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    assert report(results, store, tmp_path / "here") == tmp_path / "here" / "report.html"


def test_pictures_are_in_the_page_once_a_row(few, helpers, tmp_path):
    """Those of the first seed, under the name of the row; what cannot be read is told."""

    class Torn(helpers.Fake):
        def pictures(self, record):
            if record in results.table_cells["fixed", "5w1s"].done:
                raise StoreError("pictures.npz is not the file that its record names")
            return super().pictures(record)

    suite = few[0].suite
    store = helpers.fill(suite, "laptop", Torn())
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for record in results.table_cells["maml", "5w1s"].done:
        store.shown[record.key] = {"noisy": grey, "denoised": 20 * grey}
    page, text = made(results, store, tmp_path)
    assert page.stack == [] and len(page.fetched) == 2
    for address, expected in zip(page.fetched, (grey, 20 * grey), strict=True):
        data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
    assert "MAML, 5-way 1-shot, seed 0" in "".join(page.text)
    assert "pictures.npz is not the file" in text
    assert "pictures" in page.ids and "#pictures" in page.links


def test_plots_stay_apart_in_one_page(pages):
    """Clip paths and glyphs of one figure must not be those of another."""
    _, text = pages["full"]
    figures = re.findall(r'<figure id="plot-(.*?)">(.*?)</figure>', text, re.DOTALL)
    assert len(figures) == 6  # two columns are too few problems for a ranking
    assert "Ranks: " in text and "Not tested" in text
    for _, body in figures:
        ids = set(re.findall(r'\bid="([^"]+)"', body))
        used = set(re.findall(r"url\(#([^)]+)\)", body)) | set(
            re.findall(r'xlink:href="#([^"]+)"', body)
        )
        assert used <= ids


def test_a_cell_that_failed_in_a_home_folder_names_nobody_in_tables_and_reports(helpers, tmp_path):
    suite = helpers.make_suite()
    store = helpers.Fake()
    at = "/home/alice/secret project/venv/lib/python3.12/site-packages/metabench/run/loop.py"
    for place in suite.cells("smoke"):
        store.add(
            place,
            status="failed",
            metrics={},
            reason="no file '/home/alice/secret project/weights.pt'",
            traceback=f'Traceback:\n  File "{at}", line 7, in run\n',
            environment={"machine": {"host": "alices-laptop", "cores": 2}},
        )
    store.bad = [f"/home/alice/runs/ab/{'ab' * 32}/record.json: is not JSON"]
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    page = report(results, store, tmp_path).read_text(encoding="utf-8")
    shown = [page, *(table(results, fmt) for fmt in ("markdown", "csv", "latex", "text", "html"))]
    for text in shown:
        assert "weights.pt" in text and "alice" not in text and "secret project" not in text
    assert "File &#34;metabench/run/loop.py&#34;, line 7" in page
    assert f"ab/{'ab' * 32}/record.json: is not JSON" in page, "which one is bad is still said"


class Boxes(html.parser.HTMLParser):
    """Tables of numbers, by whether a box is around each and holds nothing else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.alone, self.tables = False, [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        kind = dict(attrs).get("class", "")
        if tag == "div" and kind == "scroll":
            self.inside = True
            self.alone.append([])
        elif tag == "table" and kind == "metabench":
            self.tables += 1
        if self.inside and tag in ("table", "ul", "div"):
            self.alone[-1].append(tag)

    def handle_endtag(self, tag):
        if tag == "div":
            self.inside = False


def test_each_table_scrolls_in_a_box_of_its_own_with_labels_kept_in_view(pages):
    _, page = pages["holed"]
    found = Boxes(page)
    assert found.tables >= 2
    assert found.alone == [["div", "table"]] * found.tables
    style = page[page.index("<style>") : page.index("</style>")]
    printed = style.index("@media print")
    rules = dict(re.findall(r"(?m)^([^@{}]+) \{ ([^}]*) \}$", style[:printed]))
    assert "overflow: auto" in rules[".scroll"]
    for part, side in (("thead", "top: 0"), ("tr > :first-child", "left: 0")):
        assert f"position: sticky; {side}" in rules[f"table.metabench {part}"]
    on_paper = dict(re.findall(r"(?m)^  ([^@{}]+) \{ ([^}]*) \}$", style[printed:]))
    assert on_paper["table.metabench thead, table.metabench tr > :first-child"] == (
        "position: static;"
    )
