"""Typing commands where there is no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from metabench.cli.main import app


@pytest.fixture
def type_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("METABENCH_STORE", str(tmp_path / "runs"))
    monkeypatch.setenv("METABENCH_CLUSTERS", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("METABENCH_PLUGINS", raising=False)

    def typed(*words: str) -> Result:
        return CliRunner().invoke(app, words, terminal_width=200)

    return typed
