"""Profiles: what may stand in one, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from metabench.cluster import profile
from metabench.core.errors import SettingError, UnknownName


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(profile.FOLDER, str(tmp_path))
    return tmp_path


def test_the_built_in_ones_can_be_read(own: Path) -> None:
    assert set(profile.names()) == {
        "local", "cpu", "gpu", "gpu-preemptible", "gpu-shard", "gpu-mig",
    }  # fmt: skip
    for name in profile.names():
        read = profile.load(name)
        assert read.name == name and read.description
    assert profile.load("gpu-preemptible").gpus == 1, "extends gpu"
    assert profile.load("gpu-shard").wants_gpu and not profile.load("cpu").wants_gpu


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(90, 90), ("90", 90), ("4:00:00", 240), ("1-12:00:00", 2160), ("45:30", 45), ("2-6", 3240)],
)
def test_times_read_as_slurm_writes_them(time: int | str, minutes: int) -> None:
    assert profile.minutes(time) == minutes


def test_own_profiles_by_name_by_path_and_over_a_built_in(own: Path, tmp_path: Path) -> None:
    (own / "site.toml").write_text('extends = "gpu"\npartition = "a100"\ntime = 04:00:00\n')
    read = profile.load("site")
    assert (read.partition, read.gpus, read.minutes) == ("a100", 1, 240)
    assert profile.load(own / "site.toml") == read
    changed = profile.load("site", {"time": "30", "extra.mail-type": "END"})
    assert changed.minutes == 30 and changed.extra == {"mail-type": "END"}
    (own / "gpu.toml").write_text('partition = "mine"\n')
    assert profile.load("gpu").partition == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tme = 60", "no setting of cluster profile site called 'tme'; near: time"),
        ("time = 10", "give 11 or more"),
        ('time = "soon"', "write minutes, H:MM:SS or D-H:MM:SS"),
        ('gpus = 1\ngres = "shard:1"', "give gpus (1) or gres ('shard:1'), not both"),
        ("cpus = 0", "greater than or equal to 1"),
        ("cpus = true", "true or false is no number"),
        ("[extra]\nsignal = 1", "extra cannot set signal"),
        ("time = 20\nsignal_seconds = 600", "leaves no time to work"),
        ('extends = "gpuu"', "no cluster profile 'gpuu'; near: gpu"),
        ("extends = ['gpu']", "extends: no cluster profile"),
        ('extends = "other"', "extends 'site', which extends this one"),
        ("cpus =", "not TOML"),
        ('most_time = "soon"', "most_time cannot be 'soon'"),
        ("most_memory_gb = -4", "most_memory_gb cannot be -4"),
        ("python = '\"my env/python'", "no closing quotation"),
        ('python = " "', "there is no program in it"),
        ("[extra]\njob_name = 'mine'", "extra cannot set job_name"),
        ("[extra]\ntime = 1", "extra cannot set time: it is the setting time"),
    ],
)
def test_a_wrong_profile_is_told_what_is_wrong(own: Path, text: str, message: str) -> None:
    (own / "site.toml").write_text(text)
    (own / "other.toml").write_text('extends = "site"')
    with pytest.raises((UnknownName, SettingError)) as error:
        profile.load("site")
    assert message in str(error.value)


def test_unknown_profiles_name_the_nearest(own: Path) -> None:
    with pytest.raises(UnknownName, match="near: local"):
        profile.load("locl")
    with pytest.raises(UnknownName, match=r"or give the path of a \.toml file"):
        profile.load("/tmp")
    with pytest.raises(SettingError, match="no profile file"):
        profile.load(own / "none.toml")


def test_set_words_about_the_cluster_are_kept_apart() -> None:
    cells, own = profile.split_set(["slurm.time=1:00:00", "method.lr=1", "slurm.cpus=3"])
    assert cells == ["method.lr=1"] and own == {"time": "1:00:00", "cpus": 3}
    with pytest.raises(SettingError, match=r"write slurm\.NAME=VALUE"):
        profile.split_set(["slurm.cpus"])
