"""The script for a GPU: parts in processes of their own, each with a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import gpu
from benchmarks.gpu_parts import bare_machine, processes

NAMES = [part.name for part in gpu.PARTS]

STAND_IN = """
import json, os, subprocess, sys, time
name, device, seconds, store, rest, *size = sys.argv[1:]
rest = json.loads(rest)
def say(**line):
    print(json.dumps(line), flush=True)
if os.environ.get("AGAIN") == name:
    say(row=f"row {rest}", ok=None, note="", figures={"pid": os.getpid()})
    if rest is None:
        say(rest={"row": 1})
        sys.exit(3)
    say(rest={"row": 2} if rest["row"] == 1 else None)
    sys.exit(0)
if os.environ.get("CLOSES") == name:
    say(row="last", ok=None, note="", figures={"pid": os.getpid()})
    os.close(1)
    time.sleep(60)
say(machine={"name": "none", "device": device})
say(row="first | row", ok=True, note="", figures={"seconds": float(seconds), "peak_mb": None})
if name == "episodes":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    say(row="child", ok=None, note="", figures={"pid": child.pid})
    time.sleep(60)
if name == "decays":
    sys.stderr.write("no memory is left\\n")
    sys.stdout.write('{"row": "cut o')
    sys.exit(3)
if name == "lora":
    say(row="second", ok=False, note="too far", figures={"error": 1.0})
if name == "omniglot":
    os.makedirs(store, exist_ok=True)
    open(store + "/record", "a").write("step\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A worker that needs no torch, and a folder that counts as data."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments):
        out = tmp_path / "out"
        status = gpu.main(["--worker", "stand_in", "--device", "cpu", "--out", str(out),
                           *arguments])  # fmt: skip
        lines = (out / "gpu.jsonl").read_text().splitlines() if out.is_dir() else []
        return status, [json.loads(x) for x in lines], out

    return run


def of(lines, part, what):
    return [x for x in lines if x.get("part") == part and what in x]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_hangs_or_dies_does_not_lose_the_others(stand_in):
    began = time.monotonic()
    status, lines, out = stand_in("--limit", "episodes=3")
    assert status == 1 and time.monotonic() - began < 40
    ended = {x["part"]: x for x in lines if "status" in x}
    assert list(ended) == NAMES
    assert ended["agreement"]["status"] == ended["omniglot"]["status"] == "done"
    assert (ended["episodes"]["status"], ended["episodes"]["reason"]) == (
        "killed", "not ended within 3 s",
    )  # fmt: skip
    assert 2.5 < ended["episodes"]["seconds"] < 10
    assert ended["decays"]["reason"] == "exit status 3: no memory is left"
    assert ended["lora"]["failed_checks"] == 1
    assert all(of(lines, name, "row") for name in NAMES), "what came before is kept"
    if Path("/proc/self/stat").is_file():
        (row,) = (x for x in of(lines, "episodes", "row") if x["row"] == "child")
        assert not alive(row["figures"]["pid"]), "what a part has started is ended with it"
    table = (out / "gpu.md").read_text()
    assert "| episodes | killed | " in table and "## omniglot" in table
    assert "| first \\| row | ok |" in table and "| second | FAILED |" in table
    assert "peak_mb" not in table, "a figure that no row has is no column"


def test_a_part_that_closes_its_output_and_hangs_is_killed_and_the_others_go_on(
    stand_in, monkeypatch
):
    monkeypatch.setenv("CLOSES", "lora")
    killpg = os.killpg

    def group_is_gone(pid, number):
        killpg(pid, number)
        raise ProcessLookupError

    monkeypatch.setattr(processes.os, "killpg", group_is_gone)
    status, lines, _ = stand_in("--parts", "lora", "omniglot", "--limit", "lora=2")
    ended = {x["part"]: x for x in lines if "status" in x}
    assert status == 1 and ended["omniglot"]["status"] == "done"
    assert (ended["lora"]["status"], ended["lora"]["reason"]) == ("killed", "not ended within 2 s")
    (row,) = of(lines, "lora", "row")
    assert not alive(row["figures"]["pid"])


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # nobody has waited for it
def test_a_process_that_cannot_be_killed_is_told_of_and_the_others_go_on(stand_in, monkeypatch):
    monkeypatch.setenv("CLOSES", "lora")
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    left, killpg = [], os.killpg
    monkeypatch.setattr(processes.os, "killpg", lambda *which: left.append(which))
    _, lines, _ = stand_in("--parts", "lora", "omniglot", "--limit", "lora=2")
    killpg(*left[0])
    ended = {x["part"]: x for x in lines if "status" in x}
    assert ended["omniglot"]["status"] == "done"
    assert ended["lora"]["status"] == "killed"
    assert "may still hold the device" in ended["lora"]["reason"]


