import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from metabench.core.cell import make_cell
from metabench.core.errors import StoreError
from metabench.store import files, prices
from metabench.store.merge import merge
from metabench.store.prices import Prices
from metabench.store.store import Store

HALF = {"inner_gradients": 1.0, "outer_gradients": 2.0, "hvps": 0.5}


def priced(task="ridge", of=HALF, **settings):
    return Prices(task, settings, of, 1e-4, "a processor", 1, "2.9")


def test_equivalents_are_counts_times_prices():
    counts = {
        "inner_gradients": 10,
        "outer_gradients": 3,
        "hvps": 4,
        "trainings": 7,
        "seconds": 9.0,
    }
    assert priced().equivalents(counts) == 18.0
    assert priced().equivalents({}) == 0.0


def test_a_count_without_a_price_has_no_equivalents_unless_it_is_zero():
    assert priced().equivalents({"mixed_products": 1, "hvps": 2}) is None
    assert priced().equivalents({"mixed_products": 0, "hvps": 2}) == 1.0


def test_a_file_is_read_as_it_was_written_and_grows(tmp_path):
    path = tmp_path / prices.FILE
    assert prices.read(path) == {}
    prices.keep(path, [priced(rows=3), priced(rows=4)])
    newer = priced(rows=3, of={"inner_gradients": 1.0})
    prices.keep(path, [newer])
    found = prices.read(path)
    assert len(found) == 2
    assert found[newer.key] == newer


def test_several_at_once_lose_nothing(tmp_path, monkeypatch):
    path, read = tmp_path / prices.FILE, prices.read

    def slowly(path):
        found = read(path)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(prices, "read", slowly)
    with ThreadPoolExecutor(4) as pool:
        of = [priced(rows=n) for n in range(4)]
        assert [*pool.map(lambda p: prices.keep(path, [p]), of)] == [None] * 4
    assert read(path) == {p.key: p for p in of}


def test_what_a_killed_process_left_is_no_problem_and_tidied_up(tmp_path):
    store = Store(tmp_path)
    prices.keep(tmp_path / prices.FILE, [priced()])
    left = files.draft(tmp_path / prices.FILE, b"{")
    others = [tmp_path / name for name in (".prices.json.tmp", ".mine.json.0af.tmp")]
    for path in others:
        path.write_text("mine")
    folder = tmp_path / ".prices.json.0af.tmp"
    folder.mkdir()
    foreign = sorted([*others, folder])
    assert [b.path for b in store.problems()] == foreign
    assert [b.path for b in store.repair()] == foreign
    assert not left.exists() and all(path.exists() for path in foreign)
    assert store.prices() == {priced().key: priced()}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"task": "ridge"}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / prices.FILE
    path.write_text(text)
    with pytest.raises(StoreError, match="holds no prices"):
        prices.read(path)
    with pytest.raises(StoreError, match="holds no prices"):
        prices.keep(path, [priced()])
    assert path.read_text() == text  # what is there is for its owner to delete


def test_the_problem_of_a_cell_is_its_task_with_all_settings(tmp_path):
    cell = make_cell("ridge", "fixed", set={"budget": {"outer_steps": 1}})
    mine = priced(**cell.task_settings)
    assert prices.of_cell({mine.key: mine}, cell) == mine
    other = make_cell("ridge", "fixed", set={"budget": {"outer_steps": 1}, "task": {"rows": 31}})
    assert prices.of_cell({mine.key: mine}, other) is None


def test_a_store_has_them_beside_its_cells_and_merges_what_it_lacks(tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    prices.keep(one.root / prices.FILE, [priced(rows=3), priced(rows=4)])
    mine = priced(rows=3, of={"inner_gradients": 1.0})
    prices.keep(two.root / prices.FILE, [mine])
    assert one.problems() == []
    merge([one], two, dry_run=True)
    assert len(two.prices()) == 1
    merge([one], two)
    assert two.prices() == {**one.prices(), mine.key: mine}
    assert json.loads((two.root / prices.FILE).read_text())
