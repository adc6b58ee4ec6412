"""Golden tables are plain files; METABENCH_UPDATE_GOLDEN=1 writes them anew, to be read in the
diff."""

import csv
import dataclasses
import io
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from metabench.analysis.results import collect
from metabench.core.costs import CUT_STEP
from metabench.core.errors import UnknownName
from metabench.reports.footnotes.budget import budget_footnotes
from metabench.reports.footnotes.general import command_footnotes
from metabench.reports.tables import grids, renderers
from metabench.store.record import Estimate
from metabench.suites.overrides import parse_override

GOLDEN = Path(__file__).parents[1] / "golden"
SUFFIX = {"markdown": "md", "latex": "tex", "html": "html", "text": "txt"}


def check(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("METABENCH_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("fmt", SUFFIX)
def test_golden_tables(holed, fmt):
    results, _ = holed
    check(f"holed.{SUFFIX[fmt]}", grids.table(results, fmt))
    check(f"holed-cost.{SUFFIX[fmt]}", grids.cost_table(results, fmt))


def test_golden_full(full):
    check("full.md", grids.table(full[0]))


def test_golden_one_seed(suite, helpers):
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    text = grids.table(results)
    check("one-seed.md", text)
    assert "over the 12 test episodes of that run" in text
    assert "No difference is tested" in text
    assert "paired" not in text


def test_golden_empty(suite, helpers):
    results = collect(suite, "laptop", helpers.Fake(), why_not=helpers.allowed)
    text = grids.table(results)
    check("empty.md", text)
    assert "— (3 open)" in text
    assert "Bold" not in text
    assert "No cell has finished" in text


def test_all_failed(suite, helpers):
    store = helpers.Fake()
    for place in suite.cells("smoke"):
        store.add(place, **helpers.failure("failed"))
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    for fmt in grids.FORMATS:
        assert "1 failed" in grids.table(results, fmt, width=200)
        assert grids.cost_table(results, fmt)


def test_the_cost_table_says_whose_warm_up_is_in_its_time(suite, helpers):
    said = "warm-up of {} of {} runs is in their time"
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    records = [r for cell in results.table_cells.values() for r in cell.done if r.steps]
    assert len(records) > 1
    assert said.format(len(records), len(records)) in grids.cost_table(results)
    for record in records[1:]:
        record.environment["warm_up_seconds"] = 0.5
    assert said.format(1, len(records)) in grids.cost_table(results)
    records[0].environment["warm_up_seconds"] = 0.5
    assert "is in their time" not in grids.cost_table(results)
    assert "thrown away to warm up." in grids.cost_table(results)


def test_without_papers_there_are_no_paper_columns(helpers):
    suite = helpers.make_suite(paper=[], paper_rows=[], floor="")
    results = collect(suite, "smoke", helpers.fill(suite, "smoke"), why_not=helpers.allowed)
    grid = grids.main_grid(results)
    assert list(grid.heads)[1:] == ["ours", "ours"]
    assert any("No paper reports" in note.text for note in grid.footnotes)


def test_no_table_has_a_nan_or_a_bare_plus_minus(full, holed):
    for results, _ in (full, holed):
        for fmt in grids.FORMATS:
            text = grids.table(results, fmt) + grids.cost_table(results, fmt)
            assert "nan" not in text.lower().replace("is nan", "")
        assert "half-width of the 95 % t-interval" in grids.table(results)


def test_a_finite_number_that_is_no_result_is_told(helpers):
    suite = helpers.make_suite(percent=False)
    store = helpers.fill(suite, "smoke")
    text = grids.table(collect(suite, "smoke", store, why_not=helpers.allowed), "text")
    assert "must have diverged" not in text
    place = next(p for p in suite.cells("smoke") if (p.row, p.column) == ("anil", "5w5s"))
    store.add(place, metrics={"test": {"accuracy": Estimate(-1.2e94, 12, 1e94, 1e94)}})
    text = grids.table(collect(suite, "smoke", store, why_not=helpers.allowed), "text")
    assert "ANIL (5-way 5-shot): finite, but so large that the inner training must have" in text
    assert "(-1.2 ± 1.0)e+94" in text


def test_a_number_without_plus_minus_says_why(helpers):
    suite = helpers.make_suite(paper=[], paper_rows=[], floor="", percent=False)
    store = helpers.Fake()
    for place in suite.cells("smoke"):
        store.add(place, metrics={"test": {"accuracy": Estimate(0.5, 1)}})
    text = grids.table(collect(suite, "smoke", store, why_not=helpers.allowed))
    assert "one seed on one test episode" in text
    assert "No difference is tested" in text


def test_the_command_carries_budget_and_overrides(suite, helpers):
    override = parse_override("method.inner_lr=0.05")
    results = collect(suite, "smoke", helpers.Fake(), overrides=[override], why_not=helpers.allowed)
    text = grids.table(results, "text")
    assert "metabench reproduce synthetic --budget smoke --set method.inner_lr=0.05" in text
    assert "set by hand: method.inner_lr = 0.05" in text


def test_the_command_can_be_typed_as_it_stands(suite, helpers):
    overrides = [parse_override("method.truncate=unset"), parse_override("maml.memory='a b'")]
    results = collect(suite, "smoke", helpers.Fake(), seeds=[0, 7], why_not=helpers.allowed)
    assert "metabench reproduce synthetic --budget smoke --seeds 0,7" in grids.table(results)
    results = dataclasses.replace(results, overrides=tuple(overrides))
    (command,) = command_footnotes(results)
    assert command.code == (
        "metabench reproduce synthetic --budget smoke --set method.truncate=unset "
        "--set 'maml.memory=a b' --seeds 0,7"
    )


def unverified(suite, helpers, budget="smoke"):
    store = helpers.fill(suite, budget)
    return collect(suite, budget, store, why_not=helpers.allowed, unverified=True)


def test_paper_numbers_keep_their_decimals_meaning_and_label(suite, full, helpers):
    text = grids.table(full[0], "text")
    assert "99.53 ± 0.26 [b]" in text
    assert "[b] Li et al. 2017 [2nd]; ± is the 95 % interval over episodes." in text
    assert "[memory]" not in text
    assert "[repo]" not in text
    text = grids.table(unverified(suite, helpers), "text")
    assert "99.53 ± 0.26 [c]" in text
    assert "[memory] recalled, not verified" in text


def test_numbers_from_memory_are_left_out_unless_asked_for(suite, full, helpers):
    asked = unverified(suite, helpers)
    for fmt in ("markdown", "latex", "html", "text", "rich"):
        assert "97.68" not in grids.table(full[0], fmt)
        assert "97.68?" in grids.table(asked, fmt)
        assert "98.7" in grids.table(full[0], fmt) and "98.7?" not in grids.table(asked, fmt)
    text = grids.table(full[0], "text")
    assert "1 published number from memory is left out; --unverified shows it." in text
    text = grids.table(asked, "text")
    assert "left out" not in text and "?: recalled from memory" in text
    assert "metabench reproduce synthetic --budget smoke --unverified" in text
    values = [
        [row["paper_value"] for row in csv.DictReader(io.StringIO(grids.table(found, "csv")))]
        for found in (full[0], asked)
    ]
    assert "97.68" not in values[0] and "97.68" in values[1]


def test_a_column_of_numbers_from_memory_alone_is_not_drawn(helpers):
    number = {"value": 1.5, "source": "somebody"}
    suite = helpers.make_suite(
        paper=[
            {**number, "row": "maml", "column": "5w1s", "label": "2nd"},
            {**number, "row": "maml", "column": "5w5s", "label": "[memory]"},
            {**number, "row": "metasgd", "column": "5w5s", "label": "memory"},
        ]
    )
    store = helpers.fill(suite, "smoke")
    both = ["paper", "ours"]
    for asked, heads, rows in ((False, [*both, "ours"], 7), (True, both * 2, 8)):
        found = collect(suite, "smoke", store, why_not=helpers.allowed, unverified=asked)
        grid = grids.main_grid(found)
        assert list(grid.heads[1:]) == heads
        assert len(grid.rows) == rows
        assert {len(row) for row in grid.rows} == {len(grid.heads)}
        assert sum(n for _, n in grid.groups) == len(grid.heads)


@pytest.mark.parametrize(
    ("labels", "heads"),
    [
        ({"5w1s": ["2nd"], "5w5s": ["derived"]}, ["paper", "ours", "reference", "ours"]),
        (
            {"5w1s": ["rerun"], "5w5s": ["[derived]", "text"]},
            ["reference", "ours", "paper", "ours"],
        ),
    ],
)
def test_a_column_without_a_number_of_a_paper_is_called_reference(helpers, labels, heads):
    paper = [
        {"row": "maml", "column": column, "value": 1.5 + n, "source": "somebody", "label": label}
        for column, of_column in labels.items()
        for n, label in enumerate(of_column)
    ]
    suite = helpers.make_suite(paper=paper, paper_rows=[])
    found = collect(suite, "smoke", helpers.Fake(), why_not=helpers.allowed)
    assert list(grids.main_grid(found).heads[1:]) == heads


def test_rows_that_met_other_episodes_have_their_labels(suite, helpers):
    store = helpers.Fake()
    for place in suite.cells("smoke"):
        nearest = Estimate(0.4 if place.row == "fomaml" else 0.3, 12, 0.1, 0.1)
        metrics = {"test": {"accuracy": Estimate(0.9, 12, 0.1, 0.1), "nearest_neighbour": nearest}}
        store.add(place, metrics=metrics)
    text = grids.table(collect(suite, "smoke", store, why_not=helpers.allowed))
    assert "5-way 1-shot: MAML, first order met other test episodes than the first method" in text


def test_the_table_says_how_settings_were_chosen(helpers):
    how = {"tuned": "validation accuracy", "trials": 4, "seeds": [0, 7]}
    rows = [
        {"id": "maml", "method": "bilevel", "chosen": "published"},
        {"id": "fomaml", "method": "ift", "chosen": {"laptop": how, "paper": "default"}},
        {"id": "anil", "method": "fixed", "chosen": {**how, "seeds": [7], "trials": "not kept"}},
    ]
    suite = helpers.make_suite(rows=rows, paper=[], paper_rows=[])

    def told(budget, **words):
        found = collect(suite, budget, helpers.Fake(), why_not=helpers.allowed, **words)
        (said,) = (n.text for n in grids.main_grid(found).footnotes if "chosen" in n.text)
        return found, said

    found, said = told("laptop")
    assert said == (
        "Settings chosen: as published (maml); tuned by validation accuracy: 4 trials, seeds 0 "
        "and 7, 0 also in the table (fomaml); tuned by validation accuracy: trials not kept, seed "
        "7 (anil)."
    )
    for fmt in ("markdown", "latex", "html", "text", "csv"):
        assert "trials not kept" in grids.table(found, fmt).replace("\n", " ")
    assert "method's defaults (fomaml)" in told("paper")[1]
    assert "set by hand, no trial recorded (fomaml)" in told("smoke")[1]
    assert "also in the table" not in told("laptop", seeds=[1, 2])[1]
    overrides = [parse_override("maml.truncate=5")]
    assert told("laptop", overrides=overrides)[1].endswith("; but what is set by hand.")
    csv_rows = csv.DictReader(io.StringIO(grids.table(found, "csv")))
    assert next(r["chosen"] for r in csv_rows if r["kind"] == "method") == "as published"


def test_csv_is_long_and_has_both_sides(holed):
    results, _ = holed
    rows = list(csv.DictReader(io.StringIO(grids.table(results, "csv"))))
    assert len(rows) == 12 + 2 + 1
    at = {(r["row"], r["column"]): r for r in rows}
    maml = at["maml", "5w1s"]
    mean = (
        sum(
            e.mean
            for e in results.table_cells["maml", "5w1s"].estimates("test", "accuracy").values()
        )
        / 3
    )
    assert float(maml["ours_mean"]) == pytest.approx(100 * mean)
    assert (maml["paper_value"], maml["paper_pm"], maml["unit"]) == ("98.7", "0.4", "%")
    assert maml["keys"].split() == [r.cell.key for r in results.table_cells["maml", "5w1s"].runs]
    assert at["fomaml", "5w5s"]["ours_pm_over"] == "episodes"
    assert at["fomaml", "5w5s"]["holes"] == "2 open: not run yet"
    assert at["reptile", "5w5s"]["ours_mean"] == ""
    assert at["nearest_neighbour", "5w1s"]["kind"] == "floor"
    assert at["metasgd", "5w1s"]["kind"] == "paper"


def test_two_papers_for_one_number_are_both_shown(helpers):
    more = {"row": "maml", "column": "5w1s", "value": 98.4, "label": "rerun", "source": "someone"}
    suite = helpers.make_suite()
    from dataclasses import replace

    from metabench.suites.schema import Published

    suite = replace(suite, paper=[*suite.paper, Published(**more)])
    results = collect(suite, "smoke", helpers.fill(suite, "smoke"), why_not=helpers.allowed)
    assert "98.7 ± 0.4; 98.4 [a,b]" in grids.table(results, "text")
    rows = csv.DictReader(io.StringIO(grids.table(results, "csv")))
    values = [r["paper_value"] for r in rows if (r["row"], r["column"]) == ("maml", "5w1s")]
    assert values == ["98.7", "98.4"]


def test_an_unknown_format_names_the_near_one(full):
    with pytest.raises(UnknownName, match="near: markdown"):
        grids.table(full[0], "markdwn")


def test_html_links_every_number_of_ours(holed):
    results, _ = holed
    text = renderers.html(grids.main_grid(results), lambda at: f"#{at[0]}-{at[1]}")
    assert text.count("<a href=") == 12 + 2
    floor = text[text.index("Pixel nearest neighbour") :]
    assert '<a href="#maml-5w1s">' in floor and '<a href="#maml-5w5s">' in floor
    assert "<script>" not in text
    assert "<a " not in grids.table(results, "html")


def test_names_that_are_code_somewhere_stay_names(helpers):
    """&, _, %, <script>, |, and a bracket first in a row."""
    wild = "A&B_c 50% <script>alert(1)</script> | *x* `y` \\cmd{z} $1$ ~ ^ #"
    rows = [
        {"id": "maml", "method": "bilevel", "label": wild},
        {"id": "reptile", "method": "fixed", "label": "*[x] --budget"},
    ]
    suite = helpers.make_suite(rows=rows, title=wild, floor_label=wild, paper=[], paper_rows=[])
    results = collect(suite, "smoke", helpers.fill(suite, "smoke"), why_not=helpers.allowed)
    html = grids.table(results, "html")
    assert "<script>" not in html
    assert "A&amp;B_c 50% &lt;script&gt;" in html
    markdown = grids.table(results, "markdown")
    assert "<script>" not in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    latex = grids.table(results, "latex")
    assert r"A\&B\_c 50\% \textless{}script\textgreater{}" in latex
    assert wild in grids.table(results, "text")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(holed, helpers, tmp_path):
    wild = "A&B_c 50% <script> | *x* `y` \\cmd{z} $1$ ~ ^ # -- ± × — \"q\" 'r' [s]"
    rows = [
        {"id": "maml", "method": "bilevel", "label": wild},
        {"id": "reptile", "method": "fixed", "label": "*[x]"},
    ]
    suite = helpers.make_suite(rows=rows, title=wild, paper=[], paper_rows=[])
    results = collect(suite, "smoke", helpers.fill(suite, "smoke"), why_not=helpers.allowed)
    parts = [
        make(r, "latex") for r in (holed[0], results) for make in (grids.table, grids.cost_table)
    ]
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage[T1]{fontenc}"
        "\\usepackage{textcomp}\\begin{document}\n" + "\n".join(parts) + "\\end{document}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "multiply defined" not in done.stdout


def test_rows_and_columns_with_other_budgets_are_told_together(helpers):
    suite = helpers.make_suite(paper=[], paper_rows=[])
    five = replace(
        suite.columns[1], budgets={"smoke": {"budget": {"outer_steps": 3, "eval_every": 1}}}
    )
    rows = [
        replace(row, set={**row.set, "budget": {"outer_steps": 0}})
        if row.id in {"fixed", "reptile"}
        else row
        for row in suite.rows
    ]
    suite = replace(suite, columns=[suite.columns[0], five], rows=rows)
    found = collect(suite, "smoke", helpers.Fake(), why_not=helpers.allowed)
    note = next(n.text for n in budget_footnotes(found) if n.text.startswith("Other"))
    assert note == (
        "Other budgets: MAML, MAML, first order, ANIL and Bilevel representation in 5-way 5-shot: "
        "outer_steps = 3; all rows in 5-way 5-shot: eval_every = 1; "
        "Reptile and No outer learning: outer_steps = 0."
    )


def test_rows_whose_budget_ends_inside_the_first_step_are_named(suite, helpers):
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        store.add(place, notes={CUT_STEP: {"anil": 1, "maml": 7}.get(place.row, 0)})
    text = grids.table(collect(suite, "laptop", store))
    assert text.count("The budget ends inside the first outer step: as they start (ANIL).") == 1


def test_rows_whose_budget_is_used_up_before_the_first_step_are_named_too(suite, helpers):
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        store.add(place, **({"steps": 0} if place.row in ("anil", "fixed") else {}))
    text = grids.table(collect(suite, "laptop", store))
    assert text.count("The budget ends inside the first outer step: as they start (ANIL).") == 1


def test_reconstructions_are_marked_below_every_table(suite, helpers):
    store = helpers.Fake()
    for place in suite.cells("laptop"):
        said = {"reconstruction": "its recurrence was not found."} if place.row == "anil" else {}
        store.add(place, notes=said)
    results = collect(suite, "laptop", store)
    for text in (grids.table(results), grids.cost_table(results)):
        assert text.count("Reconstructed in part (ANIL): its recurrence was not found.") == 1
