"""What an arena ships: there and back, small, refused where it is damaged or of another arena."""

from __future__ import annotations

import gzip
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import arenas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench.core.cell import Cell
from metabench.core.errors import StoreError
from metabench.store import lines
from metabench.store.published import Published, publish, render
from metabench.store.record import RETRAINED, STATUSES, Curve, Estimate, Record, ScoresOnly
from metabench.store.store import Store
from metabench.suites.arena import scores as arena_scores
from metabench.suites.arena.definition import Arena, Chosen
from metabench.suites.arena.publishing import LEFT_OUT, write
from metabench.suites.arena.scores import CLOCKS, FILE, ArenaScores, cells_of

SMALL = arenas.arena(["one", "two"], ["a", "b", "c"], alone=["c"], seeds=2, anew=["two"])
"""Four trials on two seeds; "c" has one trial."""
TINY = arenas.arena(["one"], ["a", "c"], alone=["c"], trials=2, seeds=2, anew=["one"])
"""Twelve cells."""
numbers = st.floats(-1e300, 1e300)  # seconds are rounded, and the largest float would overflow
counts = st.integers(0, 2**40)
sentences = st.text("ab é\"'\n:.,", max_size=12)
ENVIRONMENTS = (
    {"device": "cpu", "machine": {"cores": 2}, "git": {"commit": "abc", "dirty": False}},
    {"device": "cuda", "machine": {"cores": 8}, "versions": {"torch": "2.15.0"}},
    {},
)
DATES = ("2026-01-02T03:04:05+00:00", "2026-03-02T03:04:05+00:00")
NOISE = {"warm_up_seconds": 0.1, "memory_at_start_bytes": 5, "resumed": []}


@st.composite
def runs(draw: st.DrawFn, cell: Cell, values: list[float]) -> tuple[Record, Curve]:
    """A record as a run leaves it, with more than is kept."""
    few, looks = st.sampled_from(values), draw(st.integers(0, 2))
    splits = draw(st.sets(st.sampled_from(["test", "valid", "test" + RETRAINED])))
    metrics = {
        split: {"loss": Estimate(draw(few), draw(st.integers(1, 3)), 0.5), "x": Estimate(1.0, 1)}
        for split in sorted(splits)
    }
    environment = draw(st.sampled_from(ENVIRONMENTS))
    if "machine" in environment:
        environment = {**environment, "machine": {**environment["machine"], "affinity": [1]}}
    record = Record(
        cell.key, cell, draw(st.sampled_from(STATUSES)), draw(sentences), metrics=metrics,
        cost=draw(st.dictionaries(st.sampled_from(["hvps", "trainings", *CLOCKS]), few)),
        selected_step=draw(st.none() | counts), steps=draw(counts), notes={"a": 1}, traceback="one",
        environment={**environment, **NOISE}, ended=draw(st.sampled_from(["", *DATES])),
    )  # fmt: skip
    names = ("step", "cost/hvps", "cost/seconds", "valid/loss", "x")
    kept = [name for name in names if draw(st.booleans())] if looks else []
    column = st.lists(few | st.none(), min_size=looks, max_size=looks)
    return record, {name: draw(column) for name in kept}


@st.composite
def played(draw: st.DrawFn) -> tuple[Chosen, dict[str, Record], dict[str, Curve]]:
    """Some of the tiny arena's cells."""
    chosen: dict[tuple[str, str], int] = {}
    records: dict[str, Record] = {}
    curves: dict[str, Curve] = {}
    values = draw(st.lists(numbers, min_size=1, max_size=4))
    for method, problem in TINY.pairs("smoke"):
        number = draw(st.none() | st.integers(0, 1 if method.space else 0))
        if number is not None:
            chosen[method.id, problem.id] = number
        trials, finals = cells_of(TINY, "smoke", method, problem, number)
        for cell in trials + finals:
            if draw(st.booleans()):
                records[cell.key], curves[cell.key] = draw(runs(cell, values))
    return chosen, records, curves


