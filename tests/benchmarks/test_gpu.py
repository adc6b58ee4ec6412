"""The script for a GPU: parts in processes of their own, and each part in miniature on the CPU."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from optional import needs

from metabench.core.errors import DataMissing
from metabench.datasets import locate

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import gpu
from benchmarks.gpu_parts import agreement, decays, episodes, lora, omniglot
from benchmarks.gpu_parts.bench import Bench, apart, finite

NAMES = [part.name for part in gpu.PARTS]

STAND_IN = """
import json, os, subprocess, sys, time
name, device, seconds, store, *rest = sys.argv[1:]
def say(**line):
    print(json.dumps(line), flush=True)
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
    status, lines, out = stand_in("--dry-run", "--limit", "lora=7")
    told = capsys.readouterr().out
    assert status == 0 and not lines and not out.exists()
    assert "lora          7 s  on cpu" in told and "METABENCH_DATA" in told
    assert gpu.main(["--list"]) == 0
    assert [x.split()[0] for x in capsys.readouterr().out.splitlines()] == NAMES
    assert sum(part.seconds for part in gpu.PARTS) <= gpu.TOTAL == 540


def test_without_a_gpu_parts_are_left_out(stand_in, monkeypatch):
    monkeypatch.setattr(gpu, "finds_cuda", lambda: False)
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

    def run(command, **more):
        asked.append(command)
        (tmp_path / f"{len(asked)}.whl").write_bytes(b"x" * 1000)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu.main(["--wheels", str(tmp_path), "--python-version", "3.9"]) == 0
    assert len(asked) == 2, "learn2learn needs an interpreter of that version"
    download = asked[0]
    assert "--only-binary=:all:" in download and "3.9" in download
    assert any(x.startswith("pydantic") for x in download)
    assert "--no-index" in capsys.readouterr().out
    assert gpu.main(["--wheels", str(tmp_path), "--builder", "python9"]) == 0
    assert [x[-1] for x in asked[4:]] == [x[-1] for x in gpu.BUILT]
    assert {x[0] for x in asked[4:]} == {"python9"}


# --- the parts ------------------------------------------------------------------------------------


def bench(tmp_path):
    return Bench(
        torch.device("cpu"), True, time.monotonic() + 60, tmp_path / "store", io.StringIO()
    )


def rows(of_bench):
    lines = map(json.loads, of_bench.answers.getvalue().splitlines())
    return {x["row"]: x for x in lines if "row" in x}


def test_decays_in_miniature(tmp_path):
    at = bench(tmp_path)
    decays.run(at)
    found = rows(at)
    assert {name for name, *_ in decays.ROWS} < set(found)
    assert all(x["ok"] is not False for x in found.values()), found
    assert found["plain step"]["figures"]["numbers"] == 44560
    assert all(found[name]["figures"]["plain_steps"] > 1 for name, *_ in decays.ROWS)


def test_a_wrong_hypergradient_of_decays_is_seen(tmp_path, monkeypatch):
    net, side, _ = decays.network(True)
    at, problem = bench(tmp_path), decays.Decays(net, side, 2, torch.device("cpu"))
    decays.check(at, problem)
    (right,) = rows(at).values()

    def penalty(self, lam):
        return {k: 1.01 * v.exp() for k, v in lam.items()}

    monkeypatch.setattr(decays.Decays, "diagonal_penalty", penalty)
    decays.check(at, problem)
    (wrong,) = rows(at).values()
    assert right["ok"] is True and wrong["ok"] is False


def test_the_vision_transformer_has_as_many_numbers_as_vit_b():
    with torch.device("meta"):
        net = decays.ViT(224, 16, 768, 12, 12)
    assert sum(p.numel() for p in net.parameters()) == 86_567_656


def test_lora_in_miniature(tmp_path):
    at = bench(tmp_path)
    lora.run(at)
    found = rows(at)
    assert set(found) == {"float32, reference", "bfloat16, 1 at once", "bfloat16, 4 at once"}
    assert found["bfloat16, 4 at once"]["ok"] is True
    before, after = (found["float32, reference"]["figures"][f"loss_{x}"] for x in
                     ("before", "after"))  # fmt: skip
    assert after < before
    assert 0 < found["bfloat16, 1 at once"]["figures"]["gain_error"] < lora.GAIN


