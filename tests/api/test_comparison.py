"""``compare``: what a side can be, from Python and typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import metabench
from metabench import api
from metabench.cli.main import app
from metabench.core.errors import MetabenchError, SettingError, StoreError, UnknownName
from metabench.store.published import RECORDS, publish
from metabench.store.store import Store

SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def suite():
    return api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel", "fixed"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, suite) -> Store:
    kept = Store(tmp_path_factory.mktemp("store"))
    api.run(suite, budget="smoke", seeds=SEEDS, store=kept)
    api.run(suite, budget="smoke", seeds=SEEDS, store=kept, set=["budget.outer_steps=2"])
    return kept


def test_a_store_and_its_published_records_are_identical(store: Store, tmp_path: Path) -> None:
    file = publish(store.records(), store, tmp_path / RECORDS)
    for source in (file, str(file), tmp_path, store, store.root):
        assert metabench.compare(store.root, source).identical


def test_a_suite_under_two_settings_differs_in_them(store: Store, suite) -> None:
    fewer = Store(store.root)
    cells = {r.key for r in store.records() if r.cell.budget["outer_steps"] == 2}
    found = api.compare(suite, store, budget="smoke", seeds=SEEDS, store=fewer).found
    assert [line.label for line in found.lines] == ["bilevel/quadratic", "fixed/quadratic"]
    assert all(line.all_identical for line in found.lines)  # equal cells go before others
    assert {o.side for o in found.only} == {"B"} and len(cells) == 6


def test_two_runs_are_a_pair_whatever_they_are(store: Store) -> None:
    first, *_, last = sorted(store.records(), key=lambda r: r.cell.method)
    found = api.compare(first.key[:12], last.key[:12], store=store)
    (line,) = found.found.lines
    assert line.label == "bilevel on quadratic | fixed on quadratic"
    one, two = (r.metrics["test"]["loss"].mean for r in (first, last))
    assert line.pair is not None and line.pair.gain == two - one
    assert ("method", "bilevel", "fixed") in {(d.what, d.a, d.b) for d in found.found.settings}
    assert "<table" in found._repr_html_() and repr(found) == found.text()


def test_what_is_no_side_is_named_with_the_near_one(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="near: quickstart"):
        api.compare("quickstrat", store)
    with pytest.raises(UnknownName, match="one run whose key begins with 'ffffff'"):
        api.compare("ffffff", store, store=store)
    with pytest.raises(MetabenchError, match="no finished run there"):
        api.compare(store, tmp_path)
    with pytest.raises(MetabenchError, match=r"quickstart \(budget smoke\): no finished run in /"):
        api.compare("quickstart@smoke", store, store=store)
    with pytest.raises(SettingError, match="write EVALUATION/METRIC"):
        api.compare(store, store, metric="loss")
    with pytest.raises(UnknownName, match="near: test/loss"):
        api.compare(store, store, metric="test/los")
    assert api.compare(store, store, metric="valid/loss").found.lines[0].view.evaluation == "valid"


def test_typed(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "new" / "difference.csv"
    typed = ["compare", str(store.root), str(store.root)]
    assert "Identical: in all 12 cells" in CliRunner().invoke(app, typed).output
    done = CliRunner().invoke(app, [*typed, "--output", str(out)])
    assert done.exit_code == 0 and out.read_text().startswith("kind,label,")
    assert CliRunner().invoke(app, ["compare", "quickstrat", "x"]).exit_code == 2
    assert CliRunner().invoke(app, [*typed, "--format", "latex"]).exit_code == 2


def test_what_ships_with_an_arena_is_not_compared() -> None:
    shipped = Path(__file__).parents[2] / "results" / "arena-1" / "laptop"
    with pytest.raises(StoreError, match="scores of arena 'arena-1' and no whole records"):
        metabench.compare(str(shipped), str(shipped))
