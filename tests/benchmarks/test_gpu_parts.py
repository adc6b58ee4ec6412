"""The parts of the script for a GPU: each in miniature on the CPU, and what it checks."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optional import needs

from metabench.datasets import locate
from metabench.run.events import Progress, Started

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.gpu_parts import agreement, decays, episodes, lora, omniglot
from benchmarks.gpu_parts.bench import Bench, apart, finite


def bench(tmp_path):
    return Bench(
        torch.device("cpu"), True, time.monotonic() + 60, tmp_path / "store", io.StringIO()
    )


def lines(of_bench):
    return [json.loads(x) for x in of_bench.answers.getvalue().splitlines()]


def rows(of_bench):
    return {x["row"]: x for x in lines(of_bench) if "row" in x}


def left(of_bench):
    """What a fresh process is to do."""
    return [None, *(x["rest"] for x in lines(of_bench) if "rest" in x)][-1]


def fresh(of_bench):
    """The bench of that process."""
    return replace(of_bench, answers=io.StringIO(), rest=left(of_bench))


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
    assert [name.endswith("graph") for name in found] == 12 * [False] + [True]
    assert left(at) is None
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
            assert ("times_loop" in found[f"{row.name}: {way}"]["figures"]) is (way != "loop")
        assert "no GPU" in found[f"{row.name}: graph"]["note"]
    assert ["graph" in name for name in found] == sorted("graph" in name for name in found)
    assert left(at) is None


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
    locate.find("omniglot")

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


def test_after_a_capture_that_fails_a_fresh_process_takes_the_other_rows(tmp_path):
    done = []

    def fails():
        raise RuntimeError("not while capturing")

    tries = [("a", lambda: done.append("a")), ("b", fails), ("c", lambda: done.append("c"))]
    at = bench(tmp_path)
    at.captures(tries, ms={"loop": 3.0})
    assert done == ["a"] and left(at) == {"row": 2, "ms": {"loop": 3.0}}
    assert rows(at)["b"]["note"] == "RuntimeError: not while capturing"
    again = fresh(at)
    again.captures(tries, ms=again.rest["ms"])
    assert done == ["a", "c"] and left(again) is None and not rows(again)


def test_what_is_left_is_known_before_a_capture_that_may_kill_the_process(tmp_path):
    at, seen = bench(tmp_path), []
    at.captures([("a", lambda: seen.append(left(at))), ("b", lambda: seen.append(left(at)))])
    assert seen == [{"row": 1}, None]


def test_graphs_of_agreement_come_last_and_are_gone_on_with(tmp_path, monkeypatch):
    cases = [agreement.Case(name, "t", engine=engine) for name, engine in
             (("a", "loop"), ("b", "graph"), ("c", "vmap"), ("d", "graph"))]  # fmt: skip
    monkeypatch.setattr(agreement, "CASES", tuple(cases))
    monkeypatch.setattr(agreement, "single", lambda bench, name, tf32: seen.append("float32"))
    seen = []

    def check(bench, case):
        seen.append(case.method)
        if case.method == "b":
            raise RuntimeError("not while capturing")

    monkeypatch.setattr(agreement, "check", check)
    at = bench(tmp_path)
    agreement.run(at)
    assert seen == ["a", "c", "float32", "float32", "b"]
    agreement.run(fresh(at))
    assert seen[5:] == ["d"]


def small(tmp_path, monkeypatch):
    """A bench for one row, each way of which is timed once."""
    monkeypatch.setattr(episodes, "ROWS", (episodes.Row("small", "stride", 1, 1),))
    return replace(bench(tmp_path), until=time.monotonic())


def test_gradients_are_checked_in_float32_and_steps_are_timed_with_tf32(tmp_path, monkeypatch):
    at, seen = small(tmp_path, monkeypatch), []
    right, step = episodes.gradient_of, episodes.Stepper.__call__

    def gradient_of(ctx, method):
        kind = "graph" if ctx.graphs else ctx.engine
        seen.append((kind, torch.backends.cudnn.allow_tf32))
        graphs.append(ctx.graphs)
        return right(ctx, method)

    def stepped(self):
        seen.append(("step", torch.backends.cudnn.allow_tf32))
        step(self)

    graphs = []
    monkeypatch.setattr(episodes, "gradient_of", gradient_of)
    monkeypatch.setattr(episodes.Stepper, "__call__", stepped)
    before = torch.backends.cudnn.allow_tf32
    episodes.run(at)
    assert torch.backends.cudnn.allow_tf32 is before
    assert {x for x in seen if x[0] == "step"} == {("step", True)}
    pair = [False, True]
    ways = [(x, tf32) for x in ("loop", "vmap", "graph", "graph") for tf32 in pair]
    assert [x for x in seen if x[0] != "step"] == [("loop", False), *ways]
    captured = [x for x in graphs if x is not None]
    assert len({id(x) for x in captured}) == len(captured) == 4, "each with its own algorithms"


def test_what_tf32_rounds_is_a_figure_and_no_verdict(tmp_path, monkeypatch):
    right = episodes.gradient_of

    def gradient_of(ctx, method):
        off = 1.0 if not torch.backends.cudnn.allow_tf32 else 1.01
        if ctx.engine == "vmap" and ctx.graphs is None and wrong:
            off *= 1.002
        return {k: v * off for k, v in right(ctx, method).items()}

    monkeypatch.setattr(episodes, "gradient_of", gradient_of)
    for wrong in (False, True):
        at = small(tmp_path, monkeypatch)
        episodes.run(at)
        found = rows(at)
        assert found["small: loop"]["ok"] is True
        assert found["small: loop"]["figures"]["tf32_error"] == pytest.approx(0.01, rel=1e-3)
        assert found["small: vmap"]["ok"] is not wrong
        if wrong:
            assert found["small: vmap"]["figures"]["error"] == pytest.approx(2e-3, rel=0.1)


def test_a_graph_that_fails_leaves_the_other_ways_their_figures(tmp_path, monkeypatch):
    at = small(tmp_path, monkeypatch)

    def broken(f):
        raise RuntimeError("not while capturing")

    monkeypatch.setattr(episodes, "rerun", broken)
    episodes.run(at)
    found = rows(at)
    assert found["small: vmap"]["ok"] is True and found["small: graph"]["ok"] is False
    assert "small: graph, algorithms free" not in found
    monkeypatch.undo()
    small(tmp_path, monkeypatch)
    again = fresh(at)
    episodes.run(again)
    (name,) = rows(again)
    assert name == "small: graph, algorithms free"
    assert rows(again)[name]["figures"]["times_loop"] > 0, "against the first process's loop"


@pytest.mark.parametrize(("version", "downsample", "slow"), [
    ("2.8.0+cu126", "stride", True), ("2.6.0a0", "stride", True), ("2.8.1", "pool", False),
    ("2.9.0", "stride", False), ("2.15.0+cpu", "stride", False), ("3.0", "stride", False),
])  # fmt: skip
def test_an_old_torch_is_named_where_it_is_slow(monkeypatch, version, downsample, slow):
    monkeypatch.setattr(torch, "__version__", version)
    told = episodes.slowed(episodes.Row("x", downsample, 1, 1))
    assert (f"torch {version}: deterministic dilated convolutions" in told) is slow
    assert bool(told) is slow


class OnCuda(Bench):
    """Says that there is a GPU."""

    cuda = True


@pytest.mark.parametrize("moves", [False, True])
def test_a_run_whose_graph_fails_begins_anew_in_a_fresh_process(tmp_path, monkeypatch, moves):
    asked = []

    def run_cell(cell, store, *, engine, listener, **more):
        asked.append(engine)
        listener(Started(cell))
        listener(Progress(cell, 0, 10, 0.0))
        if moves:
            listener(Progress(cell, 1, 10, 0.1))
        failed = engine == "graph"
        return SimpleNamespace(
            status="failed" if failed else "timeout", reason="why", steps=int(moves), key="k" * 64,
            cost={"seconds": 1.0}, attempts=1,
        )  # fmt: skip

    monkeypatch.setattr(omniglot, "run_cell", run_cell)
    at = OnCuda(**vars(bench(tmp_path)))
    omniglot.run(at)
    assert rows(at)["engine graph: failed"]["ok"] is False
    # A run that has taken steps is kept: its checkpoint is the next lease's.
    assert left(at) == (None if moves else {"engine": "vmap"})
    if not moves:
        again = fresh(at)
        omniglot.run(again)
        assert asked == ["graph", "vmap"]
        assert rows(again)["engine vmap: timeout"]["ok"] is True and left(again) is None
