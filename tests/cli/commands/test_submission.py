"""Submitting, where there is no cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WORDS = ("quickstart", "--budget", "smoke", "--cluster", "cpu")


def test_a_dry_run_needs_no_cluster_and_leaves_nothing(  # type: ignore[no-untyped-def]
    type_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    done = type_("submit", *WORDS, "--dry-run", "--set", "slurm.time=1:00:00", "--seeds", "0-7")
    assert done.exit_code == 0, done.output
    assert "40 cells in 1 array of 5 jobs" in done.output, "eight cells at once"
    for line in ("--array=0-4%5", "--time=60", "--cpus-per-task=8", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in done.output
    assert "not checked against the cluster: sinfo is not here" in done.output
    (names,) = re.findall(r"variables that travel to jobs .*: (.*)", done.output)
    assert {"PATH", "METABENCH_STORE"} <= set(names.split(", ")) and "A_SECRET" not in names
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_would_be_refused_and_a_refused_suite_does_not_stop_others(  # type: ignore[no-untyped-def]
    type_, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.cli.commands import submission
    from metabench.cluster.submitting import draft as drafting
    from metabench.cluster.submitting import refusals, submit

    monkeypatch.setattr(refusals, "refusals", lambda made, *_: [f"no {made.suite}"])
    done = type_("submit", *WORDS, "--dry-run")
    assert done.exit_code == 1 and "quickstart would be refused:\n  no quickstart" in done.output
    tried = []

    def refuse(_out: object, made: drafting.Draft, *_: object) -> None:
        tried.append(made.suite)
        raise refusals.Refusal("nothing was queued:\n  no data")

    monkeypatch.setattr(submission, "queue", refuse)
    prepare = submit.prepare
    monkeypatch.setattr(submit, "prepare", lambda *a: prepare(*a[:6], True))
    done = type_("submit", "all", "--budget", "smoke", "--cluster", "cpu")
    assert done.exit_code == 1 and len(tried) > 2
    assert "error: quickstart: nothing was queued:\n  no data" in done.output


def test_a_suite_without_its_data_is_no_success(  # type: ignore[no-untyped-def]
    type_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ("--budget", "smoke", "--cluster", "cpu", "--dry-run")
    done = type_("submit", "maml-miniimagenet", *words)
    assert done.exit_code == 1 and "metabench data fetch miniimagenet" in done.output


def test_without_a_cluster_nothing_is_submitted(type_, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = type_("submit", *WORDS)
    assert done.exit_code == 1 and "scontrol is not here" in done.output
    done = type_("doctor", "--cluster", "cpu")
    assert done.exit_code == 1 and "sinfo is not here" in re.sub(r"\s+", " ", done.output)
    assert not list((tmp_path / "runs").glob("cluster/2*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("submit", "quickstart", "--cluster", "gpuu"), "no cluster profile 'gpuu'; near: gpu"),
        (("submit", *WORDS, "--set", "slurm.tme=60"), "called 'tme'; near: time"),
        (("submit", *WORDS, "--set", "slurm.time=5"), "give 11 or more"),
        (("retry", "quickstrt", "--cluster", "cpu"), "no suite 'quickstrt'; near: quickstart"),
        (("cancel", "quickstart"), "no submission of suite 'quickstart --budget laptop'"),
        (("cancel",), "name the suite"),
        (("logs", "abc"), "no one cell whose key begins with 'abc'"),
    ],
)
def test_wrong_words_are_told_the_right_ones(  # type: ignore[no-untyped-def]
    type_, words: tuple[str, ...], message: str
) -> None:
    done = type_(*words)
    assert done.exit_code == 2
    assert message in re.sub(r"\s+", " ", done.output)


def test_plugins_travel_with_what_is_to_be_typed_again(  # type: ignore[no-untyped-def]
    type_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_forgotten: None
) -> None:
    from metabench.cluster.submitting import submit

    file = tmp_path / "mine.py"
    file.write_text("")
    told: list[str] = []
    prepare = submit.prepare
    monkeypatch.setattr(submit, "prepare", lambda *a: (told.extend(a[-1].suite), prepare(*a))[-1])
    assert type_("submit", *WORDS, "--dry-run", "--plugin", str(file)).exit_code == 0
    assert told[-2:] == ["--plugin", str(file)]
