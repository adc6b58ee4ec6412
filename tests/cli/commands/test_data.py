"""Data sets, typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typed_commands import metabench

from metabench.datasets import catalogue, fetch, verify
from metabench.store.store import Store


def test_data_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABENCH_DATA", str(folder / "nowhere"))
    monkeypatch.setenv("METABENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HOME", str(folder))
    typed = metabench("data", "list")
    assert typed.code == 0
    assert "omniglot: Omniglot" in typed.out and "metabench data fetch omniglot" in typed.out
    assert metabench("data").out == typed.out
    for known in catalogue.DATASETS.values():
        told = typed.out[typed.out.index(f"{known.name}: ") :].split("\n\n")[0]
        assert known.origin in told and known.licence in told and known.offline in told
        for layout in known.layouts:
            assert all(file.sha256 in told for file in layout.files)
            assert all(archive.checksum.split(":")[1] in told for archive in layout.archives)
    assert metabench("data", "verify").out == "no data sets here: nothing to verify\n"
    assert metabench("data", "verify", "omniglt").err.startswith(
        "error: no data set 'omniglt'; near: omniglot"
    )
    assert metabench("data", "fetch", "omniglt").code == 2
    missing = metabench("data", "verify", "omniglot")
    assert missing.code == 1 and "not found; looked in" in missing.err
    plan = metabench("plan", "omniglot", "--budget", "smoke")
    assert plan.code == 0 and "repair it with: metabench data fetch omniglot" in plan.out
    run = metabench("run", "omniglot", "--budget", "smoke", "--only", "maml")
    assert run.code == 1 and "metabench data fetch omniglot" in run.err
    assert Store().records() == []


def test_fetching_and_verifying_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metabench.datasets.verify import Verdict

    def fetched(name: str, *, to: Path | None, progress: Callable[..., None]) -> Path:
        for so_far in (0, 5, 10):
            progress("https://example.org/a/omniglot.zip", so_far, 10)
        return to or folder

    monkeypatch.setattr(fetch, "fetch", fetched)
    typed = metabench("data", "fetch", "omniglot", "--to", "here")
    assert typed.out == "omniglot is in here\n"
    assert typed.err.rstrip() == "fetching https://example.org/a/omniglot.zip"
    verdicts = [Verdict(Path("a.npz")), Verdict(Path("b.npz"), "5 bytes instead of 6")]
    monkeypatch.setattr(verify, "verify", lambda name: verdicts)
    typed = metabench("data", "verify", "omniglot")
    assert typed.code == 1
    assert typed.out == "ok     a.npz\nWRONG  b.npz: 5 bytes instead of 6\n"
