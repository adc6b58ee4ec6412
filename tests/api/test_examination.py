from __future__ import annotations

import io
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from metabench.api import examination
from metabench.api.examination import PAIR, examine, probe_torch
from metabench.cli.main import app
from metabench.cli.printing.inventory import print_findings
from metabench.core.environment import optional_packages
from metabench.core.environment.findings import Finding
from metabench.datasets import catalogue, locate
from metabench.store.store import Store

PROBE: dict[str, Any] = {
    "torch": "2.15.0",
    "torchvision": "0.29.2",
    "threads": 2,
    "cuda": None,
    "gpus": [],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, plugins_forgotten: None) -> dict[str, Any]:
    """What the probe answers, to be changed by a test; torch is not imported again."""
    probe = dict(PROBE)
    monkeypatch.setattr(examination, "probe_torch", lambda: probe)
    return probe


def named(findings: list[Finding], name: str) -> Finding:
    (found,) = [f for f in findings if f.name == name]
    return found


def test_a_sound_machine(quick: dict[str, Any], store: Store) -> None:
    findings = examine(store)
    assert not [f for f in findings if f.bad]
    for name in (
        "python",
        "metabench",
        "torch",
        "torchvision",
        "pandas",
        "cores",
        "memory",
        "disk",
    ):
        assert named(findings, name).verdict == "ok", name
    assert named(findings, "GPU").verdict == "note"
    assert named(findings, "records").detail == "0, 0 of them done"
    assert not store.root.exists()


@pytest.mark.slow
def test_the_probe_really_imports() -> None:
    found = probe_torch()
    for name in ("torch", "torchvision"):
        assert found[name].partition("+")[0] == metadata.version(name).partition("+")[0]
    assert found["threads"] >= 1
    assert "torch_error" not in found


@pytest.mark.parametrize("script", ["exit 3", "echo nothing of use", "kill -9 $$"])
def test_a_process_that_dies_is_an_answer(tmp_path: Path, script: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    found = probe_torch(str(python))
    assert "the process ended with" in found["torchvision_error"]


def test_a_broken_pair_comes_with_the_commands(quick: dict[str, Any], store: Store) -> None:
    quick["torchvision_error"] = "RuntimeError: operator torchvision::nms does not exist"
    finding = named(examine(store), "torchvision")
    assert finding.verdict == "broken" and finding.bad
    assert "does not fit torch 2.15.0" in finding.detail and "nms" in finding.detail
    assert finding.repair == PAIR


def test_gpus_are_named(quick: dict[str, Any], store: Store) -> None:
    quick["gpus"] = [["A GPU", 80 * 10**9]]
    findings = examine(store)
    assert named(findings, "cuda:0").detail == "A GPU, 80.0 GB"
    assert not [f for f in findings if f.name == "GPU"]


def test_old_and_missing_packages(
    quick: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("pandas", "torchvision"):
            raise metadata.PackageNotFoundError(name)
        return {"typer": "0.9.1"}.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    findings = examine(store)
    old = named(findings, "typer")
    assert (old.verdict, old.repair) == ("too old", ('pip install --upgrade "typer>=0.20"',))
    missing = named(findings, "pandas")
    assert (missing.verdict, missing.repair) == ("missing", ('pip install "pandas>=2.2.2"',))
    pair = named(findings, "torchvision")
    assert pair.repair == ("pip install torch torchvision",)
    assert old.bad and missing.bad and pair.bad


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("scipy", "99.1", "99.1; never tested with metabench: the newest tested is "),
        ("optuna", "99.1", "99.1; never tested with metabench: the newest tested is "),
        ("optuna", "3.9", "3.9; never tested with metabench: the oldest tested is 4.0"),
    ],
)
def test_versions_that_were_never_tested_are_a_note(
    quick: dict[str, Any],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    version: str,
    told: str,
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: version if n == name else real(n))
    finding = named(examine(store), name)
    assert finding.verdict == "note" and not finding.bad
    assert finding.detail.startswith(told)


