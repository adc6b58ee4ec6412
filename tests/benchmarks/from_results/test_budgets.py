"""Counts of FLOPs and operations against hand counts; tables of what was and would be spent."""

from __future__ import annotations

import dataclasses
import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from optional import needs
from oracles import F64
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from metabench import api
from metabench.contract.context import Context
from metabench.contract.seeds import Seeds
from metabench.core.catalogue import suite_names
from metabench.core.cell import make_cell
from metabench.core.registry import methods, solvers, tasks
from metabench.store.published import RECORDS
from metabench.store.store import Store

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks.from_results import budget_tables, budgets, laptop_budget, paper_budget
from benchmarks.harness import counting, language, records

CPU = torch.device("cpu")
ROWS, INPUTS, OUTPUTS = 7, 5, 3
BUDGET = {"outer_steps": 12, "eval_every": 5, "valid_episodes": 1, "test_episodes": 1}


def both(work):
    """FLOPs by our counter and by PyTorch's own."""
    with counting.Counter() as counter, FlopCounterMode(display=False) as flops:
        work()
    assert counter.cost.flops == flops.get_total_flops()
    return counter.cost


def test_a_linear_layer_forwards_backwards_and_its_hessian_product():
    x, w = torch.randn(ROWS, INPUTS, dtype=F64), torch.randn(INPUTS, OUTPUTS, dtype=F64)
    w.requires_grad_()
    once = 2 * ROWS * INPUTS * OUTPUTS
    forward = both(lambda: x @ w)
    assert forward.flops == once
    assert forward.traffic == 8 * (x.numel() + w.numel() + ROWS * OUTPUTS)
    assert forward.peak == 8 * ROWS * OUTPUTS and forward.ops == 1
    # The gradient in w alone: one more product.
    assert both(lambda: torch.autograd.grad((x @ w).square().sum(), w)).flops == 2 * once
    moved = x.clone().requires_grad_()
    assert both(lambda: torch.autograd.grad((moved @ w).sum(), [w, moved])).flops == 3 * once

    def product():
        (g,) = torch.autograd.grad((x @ w).square().sum(), w, create_graph=True)
        torch.autograd.grad(g, w, torch.ones_like(w))

    # Back through g = 2 x' (x w): the product with x', then that with x.
    assert both(product).flops == 4 * once


def test_a_convolution_in_both_directions():
    images, weights = torch.randn(2, 3, 8, 8, dtype=F64), torch.randn(4, 3, 3, 3, dtype=F64)
    weights.requires_grad_()
    once = 2 * 2 * 4 * 3 * 9 * 64
    assert both(lambda: F.conv2d(images, weights, padding=1)).flops == once
    work = both(lambda: torch.autograd.grad(F.conv2d(images, weights, padding=1).sum(), weights))
    assert work.flops == 2 * once


def cell(name="ridge", called="bilevel", **set_):
    return make_cell(name, called, set={"budget": BUDGET, **set_})


@pytest.mark.parametrize(
    ("settings", "within"),
    [
        ({"inner_steps": 70}, 1e-9),
        ({"inner_steps": 70, "truncate": 12}, 1e-9),
        ({"inner_steps": 60, "mode": "forward"}, 1e-2),
    ],
)
def test_a_long_loop_costs_what_two_short_ones_foretell(settings, within):
    asked = cell(method=settings)
    found, whole = counting.counted(asked), counting._run(asked)
    assert counting._long(asked)
    for name in ("flops", "ops", "traffic"):
        assert getattr(found.step, name) == pytest.approx(getattr(whole.step, name), rel=within)
        for split, (cost, times) in whole.evaluations.items():
            other, n = found.evaluations[split]
            assert n == times
            assert getattr(other, name) == pytest.approx(getattr(cost, name), rel=within)
    assert found.step.peak == pytest.approx(whole.step.peak, rel=0.1)


