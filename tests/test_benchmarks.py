"""The benchmark runs, gates and reports; how fast anything is, no test says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments, module="few_shot"):
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_a_tiny_row_of_metabench_alone(tmp_path):
    out = tmp_path / "speed.json"
    done = run(
        *("--rows", "stride-1shot-1step-1thread", "--only", "metabench", "--meta-batch", "2"),
        *("--filters", "4", "--repeats", "1", "--json", str(out)),
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    own = row["implementations"]["metabench"]
    assert own["agrees"] and own["error_float64"] < 1e-10
    assert len(own["wall"]) == 1 and own["wall"][0] > 0
    assert "metabench" in done.stdout


def test_rows_and_unknown_rows():
    listed = run("--list").stdout.split()
    assert "pool-1shot-5steps-1thread" in listed
    assert run("--rows", "nothing").returncode == 2


@pytest.mark.parametrize("row", ["logistic-generic", "logistic-closed-form", "mlp-l2-a-weight"])
def test_a_tiny_row_of_the_implicit_benchmark(tmp_path, row):
    out = tmp_path / "speed.json"
    size = ("--examples", "30", "--terms", "3", "--pixels", "20", "--repeats", "1")
    done = run("--rows", row, "--only", "metabench", *size, "--json", str(out), module="implicit")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())["rows"]
    own = found["implementations"]["metabench"]
    assert own["agrees"] and 0 < own["error_float32"] < 1e-3
    assert len(own["wall"]) == 1 and row in done.stdout


@pytest.fixture
def few_shot(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.few_shot

    return benchmarks.few_shot


def measured(own, peer, *, agrees=True):
    def held(seconds):
        return {"wall": [seconds], "agrees": agrees, "peak_bytes": 10}

    row = {"targets": {"learn2learn": 2.0, "higher": 2.0}}
    return {"row": row, "implementations": {"metabench": held(own), "learn2learn": held(peer)}}


def test_a_target_needs_the_ratio_and_the_gate(few_shot):
    def first(result):
        return few_shot._turns.verdicts(few_shot.BENCHMARK, result, "wall")[0]

    assert first(measured(1.0, 2.5))["met"] is True
    assert first(measured(1.0, 1.5))["met"] is False
    assert first(measured(1.0, 2.5, agrees=False))["met"] is None


def test_a_missing_peer_is_a_hole(few_shot):
    lines = few_shot._turns.verdicts(few_shot.BENCHMARK, measured(1.0, 2.5), "wall")
    higher = next(line for line in lines if line["peer"] == "higher")
    assert higher["ratio"] is None and higher["met"] is None


@pytest.mark.parametrize("row", ["linear-1", "mlp-5"])
def test_a_tiny_row_of_the_penalty_benchmark(tmp_path, row):
    out = tmp_path / "speed.json"
    size = ("--examples", "20", "--repeats", "1", "--block", "1")
    done = run("--rows", row, *size, "--json", str(out), module="penalty")
    assert done.returncode in (0, 1), done.stderr
    (found,) = json.loads(out.read_text())["rows"]
    assert found["agrees"] and found["error_float64"] < 1e-10
    assert found["target"] == found["row"]["steps"] + 3
    assert found["met"] == (found["ratio"] <= found["target"]) == (done.returncode == 0)
    assert row in done.stdout


def test_rows_of_the_penalty_benchmark():
    assert run("--list", module="penalty").stdout.split() == [
        "linear-1", "linear-5", "mlp-1", "mlp-5",
    ]  # fmt: skip
    assert run("--rows", "nothing", module="penalty").returncode == 2


def test_a_tiny_row_of_sgld(tmp_path):
    out = tmp_path / "sgld.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sgld", "--rows", "*-every*", "--examples", "20",
         "--repeats", "1", "--block", "5", "--json", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # 1: a target missed, as on so small a case
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 8
    for row in rows:
        assert row["agrees"] and row["error_float64"] < 1e-10 and row["ratio"] > 0
    assert "plain steps, target at most 3" in done.stdout