def expected(record: Record, final: bool) -> Record:
    """What is kept of a record."""
    readouts = ("test", "valid", "test" + RETRAINED) if final else ("test", "valid")
    made = {k: v for k, v in record.environment.items() if k not in NOISE}
    if "machine" in made:
        made["machine"] = {k: v for k, v in made["machine"].items() if k != "affinity"}
    return ScoresOnly(
        record.key, record.cell, record.status, record.reason,
        metrics={
            split: {"loss": Estimate(record.metrics[split]["loss"].mean, of["loss"].n)}
            for split, of in record.metrics.items() if split in readouts
        },
        selected_step=record.selected_step, steps=record.steps,
        cost={k: float(f"{v:.3g}") if k in CLOCKS else v for k, v in record.cost.items()},
        environment=made,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(played())
def test_there_and_back(some: tuple[Chosen, dict[str, Record], dict[str, Curve]]) -> None:
    chosen, records, curves = some
    finals = {
        cell.key
        for m, p in TINY.pairs("smoke")
        for cell in cells_of(TINY, "smoke", m, p, chosen.get((m.id, p.id)))[1]
    }
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name, FILE), TINY, "smoke", chosen, records, lambda r: curves[r.key])
        found = ArenaScores(path, TINY, "smoke")
        again = write(Path(name, "b"), TINY, "smoke", chosen, records, lambda r: curves[r.key])
        assert again.read_bytes() == path.read_bytes()
    assert found.problems() == [] and found.outdated() == []
    assert {r.key: r for r in found.records()} == {
        key: expected(record, key in finals) for key, record in records.items()
    }
    for key, record in records.items():
        kept = {n: c for n, c in curves[key].items() if n not in ("x", "cost/seconds")}
        assert found.curve(record) == (kept if key in finals else {})
        assert found.get(key) is not record
    assert sum(made.cells for made in found.head.made) == len(records)
    days = {r.ended[:10] for r in records.values()} - {""}
    assert {d for made in found.head.made for d in (made.first, made.last)} - {""} <= days
    assert found.head.left_out == LEFT_OUT


@settings(deadline=None, max_examples=60)
@given(played(), st.data())
def test_what_is_there_stays_but_for_lines_that_are_run_anew(
    some: tuple[Chosen, dict[str, Record], dict[str, Curve]], data: st.DataObject
) -> None:
    chosen, records, curves = some
    with tempfile.TemporaryDirectory() as folder:
        path, then = Path(folder, "1"), Path(folder, "2")
        write(path, TINY, "smoke", chosen, records, lambda r: curves[r.key])
        was = ArenaScores(path, TINY, "smoke")
        write(then, TINY, "smoke", chosen, {}, lambda r: {}, was)
        assert gzip.decompress(then.read_bytes()) == gzip.decompress(path.read_bytes())
        method, problem = data.draw(st.sampled_from([*TINY.pairs("smoke")]))
        cells = cells_of(TINY, "smoke", method, problem, chosen.get((method.id, problem.id)))
        anew = {c.key: data.draw(runs(c, [0.5])) for c in [*cells[0], *cells[1]]}
        if data.draw(st.booleans()):  # one run is lacking: nothing of the line is taken
            anew.pop(cells[0][0].key)
        new = {key: record for key, (record, _) in anew.items()}
        write(then, TINY, "smoke", chosen, new, lambda r: anew[r.key][1], was)
        found = ArenaScores(then, TINY, "smoke")
        whole = len(anew) == len(cells[0] + cells[1])
        there = was.pair(method.id, problem.id) is not None
        for key in {*records, *new}:
            taken = key in new and (whole or not there)
            assert found.get(key) == (
                expected(new[key], key in {c.key for c in cells[1]}) if taken else was.get(key)
            )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return shipped(tmp_path / FILE)