def test_two_long_loops_and_a_budget_of_gradients():
    budget = {"inner_gradients": 4000, "eval_every": 5, "valid_episodes": 1, "test_episodes": 1}
    settings = {"inner_steps": 60, "terms": 50, "inner_lr": 0.01}
    asked = make_cell("ridge", "ift", set={"method": settings, "budget": budget})
    found, whole = counting.counted(asked), counting._run(asked)
    assert set(counting._long(asked)) == {"inner_steps", "terms"}
    assert found.steps == pytest.approx(whole.steps, rel=1e-9)
    assert found.step.ops == pytest.approx(whole.step.ops, rel=1e-9)


def test_several_episodes_from_one_and_two():
    small = {"queries": 2, "filters": 4, "meta_batch": 4}
    found = counting._run(cell("glyphs", "maml", task=small))
    task, method = tasks.get("glyphs")(**small), methods.get("maml")()

    def spent(engine):
        problem = task.build(Seeds.of(0), CPU)
        if engine == "vmap":  # as on a GPU, for which nothing is derived by hand
            problem.descends_at_once = 0
        ctx = Context(
            problem, solvers.get("sgd")(), Seeds.of(0), task.offers, engine=engine, step=6
        )
        state = method.init(ctx)
        method.step(ctx, state)  # tables of indices are made once a process
        with counting.Counter() as counter:
            method.step(ctx, state)
        return counter.cost

    assert found.step.flops == spent("loop").flops
    together = spent("vmap")
    assert found.step.ops == pytest.approx(together.ops, rel=0.1)
    assert found.step.peak == pytest.approx(together.peak, rel=0.3)


def test_the_budgets_evaluations_and_bytes_are_counted():
    found = counting._run(cell(method={"inner_steps": 3}))
    assert found.steps == 12
    assert found.evaluations["valid"][1] == 1 + 3 and found.evaluations["test"][1] == 1
    assert found.state_bytes >= 8 * 10 and found.data_bytes > 0


def by_hand(
    known: language.Sizes,
    tokens: int,
    read: int = 1,
    *,
    before: int = 0,
    rank: int = 0,
    backward: bool = False,
) -> float:
    """FLOPs of one text of so many tokens after ``before`` others, the vocabulary gone
    through for ``read`` of them; ``rank``: a delta beside every linear map; ``backward``: the
    gradient in the deltas too.

    The frozen maps are passed back through once, for what came in; a delta twice; of attention
    each of two products twice. In the first layer nothing came in that has a derivative.
    """
    maps = known.maps.values()
    frozen = 2 * tokens * sum(a * b for a, b in maps)
    delta = 2 * tokens * rank * sum(a + b for a, b in maps)
    attention = 4 * tokens * (before + tokens) * known.width
    head = 2 * read * known.vocabulary * known.width
    total = known.layers * (frozen + delta + attention) + head
    if backward:
        total += known.layers * (frozen + 2 * delta + 2 * attention) + head
        first = [known.maps[name] for name in "qkv"]
        total -= 2 * tokens * sum(a * b + rank * a for a, b in first)
    return float(total)


@pytest.mark.parametrize("form", ["functional", "peft"])
@pytest.mark.parametrize("width", [16, 32])
def test_a_language_model_by_formula(width, form):
    needs("transformers")
    if form == "peft":
        needs("peft")
    known = language.Sizes("made up", 2, width, 3 * width, 4, 2, 100, tied=True)
    every = list(known.maps)
    with language.traced():
        lm = language.built(known, torch.float32, form)
        pieces = language.Pieces(known, lm, torch.float32)
        trained = pieces.trained(3, 20, None, language.deltas(known, 4, every, 1))
        judged = pieces.judged(2, 20, [], read=5)
        writer = [lm.adapter(language.deltas(known, 4, every), 1.0)]
        written = pieces.written(2, 10, 4, writer, shared=True)
        numbers = sum(lm.linear(i, name).numel() for i in range(2) for name in every)
    assert trained.flops == 3 * by_hand(known, 20, 19, rank=4, backward=True)
    assert judged.flops == 2 * by_hand(known, 20, 5)
    token = by_hand(known, 1, 1, before=12, rank=4)
    assert written.flops == by_hand(known, 10, 1, rank=4) + 4 * 2 * token
    assert known.parameters == numbers + 5 * width + 100 * width