def test_its_decoder_is_that_of_llamas_architecture():
    transformers = needs("transformers")
    s, cpu = lora.sizes(True), torch.device("cpu")
    own = lora.decoder(s, cpu)
    config = transformers.LlamaConfig(
        hidden_size=s["width"], intermediate_size=s["inner"], num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"], num_key_value_heads=s["groups"],
        vocab_size=s["vocabulary"], tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(
        {**own.weights, "lm_head.weight": own.weights["model.embed_tokens.weight"]}
    )
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(own.logits(ids), model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_agreement_in_miniature(tmp_path):
    at = bench(tmp_path)
    agreement.run(at)
    found = rows(at)
    assert len(found) == 13 and all(x["ok"] is not False for x in found.values()), found
    assert 0 < found["glyphs: maml in float32, TF32 off"]["figures"]["hypergradient_error"] < 1e-3


def test_an_agreement_that_is_none_fails(tmp_path, monkeypatch):
    case = next(c for c in agreement.CASES if c.task == "ridge")
    monkeypatch.setattr(agreement, "CASES", (case,))
    monkeypatch.setattr(agreement, "single", lambda *_: None)
    right, told = agreement.moves, []

    def moves(case, ctx, method):
        told.append(ctx)
        found = right(case, ctx, method)
        return {k: v * (1 + 1e-9 * (len(told) == 2)) for k, v in found.items()}

    monkeypatch.setattr(agreement, "moves", moves)
    at = bench(tmp_path)
    agreement.run(at)
    row = rows(at)[case.name]
    assert row["ok"] is False and row["figures"]["hypergradient_error"] == pytest.approx(1e-9)


def test_an_error_is_a_row_that_failed_and_the_next_goes_on(tmp_path, monkeypatch):
    ridge = [c for c in agreement.CASES if c.task == "ridge"][-2:]
    monkeypatch.setattr(agreement, "CASES", (ridge[0],))
    monkeypatch.setattr(agreement, "single", lambda *_: None)
    monkeypatch.setattr(agreement, "moves", lambda *_: 1 / 0)
    at = bench(tmp_path)
    agreement.run(at)
    (row,) = rows(at).values()
    assert row["ok"] is False and row["note"] == "ZeroDivisionError: division by zero"


@pytest.mark.slow
def test_episodes_in_miniature(tmp_path):
    at = bench(tmp_path)
    episodes.run(at)
    found = rows(at)
    assert all(x["ok"] is not False for x in found.values()), found
    for row in episodes.ROWS[:2]:
        for way in ("loop", "vmap", "graph", "graph, algorithms free"):
            assert found[f"{row.name}: {way}"]["ok"] is True
            assert found[f"{row.name}: {way}"]["figures"]["ms"] > 0
        assert "no GPU" in found[f"{row.name}: graph"]["note"]


def test_the_peers_network_is_metabenchs():
    row = episodes.ROWS[2]
    at = bench(Path("unused"))
    _, problem, _ = episodes.problem_of(row, at)
    net = episodes.usual(problem.net, row)
    weights = problem.init_outer()
    net.load_state_dict(weights)
    x = problem.episode("train", 0).outer["x"]
    torch.testing.assert_close(net(x), problem.net.apply_params(weights, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_papers_run_goes_on_where_the_last_lease_ended(tmp_path):
    try:
        locate.find("omniglot")
    except DataMissing as missing:
        pytest.skip(str(missing))

    class Short(Bench):
        left = omniglot.LEFT_OVER + 0.01

    at = Short(**vars(bench(tmp_path)))
    omniglot.run(at)
    (row,) = rows(at).values()
    assert row["row"] == "engine auto: timeout" and "the next run goes on" in row["note"]
    again = bench(tmp_path)
    omniglot.run(again)
    (row,) = rows(again).values()
    assert row["row"] == "engine auto: done" and row["figures"]["steps"] == 6
    assert row["figures"]["attempts"] == 2 and 0 < row["figures"]["test_accuracy"] < 1


def test_differences_are_over_the_largest_entry_and_json_has_no_nan():
    a = {"x": torch.tensor([1.0, -4.0]), "y": torch.tensor([0.0])}
    b = {"x": torch.tensor([1.0, -4.0]), "y": torch.tensor([1e-3])}
    assert apart(b, a) == pytest.approx(2.5e-4)
    assert apart(a, a) == 0
    assert finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {"a": [None, 1.0], "b": None}
