"""A process as the next one is that plans: without torch, and with code that is older."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from metabench.core.environment import provenance
from metabench.suites import recalling


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache, in a process that has neither imported torch nor old code."""
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    newest = max(path.stat().st_mtime for _, path in provenance.paths())
    began = SimpleNamespace(_imported_at=newest + 60)
    fresh = SimpleNamespace(modules={"metabench": began}, version=sys.version)
    monkeypatch.setattr(recalling, "sys", fresh)
    return tmp_path / "resolved"