def test_what_a_process_leaves_is_done_by_a_fresh_one(stand_in, monkeypatch):
    monkeypatch.setenv("AGAIN", "agreement")
    status, lines, _ = stand_in("--parts", "agreement", "omniglot")
    rows = of(lines, "agreement", "row")
    assert [x["row"] for x in rows] == ["row None", "row {'row': 1}", "row {'row': 2}"]
    assert len({x["figures"]["pid"] for x in rows}) == 3
    ended = {x["part"]: x for x in lines if "status" in x}
    assert status == 1 and ended["omniglot"]["status"] == "done"
    assert ended["agreement"]["status"] == "failed" and ended["agreement"]["rows"] == 3
    assert ended["agreement"]["reason"].startswith("exit status 3")
    assert ended["agreement"]["reason"].endswith("; a fresh process did the rest")
    assert not of(lines, "agreement", "rest")


def test_all_well_is_status_0_and_the_last_part_has_the_time_left(stand_in):
    status, lines, _ = stand_in("--parts", "omniglot", "agreement", "--total", "100")
    assert status == 0
    given = {x["part"]: x["figures"]["seconds"] for x in lines if "row" in x}
    assert list(given) == ["agreement", "omniglot"], "in the order of the list"
    assert given["agreement"] == 60 - 6, "told less than the limit, at which it is killed"
    assert 60 < given["omniglot"] <= 90
    _, lines, _ = stand_in("--parts", "omniglot", "--limit", "omniglot=20")
    assert lines[-2]["figures"]["seconds"] == 18


def test_without_time_or_device_a_part_is_left_out_with_the_reason(stand_in, monkeypatch):
    status, lines, _ = stand_in("--total", "0.5")
    assert status == 1 and {x["reason"] for x in lines} == {"no time was left of the total"}
    monkeypatch.delenv("METABENCH_DATA")
    status, lines, _ = stand_in("--parts", "omniglot")
    assert status == 1 and "METABENCH_DATA" in lines[-1]["reason"]


def test_a_dry_run_and_a_list_run_nothing(stand_in, capsys, monkeypatch):
    monkeypatch.delenv("METABENCH_DATA")
    why = "ModuleNotFoundError: No module named 'requests'"
    tried = []

    def failing(names):
        tried.extend(names)
        return {"learn2learn.algorithms": why, "benchmarks.gpu_parts.decays": "ImportError: x"}

    monkeypatch.setattr(bare_machine, "failing", failing)
    status, lines, out = stand_in("--dry-run", "--limit", "lora=7")
    told = capsys.readouterr().out
    assert status == 0 and not lines and not out.exists()
    assert "lora          7 s  on cpu" in told and "METABENCH_DATA" in told
    assert f"episodes    110 s  on cpu; no row of learn2learn.algorithms: {why}\n" in told
    assert "decays       80 s  on cpu; ImportError: x\n" in told
    assert {f"benchmarks.gpu_parts.{name}" for name in NAMES} < set(tried)
    assert gpu.main(["--list"]) == 0
    assert [x.split()[0] for x in capsys.readouterr().out.splitlines()] == NAMES
    assert sum(part.seconds for part in gpu.PARTS) <= gpu.TOTAL == 540