def test_steps_on_one_document_cost_the_flops_of_a_step_on_all(monkeypatch):
    needs("transformers")
    known = language.Sizes("made up", 1, 16, 48, 4, 2, 100, tied=True)
    monkeypatch.setitem(language.MODELS, "made up", known)
    sizes = {"documents": 4, "documents_at_once": 3, "edit_tokens": 24, "sample_tokens": 12}

    def cost(size):
        cell = make_cell("self_edit_policy", "restem", set={
            "task": {**sizes, "model": "made up", "documents_a_step": size},
            "method": {"samples": 1}, "budget": {"outer_steps": 1},
        })  # fmt: skip
        return language.counted(cell)[0].step

    whole, one, two = cost(None), cost(1), cost(2)
    # Solvers are not matrix products: what is left is the same work, in more pieces.
    assert one.flops == two.flops == whole.flops > 0
    assert one.ops > two.ops > whole.ops


def test_the_sizes_of_the_papers_models_come_to_their_names():
    # 7.6 and 1.24 billion, as their cards say.
    assert language.sizes("Qwen/Qwen2.5-7B-Instruct").parameters == 7_615_616_512
    assert language.sizes("meta-llama/Llama-3.2-1B").parameters == 1_235_814_400


@pytest.fixture(scope="module")
def plan():
    """Every different cost of all suites."""
    return paper_budget.planned()


def test_every_suite_has_a_family_and_every_cost_its_place(plan):
    assert all(budget_tables.family(name) for name in suite_names())
    with pytest.raises(KeyError, match="no family"):
        budget_tables.family("other")
    assert len({same.id for same in plan}) == len(plan)
    assert {same.suite for same in plan} >= {"seal-knowledge", "maml-miniimagenet", "pretrain-ppi"}
    assert not {"crossing", "pbgd-hypercleaning-f1"} & {same.suite for same in plan}


def test_a_suite_that_shows_anothers_cells_has_its_records():
    left = laptop_budget.unmeasured({"augmentation", "pretrain-synthetic"})
    assert not {"augmentation", "augmentation-law", "pretrain-synthetic-weights"} & set(left)
    assert {"loss-learning", "seal-knowledge-likelihood"} <= set(left)