def test_learn2learn_comes_with_its_two_commands(
    quick: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "learn2learn":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    finding = named(examine(store), "learn2learn")
    assert finding.verdict == "missing" and not finding.bad
    assert finding.repair == optional_packages.recipe("learn2learn") and len(finding.repair) == 2
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.2.0" if name == "learn2learn" else real(name)
    )
    quick["learn2learn_error"] = "ModuleNotFoundError: No module named 'gym'"
    assert named(examine(store), "learn2learn").verdict == "broken"


def test_data_found_and_missing(
    quick: dict[str, Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    finding = named(examine(store), "omniglot")
    assert finding.verdict == "missing" and not finding.bad
    assert str(tmp_path / "nowhere") in finding.detail
    assert finding.repair[0].startswith("metabench data fetch omniglot")
    found = SimpleNamespace(layout=SimpleNamespace(name="arrays"), path=tmp_path / "omniglot")
    monkeypatch.setattr(
        locate,
        "status",
        lambda: [
            locate.Status(catalogue.DATASETS["omniglot"], found, bytes=12_100_000)  # type: ignore[arg-type]
        ],
    )
    finding = named(examine(store), "omniglot")
    assert finding.verdict == "ok"
    assert finding.detail == f"{tmp_path / 'omniglot'}, arrays, 12.1 MB"


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_store_that_is_a_file_is_told(quick: dict[str, Any], tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    found = named(examine(Store(tmp_path / "file" / below)), "folder")
    assert found.bad and f"{tmp_path / 'file'} is a file" in found.detail


def test_the_store_is_looked_at(quick: dict[str, Any], store: Store) -> None:
    bad = store.root / "ab" / ("ab" + "0" * 62) / "record.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("{")
    finding = named(examine(store), "record.json")
    assert finding.verdict == "broken" and str(bad) in finding.detail
    assert not finding.bad, "the next run sets it aside"


def test_plugins_that_fail_are_named(
    quick: dict[str, Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, fine = tmp_path / "broken.py", tmp_path / "fine.py"
    broken.write_text("import no_such_module_at_all")
    fine.write_text("")
    monkeypatch.setenv("METABENCH_PLUGINS", str(broken))
    findings = examine(store, [fine])
    assert "no_such_module_at_all" in named(findings, str(broken)).detail
    assert named(findings, str(broken)).bad
    assert named(findings, str(fine)).verdict == "ok"


def test_entry_points_that_fail_are_named(
    quick: dict[str, Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poor_third_party.py").write_text('"""Poor."""\nraise RuntimeError("no good")')
    info = tmp_path / "poor_third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: poor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metabench.methods]\npoor = poor_third_party:Poor\n")
    monkeypatch.syspath_prepend(tmp_path)
    finding = named(examine(store), "method poor")
    assert finding.bad and "from poor: RuntimeError: no good" in finding.detail


def test_the_command_prints_it_all_and_fails_where_it_should(
    quick: dict[str, Any], tmp_path: Path
) -> None:
    words = ["doctor", "--store", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for section in ("versions", "machine", "store", "data", "optional packages"):
        assert f"\n{section}\n" in done.stdout
    (tmp_path / "broken.py").write_text("1 / 0")
    done = CliRunner().invoke(app, [*words, "--plugin", str(tmp_path / "broken.py")])
    assert done.exit_code == 1 and "ZeroDivisionError" in done.stdout
    quick["torchvision_error"] = "RuntimeError: no"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "torchvision (needed):\n    pip uninstall -y torch torchvision\n" in done.stdout


def test_equal_commands_are_told_once() -> None:
    out = Console(width=100, file=(buffer := io.StringIO()))
    print_findings(
        out,
        [
            Finding("s", "a", "missing", repair=("do this",)),
            Finding("s", "b", "missing", repair=("do this",), essential=True),
        ],
    )
    assert buffer.getvalue().count("do this") == 1
    assert "a, b (needed):" in buffer.getvalue()
    assert sys.version_info >= examination.LOWEST_PYTHON


@pytest.mark.slow
def test_an_optional_package_is_imported_not_only_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed and broken is not "ok"."""
    (tmp_path / "half_there.py").write_text("raise OSError('its library is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(optional_packages, "extras", lambda: {"hpo": ["half-there>=1"]})
    assert probe_torch()["half-there_error"] == "OSError: its library is missing"