def test_imports_are_tried_and_not_only_looked_for(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("print('{')\nimport no_such_thing\n")
    (tmp_path / "deadly.py").write_text("import os\nos._exit(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    why = "ModuleNotFoundError: No module named 'no_such_thing'"
    assert bare_machine.failing(["json", "needy"]) == {"needy": why}
    died = "the process that tried it died: nothing said"
    assert bare_machine.failing(["json", "deadly"]) == {"json": died, "deadly": died}


def test_without_a_gpu_parts_are_left_out(stand_in, monkeypatch):
    monkeypatch.setattr(bare_machine, "finds_cuda", lambda: False)
    status, lines, _ = stand_in("--device", "cuda")
    assert status == 1 and {x["reason"] for x in lines} == {"torch finds no CUDA device"}


@pytest.mark.parametrize("wrong", [["--parts", "loras"], ["--limit", "lora"],
                                   ["--limit", "loras=3"], ["--limit", "lora=-3"],
                                   ["--limit", "lora=nan"], ["--limit", "lora=inf"],
                                   ["--total", "-4"], ["--total", "0"], ["--total", "nan"],
                                   ["--continue", "nowhere.tar.gz"]])  # fmt: skip
def test_names_and_limits_are_checked(stand_in, wrong):
    with pytest.raises(SystemExit, match=r"agreement, episodes|PART=SECONDS|no such file|above 0"):
        stand_in(*wrong)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_figures_are_not_written_to_a_file(tmp_path, below):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(SystemExit, match="taken is a file; name a folder"):
        gpu.main(["--parts", "lora", "--out", str(taken / below)])
    assert taken.read_text() == "mine"


def test_a_store_goes_on_from_lease_to_lease(stand_in, tmp_path):
    _, _, out = stand_in("--parts", "omniglot")
    packed = out / gpu.ARCHIVE
    kept = tmp_path / "kept.tar.gz"
    kept.write_bytes(packed.read_bytes())
    other = tmp_path / "elsewhere" / "own"
    other.parent.mkdir()
    stand_in("--parts", "omniglot", "--continue", str(kept), "--store", str(other))
    assert (other / "record").read_text() == "step\n" * 2


def test_wheels_are_asked_for_by_version_and_the_peer_is_built(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.delenv("METABENCH_DATA", raising=False)

    def run(command, **more):
        asked.append(command)
        (tmp_path / f"{len(asked)}.whl").write_bytes(b"x" * 1000)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bare_machine.subprocess, "run", run)
    assert gpu.main(["--wheels", str(tmp_path), "--python-version", "3.9"]) == 0
    assert len(asked) == 2, "learn2learn needs an interpreter of that version"
    download = asked[0]
    assert "--only-binary=:all:" in download and "3.9" in download
    for needed in ("pydantic", "requests", "tqdm", "gym_notices"):
        assert any(x.startswith(needed) for x in download)
    told = capsys.readouterr().out
    assert "--no-index" in told and "Omniglot is left out" in told
    assert gpu.main(["--wheels", str(tmp_path), "--builder", "python9"]) == 0
    assert [x[-1] for x in asked[4:]] == [x[-1] for x in bare_machine.BUILT]
    assert {x[0] for x in asked[4:]} == {"python9"}


def test_omniglot_is_packed_with_the_wheels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bare_machine.subprocess, "run",
                        lambda command, **_: subprocess.CompletedProcess(command, 0))  # fmt: skip
    (tmp_path / "data" / "omniglot").mkdir(parents=True)
    (tmp_path / "data" / "omniglot" / "omniglot28.npz").write_bytes(b"images")
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "data"))
    assert gpu.main(["--wheels", str(tmp_path / "wheels")]) == 0
    assert "tar -xzf" in capsys.readouterr().out
    with tarfile.open(tmp_path / "wheels" / bare_machine.DATA) as packed:
        packed.extractall(tmp_path / "there", filter="data")
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "there"))
    part = gpu.chosen(["omniglot"])[0]
    assert not [why for why in bare_machine.missing(part, "cpu") if "METABENCH_DATA" in why]
    images = tmp_path / "there" / "omniglot" / "omniglot28.npz"
    assert images.read_bytes() == b"images"
