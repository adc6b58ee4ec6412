import subprocess
import sys

import pytest

from metabench.analysis.paper_claims import verdicts
from metabench.analysis.results import collect, read_curves
from metabench.core.environment import optional_packages
from metabench.core.errors import StoreError, UnknownName
from metabench.core.registry import tasks
from metabench.reports.tables.grids import table
from metabench.suites import planning
from metabench.suites.overrides import parse_override


def test_an_empty_store_is_all_open(suite, helpers):
    results = collect(suite, "laptop", helpers.Fake(), why_not=helpers.allowed)
    assert results.states == {"open": 36}
    assert results.records == []
    assert list(results.frame.columns)[:4] == ["suite", "budget", "row", "column"]
    assert len(results.frame) == 0


def test_every_hole_has_its_state_and_reason(holed):
    results, _ = holed
    assert results.states == {
        "done": 26,
        "failed": 1,
        "diverged": 2,
        "timeout": 1,
        "open": 3,
        "not applicable": 3,
    }
    crossing = results.table_cells["reptile", "5w5s"]
    assert crossing.states == {"diverged": 2, "timeout": 1}
    assert crossing.holes("test", "accuracy") == [
        ("timeout", "60 s are used up at outer step 400", (0,)),
        ("diverged", "loss on episode 3 of 'valid' is nan", (1, 2)),
    ]
    assert results.bad_files == (
        "ab/cdef/record.json: cannot be read as a record: not a record <b>",
    )


def test_how_a_run_ended_is_told_where_its_data_are_gone(suite, holed, helpers, monkeypatch):
    _, store = holed
    before = collect(suite, "laptop", store, why_not=helpers.allowed)
    monkeypatch.setattr(planning, "_missing_data", lambda said: ("data set 'x' not found", "get x"))
    after = collect(suite, "laptop", store, why_not=helpers.allowed)
    never = before.states["open"] + before.states["failed"]
    assert after.states == {"done": 29, "diverged": 2, "timeout": 1, "missing data": never}
    crossing = (r.table_cells["reptile", "5w5s"].holes("test", "accuracy") for r in (before, after))
    assert len({*map(tuple, crossing)}) == 1


def test_a_reason_with_other_numbers_is_said_once(suite, helpers):
    """Seeds diverge at steps of their own, for one and the same reason."""
    store = helpers.fill(suite, "laptop")
    places = [p for p in suite.cells("laptop") if (p.row, p.column) == ("maml", "5w1s")]
    said = {0: (225, "61.3"), 2: (613, "nan")}
    for place in places:
        if place.cell.seed in said:
            step, size = said[place.cell.seed]
            reason = f"the series grows: term 20 at outer step {step} is {size} times the first"
            store.add(place, **{**helpers.failure("diverged"), "reason": reason})
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    crossing = results.table_cells["maml", "5w1s"]
    told = "the series grows: term 20 at outer step 225 / 613 is 61.3 / nan times the first"
    assert crossing.holes("test", "accuracy") == [("diverged", told, (0, 2))]
    text = table(results, "text")
    assert f"] Diverged (seeds 0 and 2): {told}.\n" in text
    assert text.count("Diverged (") == 1


def test_two_budgets_cannot_mix(suite, helpers):
    """Records of one budget are never seen under another, whatever the store holds."""
    store = helpers.fill(suite, "laptop", helpers.fill(suite, "smoke"))
    keys = {}
    for budget in suite.budgets:
        results = collect(suite, budget, store, why_not=helpers.allowed)
        steps = {r.cell.budget["outer_steps"] for r in results.records}
        allowed = {suite.budgets[budget].limits["outer_steps"], 0}
        assert steps <= allowed
        keys[budget] = {r.key for r in results.records}
    assert len(keys["smoke"]) == 12
    assert len(keys["laptop"]) == 36
    assert not keys["paper"]
    assert not keys["smoke"] & keys["laptop"]


def test_an_unknown_budget_names_the_near_one(suite, helpers):
    with pytest.raises(UnknownName, match="near: laptop"):
        collect(suite, "labtop", helpers.Fake())


def test_overrides_and_seeds_choose_other_cells(suite, helpers):
    store = helpers.fill(suite, "laptop")
    override = parse_override("method.inner_lr=0.05")
    assert collect(
        suite, "laptop", store, overrides=[override], why_not=helpers.allowed
    ).states == {"open": 36}
    few = collect(suite, "laptop", store, seeds=[0, 7], why_not=helpers.allowed)
    assert few.states == {"done": 12, "open": 12}


