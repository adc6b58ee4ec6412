"""Where data sets are looked for."""

import os
from pathlib import Path

import pytest
from dataset_server import NAMES, put_arrays, put_pictures

from metabench.cluster import profile
from metabench.core.errors import DataMissing, MetabenchError, UnknownName
from metabench.datasets import cache, catalogue, fetch, locate, verify


def test_an_empty_folder_is_no_data_set(toy, tmp_path, monkeypatch):
    """As a copy that broke off leaves it: a plan must say so, not a run."""
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    place = put_pictures(tmp_path)
    assert locate.find("toy") == place
    for path in place.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataMissing, match=r"toy-py \(lacks \*\.png files in inside\)") as caught:
        locate.find("toy")
    assert caught.value.repair.startswith("metabench data fetch toy")


def test_missing_says_where_it_looked_and_what_to_do(toy, tmp_path, monkeypatch):
    roots = [str(tmp_path / "one"), str(tmp_path / "two")]
    monkeypatch.setenv("METABENCH_DATA", os.pathsep.join(roots))
    with pytest.raises(DataMissing) as caught:
        locate.find("toy")
    assert all(root in str(caught.value) for root in [*roots, "cache", "home/library"])
    assert caught.value.repair.startswith("metabench data fetch toy, or set METABENCH_DATA")
    assert caught.value.repair.endswith("the folder that holds toy or toy-py")
    (tmp_path / "two" / "toy").mkdir(parents=True)
    with pytest.raises(DataMissing) as caught:
        locate.locate("toy", "arrays")
    assert f"{tmp_path / 'two' / 'toy'} (lacks x.npz)" in str(caught.value)
    assert "fetch" not in caught.value.repair  # fetching would not bring that layout


def test_unknown_names_get_near_ones(toy):
    with pytest.raises(UnknownName, match="no data set 'omniglt'; near: omniglot"):
        locate.find("omniglt")
    with pytest.raises(UnknownName, match="no layout of toy 'array'; near: arrays"):
        locate.locate("toy", "array")


def test_roots_are_searched_in_order_the_better_layout_first(toy, tmp_path, monkeypatch):
    cache, root, home = tmp_path / "cache", tmp_path / "root", tmp_path / "home" / "library"
    monkeypatch.setenv("METABENCH_DATA", str(root))
    for place in (home, cache, root):
        put_pictures(place)
        assert locate.find("toy") == place / "toy-py"
    assert locate.find("toy") == root / "toy-py"
    assert locate.locate("toy").layout.name == "pictures"
    assert locate.find("toy") != put_arrays(cache).parent / "toy-py"
    assert locate.locate("toy").layout.name == "arrays"


def test_home_is_meant_by_a_tilde_though_no_shell_was_there(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", f"/nowhere{os.pathsep}~/sets")
    monkeypatch.setenv("METABENCH_CACHE", "~/kept")
    home = tmp_path / "home"
    assert locate.roots() == [Path("/nowhere"), home / "sets", home / "kept"]
    assert locate.folders("~no_such_user_here/x") == [Path("~no_such_user_here/x")]


def test_a_folder_that_cannot_be_looked_into_is_passed_over(toy, tmp_path, monkeypatch):
    """Its error would hide the data that lies in the next one."""
    put_arrays(tmp_path / "good")
    too_long = "a" * 300
    monkeypatch.setenv("METABENCH_DATA", os.pathsep.join([too_long, str(tmp_path / "good")]))
    assert locate.find("toy") == tmp_path / "good" / "toy"
    [found] = [s for s in locate.status() if s.dataset.name == "toy"]
    assert found.bytes > 0


def test_a_folder_without_permission_is_told_as_that(toy, tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match=r"toy \(lacks "):
        locate.find("toy")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataMissing, match=r"toy \(permission denied\)"):
        locate.find("toy")


def test_status_tells_what_is_there(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    before = {s.dataset.name: s for s in locate.status()}
    assert set(before) == set(catalogue.DATASETS)
    assert before["toy"].found is None
    assert before["toy"].repair.startswith("metabench data fetch toy")
    put_arrays(tmp_path)
    after = {s.dataset.name: s for s in locate.status()}["toy"]
    assert (after.found.path, after.bytes, after.repair) == (tmp_path / "toy", 3, "")


def test_folders_that_are_links_are_looked_into_and_each_once(toy, tmp_path, monkeypatch):
    """As a shared disk has them: the data set, a class of it, and a way back up."""
    place = put_pictures(tmp_path / "disk")
    (place / "inside" / "b").rename(tmp_path / "disk" / "moved")
    (place / "inside" / "b").symlink_to(tmp_path / "disk" / "moved")
    (place / "inside" / "b" / "up").symlink_to(place)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "toy-py").symlink_to(place)
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "links"))
    assert locate.find("toy") == tmp_path / "links" / "toy-py"
    [whole] = [v for v in verify.verify("toy") if v.path.name == "inside"]
    assert not whole.wrong, "both pictures, one of them by a link"
    [found] = [s for s in locate.status() if s.dataset.name == "toy"]
    assert found.bytes == sum(len(f"contents of {name}") for name in NAMES)
    (place / "inside" / "a").rename(tmp_path / "disk" / "moved" / "a")
    assert locate.find("toy") == tmp_path / "links" / "toy-py", "all of it behind a link"


def test_without_a_home_data_is_found_and_the_cache_asked_for(toy, tmp_path, monkeypatch):
    """In a container whose user nobody knows."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("METABENCH_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    put_arrays(tmp_path)
    assert locate.find("toy") == tmp_path / "toy"
    assert len(locate.status()) == len(catalogue.DATASETS)
    assert "local" in profile.names()
    with pytest.raises(MetabenchError, match=r"no home folder is known here; .* METABENCH_CACHE"):
        fetch.fetch("toy")
    assert not (tmp_path / "~").exists()
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    assert cache.folder() == tmp_path / "cache"
