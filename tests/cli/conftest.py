"""Where commands are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typed_commands import SUITE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_forgotten: None) -> Path:
    """A working directory with a suite, its own store, and no plug-ins but its own; what is printed
    has room, so that a phrase stands in one line."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METABENCH_STORE", raising=False)
    (tmp_path / "small.toml").write_text(SUITE)
    return tmp_path
