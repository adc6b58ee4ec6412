"""Derived arrays: kept by what they come from, computed anew where damaged, safe at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from metabench.tasks.data import derived

WHOLE = {"a": np.arange(6).reshape(2, 3), "b": np.array(2.5)}


class Builder:
    """What :func:`derived.kept` calls, counted."""

    calls = 0

    def __call__(self):
        self.calls += 1
        return dict(WHOLE)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    return tmp_path / "derived"


def same(found):
    assert list(found) == list(WHOLE)
    for name, value in WHOLE.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value)


def test_built_once_for_each_origin(cache):
    build = Builder()
    for _ in range(3):
        same(derived.kept("table", {"n": 1}, build))
    assert build.calls == 1
    derived.kept("table", {"n": 2}, build)
    derived.kept("other", {"n": 1}, build)
    assert build.calls == 3 and len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "other numbers", "nonsense", "no checksum", "empty"])
def test_what_is_damaged_is_computed_anew(cache, damage):
    build = Builder()
    derived.kept("table", {"n": 1}, build)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "other numbers":
        at = whole.index(np.arange(6).tobytes())
        path.write_bytes(whole[:at] + b"\x07" + whole[at + 1 :])
    elif damage == "no checksum":
        path.write_bytes(derived.npz(WHOLE))
    else:
        path.write_bytes({"cut": whole[:-100], "nonsense": b"no table", "empty": b""}[damage])
    same(derived.kept("table", {"n": 1}, build))
    assert build.calls == 2 and path.read_bytes() == whole
    same(derived.kept("table", {"n": 1}, build))
    assert build.calls == 2


def test_several_at_once_leave_one_whole_file(cache):
    build = Builder()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: derived.kept("table", {"n": 1}, build), range(24)):
            same(found)
    assert len(list(cache.iterdir())) == 1
    before = build.calls
    same(derived.kept("table", {"n": 1}, build))
    assert build.calls == before


def test_without_a_place_to_write_nothing_is_kept(cache):
    cache.write_text("a file where the folder should be")
    build = Builder()
    for _ in range(2):
        same(derived.kept("table", {"n": 1}, build))
    assert build.calls == 2 and os.path.isfile(cache)
