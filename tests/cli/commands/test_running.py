"""``status --watch``."""

from __future__ import annotations

from pathlib import Path

import pytest

from metabench.store.store import Store


def test_watching_ends_where_nothing_runs_or_waits(  # type: ignore[no-untyped-def]
    type_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.cli.commands import running
    from metabench.suites.loading import load

    (item, *_) = load("quickstart").cells("smoke")
    held = Store(tmp_path / "runs").lease(item.cell.key)
    assert held is not None
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            held.release()

    monkeypatch.setattr(running.time, "sleep", nap)
    done = type_("status", "quickstart", "--budget", "smoke", "--watch")
    assert done.exit_code == 0, done.output
    assert naps == [running.WATCH_SECONDS] * 2
    assert done.output.count("1 running, 4 open") == 2 and done.output.count("5 open") == 1