def test_what_is_missing_here_explains_holes_and_never_hides_a_record(suite, helpers, monkeypatch):
    monkeypatch.setattr(optional_packages, "here", lambda name: name != "nobody_has")
    monkeypatch.setattr(tasks.get("ridge"), "packages", ("nobody_has",), raising=False)
    store = helpers.Fake()
    places = suite.cells("smoke")
    store.add(places[0])
    store.add(places[1], **helpers.failure("failed"))
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    assert results.states == {"done": 1, "missing package": 11}
    assert results.runs[1].why == "nobody_has is not installed; pip install nobody_has"
    assert results.runs[1].record.status == "failed"


def test_what_the_theory_forbids_is_asked_of_the_declarations(suite, helpers):
    """MAML learns an initialisation, which ridge does not have; no such record can exist."""
    suite = helpers.make_suite(rows=[{"id": "maml", "method": "maml"}], paper=[], paper_rows=[])
    results = collect(suite, "smoke", helpers.Fake())
    assert results.states == {"not applicable": 2}
    assert all("initial value of theta" in run.reason for run in results.runs)


def test_a_skipped_crossing_keeps_the_suites_reason(suite, helpers):
    rows = [
        {"id": "maml", "method": "bilevel", "skip": ["5w5s"], "skip_reason": "too dear"},
        {"id": "reptile", "method": "fixed"},
    ]
    suite = helpers.make_suite(rows=rows, paper=[], paper_rows=[])
    results = collect(suite, "smoke", helpers.Fake(), why_not=helpers.allowed)
    assert [r.reason for r in results.table_cells["maml", "5w5s"].runs] == ["too dear"]
    assert results.states == {"open": 3, "skipped": 1}


def test_the_frame_has_a_row_a_record(holed):
    results, _ = holed
    frame = results.frame
    assert len(frame) == len(results.records) == 30
    assert set(frame["budget"]) == {"laptop"}
    line = frame[(frame["row"] == "maml") & (frame["column"] == "5w1s") & (frame["seed"] == 1)]
    record = results.table_cells["maml", "5w1s"].done[1]
    assert line["test/accuracy"].item() == record.metrics["test"]["accuracy"].mean
    assert line["test/accuracy.n"].item() == 600
    assert line["cost/inner_gradients"].item() == 5000
    assert line["key"].item() == record.key
    failed = frame[frame["status"] == "failed"]
    assert failed["test/accuracy"].isna().all()


def test_a_record_without_the_metric_is_a_hole(suite, helpers):
    suite = helpers.make_suite(metric="f1", paper=[], paper_rows=[])
    store = helpers.fill(suite, "smoke")
    results = collect(suite, "smoke", store, why_not=helpers.allowed)
    (hole,) = results.table_cells["maml", "5w1s"].holes("test", "f1")
    assert hole == (
        "done without the metric",
        "no 'f1' in 'test'; it has accuracy, nearest_neighbour",
        (0,),
    )


def test_a_curve_that_cannot_be_read_is_reported_and_not_fatal(suite, helpers):
    class Torn(helpers.Fake):
        def curve(self, record):
            if record.cell.seed == 1:
                raise StoreError("curve.json.gz is not the file that its record names")
            return super().curve(record)

    store = helpers.fill(suite, "laptop", Torn())
    results = collect(suite, "laptop", store, why_not=helpers.allowed)
    curves, problems = read_curves(results, store)
    assert len(curves) == 24
    assert len(problems) == 12


def test_nothing_here_imports_torch_pandas_or_matplotlib():
    code = (
        "import importlib, pkgutil, sys\n"
        "from metabench import analysis, reports\n"
        "for room in (analysis, reports):\n"
        "    for found in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "assert 'metabench.reports.figures.plots' in sys.modules\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'jinja2', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_that_a_budget_makes_one_are_shown_and_tested_once(helpers):
    rows = [
        {"id": "a", "label": "A", "method": "bilevel"},
        {"id": "b", "label": "B", "method": "bilevel"},
        {
            "id": "c",
            "label": "C",
            "method": "bilevel",
            "budgets": {"laptop": {"method": {"inner_steps": 7}}},
        },
    ]
    claims = [{"better": ["c"], "than": "b", "source": "A 2020"}]
    suite = helpers.make_suite(rows=rows, paper=[], paper_rows=[], claims=claims)
    found = collect(suite, "laptop", helpers.fill(suite, "laptop"), why_not=helpers.allowed)
    assert found.same == {"b": "a"}
    assert [row.id for row in found.rows] == ["a", "c"]
    text = table(found)
    assert "Rows with the same runs at this budget are one: A stands for B." in text
    assert "\n| B " not in text
    assert {t.seeds for t in verdicts(found)} == {3}  # the claim about b is tested on a's runs
    smoke = collect(suite, "smoke", helpers.fill(suite, "smoke"), why_not=helpers.allowed)
    assert smoke.same == {"b": "a", "c": "a"}
