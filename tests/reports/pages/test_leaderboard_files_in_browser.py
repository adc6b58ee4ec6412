"""The leaderboard page in a real browser: files that are dropped onto it."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import arenas_by_formula as arenas
import pytest
from browsers import Browser
from leaderboards import (
    MINE,
    A,
    Arena,
    drop,
    expected,
    lines_of,
    pick,
    rows,
    rows_of,
    told,
    unranked,
)
from optional import needs

from metabench.store import published

needs("vl_convert")

pytestmark = pytest.mark.browser


def test_somebodys_own_method_stands_among_the_others(shown: Browser, mine: Arena) -> None:
    (said, *_) = drop(shown, mine.records())
    assert "records.jsonl.gz: now in the tables and charts: pbgd on 4 problems." in said
    assert "on this page already, with the same scores" in said
    methods = {**MINE, "mine": ("pbgd", "pbgd")}
    assert told(shown) == expected(mine.lines(A), methods)
    assert shown.one("#standings .badge").text == "yours"
    pick(shown, "ruleset", "shipped")
    assert told(shown) == expected(mine.lines(A, False), methods)
    assert len(shown.all("#standings tr.yours")) == 1
    shown.press(shown.one('#by-problem tr.yours button[aria-label^="pbgd on Quadratic, 2"]'))
    assert len(rows_of(shown, ".runs")) == 3 and len(rows_of(shown, ".trials")) == 3
    shown.press(shown.all("#panel .runs button")[0])
    shown.wait(lambda: shown.all("#record-chart svg"), "drawn")
    shown.press(shown.one("#panel .close"))
    shown.press(shown.one("#standings tr.yours .close"))
    assert not shown.all("#standings tr.yours") and len(rows(shown)) == 3


def test_a_file_is_chosen_instead_and_may_be_unpacked(shown: Browser, mine: Arena) -> None:
    plain = mine.folder / "plain.jsonl"
    plain.write_bytes(gzip.decompress(mine.records().read_bytes()))
    shown.one("#file").send_keys(str(plain))
    shown.wait(lambda: shown.all("#messages .good"), "taken in")
    assert len(shown.all("#standings tr.yours")) == 1


def test_a_file_that_is_none_is_refused_with_the_reason(
    shown: Browser, mine: Arena, tmp_path: Path
) -> None:
    whole = mine.records().read_bytes()
    lines = lines_of(mine.records())
    record = json.loads(lines[0])
    files = {
        "empty.jsonl.gz": (b"", "there is nothing in it"),
        "notes.txt": (b"what I did today\n", "its first line is not JSON. Wanted is a file that"),
        "table.json": (b'{"a": 1}\n', "line 1 is not a record"),
        "list.json": (b"[1, 2]\n", "line 1 is not a record"),
        "scores.jsonl.gz": (
            mine.scores(tmp_path / "smoke").read_bytes(),
            "it has what an arena ships, the scores and no whole records",
        ),
        "photo.png": (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "line 1 is no text"),
        "text.gz": (gzip.compress(b"no records\n"), "its first line is not JSON"),
        "broken.gz": (whole[:60], "line 1 the file is damaged or cut off from here on"),
        "older.jsonl": (
            json.dumps({**record, "cell": {**record["cell"], "contract": 0}}).encode(),
            "is of contract 0, and this page has contract 1",
        ),
        "newer.jsonl": (json.dumps({**record, "schema": 2}).encode(), "of schema 2, and this page"),
        "changed.jsonl": (
            lines[0].replace(b'"attempts":1', b'"attempts":2'),
            "is not what was published: its sha256 differs",
        ),
        "odd.jsonl": (json.dumps({**record, "cost": {"x": "1"}}).encode(), "costs that are not"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    said = drop(shown, *(tmp_path / name for name in files))
    for (name, (_, reason)), text in zip(files.items(), said[::-1], strict=True):
        assert text.startswith(f"{name}: ") and reason in text
    assert len(shown.all("#messages .bad")) == len(files) and len(rows(shown)) == 3


def test_what_of_a_file_can_be_read_is_taken(shown: Browser, mine: Arena, tmp_path: Path) -> None:
    lines = lines_of(mine.records())
    path = tmp_path / "part.jsonl"
    path.write_bytes(b"".join([*lines[:3], b"half a li\n", lines[3], *lines[3:]]))
    (said, *_) = drop(shown, path)
    assert "pbgd on 4 problems" in said
    assert (
        "1 line left out: line 4: is not JSON" in said and "1 record left out: there twice" in said
    )


def test_records_of_other_problems_and_of_other_versions_are_told(
    shown: Browser, mine: Arena, tmp_path: Path
) -> None:
    other = Arena(tmp_path, "other", methods={"mine": MINE["mine"]}, caps={"dim2": 90.0})
    text = other.file.read_text().replace("features = 6", "features = 8")
    other.file.write_text(text.replace("seeds = [0, 1, 2]", "seeds = [0, 1, 7]"))
    other.plan = arenas.play(other.file, other.store)
    kept = {p.record.key: p.record for p in (*other.plan.trials, *other.plan.finals) if p.record}
    foreign = [
        replace(
            r, key=(c := replace(r.cell, task="sinusoid", task_settings={})).key, cell=c, files={}
        )
        for r in list(kept.values())[:2]
    ]
    for record in foreign:
        other.store.write(record)
    path = published.publish([*kept.values(), *foreign], other.store, tmp_path / "other.jsonl.gz")
    (said, *_) = drop(shown, path)
    assert "of task sinusoid, which is no problem of this arena" in said
    assert "of problem Quadratic, 2 in another version of the arena: cost 90 (here 60)" in said
    assert "nearest Ridge, 6, with features 8 (here 6)" in said
    assert "of seed 7, which plays in no trial and no final of budget smoke" in said
    assert "pbgd on 2 problems" in said and "2 of 3 seeds have played" in said
    assert shown.one("#unranked summary").text.startswith("Not ranked: 2 methods")
    assert "other.jsonl.gz has no finals of it (2 of 3 problems)1 method: pbgd" in unranked(shown)
    assert [r[0] for r in rows(shown)][-1] == "\u2013"


def test_more_trials_than_the_others_had_are_told(
    shown: Browser, mine: Arena, tmp_path: Path
) -> None:
    other = Arena(tmp_path, "more", methods={"mine": MINE["mine"]})
    other.file.write_text(other.file.read_text().replace("trials = 3", "trials = 5"))
    other.plan = arenas.play(other.file, other.store)
    (said, *_) = drop(shown, other.records())
    where = "pbgd on Quadratic, 2, Quadratic, 5, Ridge, 6, Two minima"
    assert f"{where}: tuned with 5 trials, and the others with 3: no comparison" in said
    assert len(shown.all("#standings tr.yours")) == 1


def test_finals_without_trials_stand_as_they_are(shown: Browser, mine: Arena, tmp_path) -> None:
    plan = mine.plan
    shipped = [p.record for p in plan.finals if p.row == "mine as shipped" and p.record]
    both = [p.record for p in plan.finals if p.row.startswith("mine") and p.record]
    one = published.publish(shipped, mine.store, tmp_path / "shipped.jsonl.gz")
    two = published.publish(both, mine.store, tmp_path / "both.jsonl.gz")
    (of_two, of_one, *_) = drop(shown, one, two)
    assert "no trials in the file, so its settings stand as tuned and as shipped" in of_one
    assert "finals of 2 settings and no trials, so nothing says which is the tuned one" in of_two
    assert len(shown.all("#standings tr.yours")) == 1
    (said, *_) = drop(shown, one)  # the same file again takes the place of the first
    assert "pbgd on 4 problems" in said and len(shown.all("#standings tr.yours")) == 1