def test_what_cannot_change_a_cost_is_no_different_cost():
    one, other = (cell(method={"inner_lr": lr}) for lr in (0.1, 0.2))
    assert paper_budget.cost_key(one) == paper_budget.cost_key(other)
    assert paper_budget.cost_key(one) != paper_budget.cost_key(cell(method={"inner_steps": 6}))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of a suite as they are committed."""
    root = tmp_path_factory.mktemp("results")
    store = Store(root / "runs")
    api.run("closed-form", budget="smoke", only=["fixed", "truncated"], store=store)
    api.publish("closed-form", budget="smoke", store=store, out=root / "closed-form" / "laptop")
    return root, store


def test_committed_records(results, tmp_path):
    root, store = results
    found = records.committed(root / "closed-form" / "laptop")
    assert {k: r.outcome() for k, r in found.items()} == {
        r.key: r.outcome() for r in store.records()
    }
    assert all(r.environment["threads"] for r in found.values())
    assert records.committed(tmp_path / "nothing") == {}
    with gzip.open(tmp_path / RECORDS, "wt") as file:
        file.write(json.dumps({"cell": {}}) + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl\.gz: line 1: "):
        records.committed(tmp_path)


def test_the_laptop_table(results, tmp_path, capsys):
    root, store = results
    assert budgets.main(["laptop", "--results", str(root), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "laptop.json").read_text())
    (row,), (total,) = found["suites"], found["families"]
    records = list(store.records())
    assert row["cells"] == total["cells"] == len(records) == 6
    seconds = [r.cost["seconds"] + r.cost["evaluation_seconds"] for r in records]
    assert row["longest_seconds"] == max(seconds)
    assert row["core_seconds"] == pytest.approx(sum(seconds))
    assert row["peak_memory_bytes"] == max(r.cost["peak_memory_bytes"] for r in records)
    rates = [r.steps / r.cost["seconds"] for r in records if r.steps]
    assert min(rates) <= row["steps_a_second"] <= max(rates)
    text = (tmp_path / "laptop.md").read_text()
    assert (
        text.startswith("`python -m benchmarks.from_results.budgets laptop")
        and "| mathematics" in text
    )
    assert "No records of: augmentation" in text and "closed-form." not in text


def test_failed_cells_are_no_costs(results):
    records = list(results[1].records())
    failed = [dataclasses.replace(r, status="failed") for r in records]
    found = laptop_budget.spent([*records, *failed])
    assert found == laptop_budget.spent(records)
    assert laptop_budget.spent(failed)["median_seconds"] is None


def test_the_paper_table_goes_on_and_is_priced_anew(plan, tmp_path, monkeypatch, capsys):
    some = [s for s in plan if s.suite == "closed-form" and s.columns == ("ridge",)]
    monkeypatch.setattr(paper_budget, "planned", lambda: some[:2])
    out = ["--out", str(tmp_path)]
    assert budgets.main(["paper", "--minutes", "0", *out]) == 0
    assert "Not counted yet" in (tmp_path / "paper.md").read_text()
    budgets.main(["paper", *out])
    first = json.loads((tmp_path / "paper.json").read_text())
    text = (tmp_path / "paper.md").read_text()
    assert "ESTIMATE" in text and "Not counted yet" not in text and "10 microseconds" in text
    monkeypatch.setattr(paper_budget, "count", lambda cell: pytest.fail("counted twice"))
    budgets.main(["paper", "--op-us", "20", "--card", "another", *out])
    second = json.loads((tmp_path / "paper.json").read_text())
    assert first["counts"] == second["counts"]
    for a, b in zip(first["rows"], second["rows"], strict=True):
        assert a["bound"] == "launches" and b["hours"] == pytest.approx(2 * a["hours"])
        assert a["cells"] == 10 and a["flops"] == b["flops"] and a["memory_bytes"] > 0


def test_a_cell_that_cannot_be_counted_is_told(plan, tmp_path, monkeypatch, capsys):
    some = [s for s in plan if s.suite == "closed-form"][:1]
    monkeypatch.setattr(paper_budget, "planned", lambda: some)

    def broken(cell):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(counting, "counted", broken)
    assert budgets.main(["paper", "--out", str(tmp_path)]) == 0
    assert "RuntimeError: no such thing" in (tmp_path / "paper.md").read_text()


@pytest.mark.parametrize("name", ["miniimagenet", "cifar100", "ptbxl", "ppi_bio"])
def test_stand_ins_have_the_readers_forms(name, monkeypatch, tmp_path):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    small = {
        "miniimagenet": ("miniimagenet", {"filters": 2}),
        "cifar100": ("pretrain_multitask", {"source": "torchvision", "n_tasks": 2, "width": 2}),
        "ptbxl": ("pretrain_ptbxl", {"window": 32, "width": 2, "n_test": 10}),
        "ppi_bio": ("pretrain_ppi", {"width": 2, "layers": 1, "n_tune": 4, "n_valid": 4}),
    }
    called, settings = small[name]
    task = tasks.get(called)(**settings)
    assert counting.absent(task) == [name]
    with counting.stand_ins([name]):
        problem = task.build(Seeds.of(0), CPU)
        lam = problem.init_outer()
        episode = problem.episode("train", 0)
        loss = problem.outer_loss(lam, problem.init_inner(lam, episode), episode.outer)
    assert bool(torch.isfinite(loss))