def shipped(path: Path, known: Arena = SMALL) -> Path:
    """The file of an arena that has been played, one of its runs without numbers."""
    of = arenas.played(known, lambda m, p, t, s: None if (m, s) == ("b", 1) else 0.1 * t + 0.01 * s)
    records = {p.cell.key: p.record for p in (*of.trials, *of.finals) if p.record is not None}
    return write(path, known, "smoke", of.chosen, records, of.curve)


def changed(path: Path, number: int, change: Callable[[dict[str, Any]], object]) -> Path:
    """With a line that is changed and sealed again."""
    text = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    data = lines.opened(text[number - 1])
    change(data)
    path.write_bytes(gzip.compress(b"".join([*text[: number - 1], lines.sealed(data),
                                             *text[number:]])))  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["trials"]["status"].append("done"), "trials.status has 9 entries for 8 cells"),
        (lambda p: p["trials"]["scores"]["test"].pop(), "trials.scores.test has 7 entries for 8"),
        (lambda p: p["finals"]["curve"].pop(), "finals.curve has 3 entries for 4 cells"),
        (lambda p: p["finals"]["curve"][1].pop(), "finals.curve.1 has 10 entries"),
        (lambda p: p["trials"].update(status=["fine"] * 8), "status.0: input should be 'done', "),
        (lambda p: p["trials"]["scores"]["test"].__setitem__(3, "x"), "test.3: .* not 'x'"),
        (lambda p: p["trials"]["made"].__setitem__(2, 7), "made.2 is 7, and there are 1"),
        (lambda p: p["trials"]["course"].__setitem__(2, None), "course.2 is None, and there are 1"),
        (lambda p: p["trials"]["course"].__setitem__(2, -1), "trials.course.2: .* not -1"),
        (lambda p: p["trials"]["courses"][0]["episodes"].clear(), "courses is 'test', and there"),
        (lambda p: p.update(chosen=9), "chosen is 9, and there are 4 trials"),
        (lambda p: p.update(more=1), "more: unexpected keyword argument, not 1"),
        (lambda p: p.pop("finals"), "finals: field required"),
    ],
)
def test_a_line_that_cannot_be_trusted_is_told_and_left_out(
    file: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    whole = ArenaScores(file, SMALL, "smoke").records()
    found = ArenaScores(changed(file, 2, change), SMALL, "smoke")
    (bad,) = found.problems()
    assert re.match(f"{file}: line 2: .*{says}", str(bad)), bad
    assert 0 < len(found.records()) < len(whole)


def test_what_happens_to_files_is_told(file: Path) -> None:
    text = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    assert len(text) == 7

    def told(*damaged: bytes) -> str:
        file.write_bytes(gzip.compress(b"".join(damaged)))
        return "; ".join(map(str, ArenaScores(file, SMALL, "smoke").problems()))

    changed_digit = text[2].replace(b'"chosen":3', b'"chosen":2')
    assert changed_digit != text[2]
    assert told(*text) == ""
    assert told(*text[:2], changed_digit, *text[3:]).endswith("line 3: is not what was published: "
                                                              "its sha256 differs")  # fmt: skip
    assert told(*text[:5]) == f"{file}: has 4 lines after the first and says 6"
    assert told(*text, text[1]).endswith("line 8: another line has a on one")
    file.write_bytes(gzip.compress(b"".join(text))[:-9])
    (bad,) = ArenaScores(file, SMALL, "smoke").problems()
    assert "the file is damaged from here on" in str(bad)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda head: head.update(form="x"), "form is 'x', and 'arena scores' can be read"),
        (lambda head: head.update(schema=2), "schema is 2, and 1 can be read"),
        (lambda head: head.update(contract=7), "contract is 7, and 1 can be read"),
        (lambda head: head.update(arena="big"), "arena is 'big', and 'small' is asked for"),
        (lambda head: head.update(budget="x"), "budget is 'x', and 'smoke' is asked for"),
        (lambda head: head["made"][0].update(environment={"machine": 3}), "machine is an int"),
        (lambda head: head.pop("made"), "made: field required"),
    ],
)
def test_without_its_head_a_file_says_nothing(
    file: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    with pytest.raises(StoreError, match=f"{file}: line 1: .*{says}"):
        ArenaScores(changed(file, 1, change), SMALL, "smoke")


def test_what_is_no_such_file(file: Path, tmp_path: Path) -> None:
    assert arena_scores.is_one(file) and not arena_scores.is_one(tmp_path / "none")
    for content, says in ((b"", "nothing in it"), (b"{}", "damaged"), (b"\x1f\x8b", "damaged")):
        file.write_bytes(content)
        assert not arena_scores.is_one(file)
        with pytest.raises(StoreError, match=f"line 1: the file is damaged.*{says}|{says}"):
            ArenaScores(file, SMALL, "smoke")
    with pytest.raises(StoreError, match="No such file"):
        ArenaScores(tmp_path / "none", SMALL, "smoke")


def test_cells_that_are_others_by_now_do_not_count(file: Path) -> None:
    other = replace(SMALL, problems=[replace(SMALL.problems[0], cap=90.0), SMALL.problems[1]])
    found = ArenaScores(file, other, "smoke")
    assert found.problems() == [] and {r.cell.task_settings["dim"] for r in found.records()} == {3}
    assert len(found.outdated()) == 3
    assert found.outdated()[0].startswith(f"{file}: a on one does not count: settings, problem or")
    fewer = ArenaScores(file, replace(SMALL, methods=SMALL.methods[1:]), "smoke")
    assert all("a on " in text and "has no such pair" in text for text in fewer.outdated())
    assert len(fewer.outdated()) == 2 and fewer.records()


def test_scores_never_pass_as_whole_records(file: Path, tmp_path: Path) -> None:
    record = ArenaScores(file, SMALL, "smoke").records()[0]
    store = Store(tmp_path / "runs")
    for refused in (
        lambda: store.write(record),
        lambda: store.write(replace(record, steps=3)),
        lambda: render(record, {}),
        lambda: publish([record], store, tmp_path / "out"),
        lambda: write(tmp_path / "out", SMALL, "smoke", {}, {record.key: record}, store.curve),
    ):
        with pytest.raises(StoreError, match="scores of this run and no whole record"):
            refused()
    with pytest.raises(StoreError, match="scores of arena 'small' and no whole records"):
        Published(file)
    assert store.records() == [] and not (tmp_path / "out").exists()


def test_a_large_arena_stays_small(tmp_path: Path) -> None:
    """With 14,040 trials and 7,020 finals, about as many as arena-1 has; here a part of them, with
    numbers of which no digit can be spared."""
    names = [f"p{i}" for i in range(3)]
    known = arenas.arena(names, ["a", "b"], trials=20, seeds=10, anew=names)
    draw = random.Random(0)
    of = arenas.played(known, lambda *_: draw.random())
    curves = {
        key: {n: [draw.random() for _ in c] if n == "valid/loss" else c for n, c in curve.items()}
        for key, curve in of.curves.items()
    }
    records = {
        p.cell.key: replace(
            p.record, cost={name: draw.random() for name in CLOCKS}, reason="",
            metrics={s: {"loss": Estimate(draw.random(), 1)} for s in p.record.metrics},
        )
        for p in (*of.trials, *of.finals) if p.record is not None
    }  # fmt: skip
    finals = {p.cell.key for p in of.finals}

    def size(keep: bool) -> float:
        kept = {k: r for k, r in records.items() if (k in finals) == keep}
        path = write(
            tmp_path / FILE, known, "smoke", of.chosen, kept, lambda record: curves[record.key]
        )
        return path.stat().st_size / len(kept)

    assert size(False) * 14_040 + size(True) * 7_020 < 2_000_000
