"""Running one cell: loop, budget, selection, evaluation, guards, checkpoints."""

import errno
import json
import math
import os
import re
import statistics
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import scipy.stats
import torch
from torch import Tensor

from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Context, State
from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core import registry
from metabench.core.cell import Cell, make_cell
from metabench.core.costs import COUNT_NAMES, CUT_STEP, PRICED
from metabench.core.environment import provenance
from metabench.core.errors import (
    Diverged,
    Held,
    NotApplicable,
    Stopped,
    UnknownName,
)
from metabench.hypergradients import unrolled
from metabench.run import determinism, learning_curve, loop
from metabench.run.attempts import attempt, checkpoint
from metabench.run.evaluation import estimate
from metabench.run.events import (
    Event,
    Finished,
    Interrupted,
    Progress,
    Quarantined,
    Started,
)
from metabench.run.runner import run_cell
from metabench.store.cell_folder import CHECKPOINT, RECORD
from metabench.store.record import curve_outcome
from metabench.store.store import QUARANTINE, Store

OFFERS = frozenset({"outer_gradient", "second_order", "lam_in_inner_loss", "episodes"})


class Noisy(Problem):
    """Episodes that differ: inner |w - lam - noise|^2, outer |w - target|^2."""

    evaluations = ("test", "official")
    seen: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, task: "NoisyTask", seeds: Seeds) -> None:
        self.task, self.seeds = task, seeds
        self.episodes_per_step = task.meta_batch

    def init_outer(self) -> Params:
        return {"lam": torch.zeros(self.task.dim, dtype=torch.float64)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        return {"w": torch.zeros(self.task.dim, dtype=torch.float64)}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        return (theta["w"] - lam["lam"] - batch["x"]).square().sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        return (theta["w"] - batch["y"]).square().sum()

    def episode(self, split: str, index: int) -> Episode:
        self.seen.append((split, index))
        gen = generator(self.seeds.batches, split, index)
        x, y = torch.randn(2, self.task.dim, generator=gen, dtype=torch.float64)
        return Episode({"x": x}, {"y": (1 if split == "selection" else 3) + 0.1 * y}, index)

    def count(self, split: str) -> int | None:
        return 7 if split == "official" else None

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        loss = float(self.outer_loss(lam, theta, episode.outer))
        return {"loss": loss, "index": float(episode.index)}


@dataclass(frozen=True)
class NoisyTask(Task):
    dim: int = 3
    meta_batch: int = 1
    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    data: ClassVar[tuple[str, ...]] = ()
    offers: ClassVar[frozenset[str]] = OFFERS
    lacks_selection: ClassVar[None] = None

    def build(self, seeds: Seeds, device: torch.device) -> Problem:
        return Noisy(self, seeds)


@dataclass(frozen=True)
class Scripted(GradientMethod):
    """Does at outer step ``at`` what ``do`` says; otherwise lam = lam + 1, with some randomness
    that a resumed run must repeat."""

    do: str = "nothing"
    at: int = 5
    needs: ClassVar[frozenset[str]] = frozenset()
    hooks: ClassVar[dict[str, Callable[[], None]]] = {}

    def init(self, ctx: Context) -> State:
        return State(ctx.problem.init_outer(), None, {"log": [], "name": "x", "n": {"k": 1.5}})

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        ctx.notes.setdefault("first", ctx.step)
        ctx.meter.add(inner_gradients=2)
        log = {"outer_loss": float(ctx.step), "noise": float(torch.rand(()))}
        lam = {k: v + 1 for k, v in state.lam.items()}
        if ctx.step == self.at:
            if self.do == "nan lam":
                lam["lam"][1] = math.nan
            elif self.do == "inf loss":
                log["outer_loss"] = math.inf
            elif self.do == "diverged":
                raise Diverged("no way out")
            elif self.do == "error":
                raise RuntimeError("a bug")
            elif self.do == "idle":
                return state, {}
            elif self.do in self.hooks:
                self.hooks[self.do]()
        memory = {**state.memory, "log": [*state.memory["log"], ctx.step]}
        return State(lam, None, memory), log


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for names, name, cls in (
        (registry.tasks, "noisy", NoisyTask),
        (registry.methods, "scripted", Scripted),
    ):
        names.register(name)(cls)
    monkeypatch.setattr(Scripted, "hooks", {})
    Noisy.seen.clear()
    yield
    registry.tasks._classes.pop("noisy")
    registry.methods._classes.pop("scripted")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def scripted(do: str = "nothing", at: int = 5, task: dict | None = None, **budget: Any) -> Cell:
    budget = {"outer_steps": 10, "eval_every": 4, "valid_episodes": 5, "test_episodes": 6, **budget}
    return make_cell(
        "noisy",
        "scripted",
        seed=3,
        set={"method": {"do": do, "at": at}, "task": task or {}, "budget": budget},
    )


def same(a: Store, b: Store, key: str) -> None:
    """Two stores hold the same outcome of a cell, to the last bit."""
    one, two = a.get(key), b.get(key)
    assert one is not None and two is not None
    assert one.outcome() == two.outcome()
    assert curve_outcome(a.curve(one)) == curve_outcome(b.curve(two))
    lams = a.lam(one), b.lam(two)
    assert (lams[0] is None) == (lams[1] is None)
    if lams[0] is not None and lams[1] is not None:
        assert lams[0].keys() == lams[1].keys()
        assert all(lams[0][k].tobytes() == lams[1][k].tobytes() for k in lams[0])


def test_the_curve_has_a_row_at_the_start_at_intervals_and_at_the_end(store: Store) -> None:
    record = run_cell(scripted(), store)
    curve = store.curve(record)
    assert record.status == "done" and record.steps == 10
    assert curve["step"] == [0, 4, 8, 10]
    assert curve["train/outer_loss"] == [None, 1.5, 5.5, 8.5]
    assert curve["cost/inner_gradients"] == [0, 8, 16, 20]
    assert curve["lam/lam[2]"] == [0, 4, 8, 10]
    assert {f"cost/{name}" for name in COUNT_NAMES} | {"cost/seconds"} <= curve.keys()
    assert len({len(column) for column in curve.values()}) == 1


def test_selection_is_by_validation_and_test_comes_last(store: Store) -> None:
    record = run_cell(scripted(eval_every=1), store)
    curve = store.curve(record)
    # One inner step of size 0.1 goes a fifth of the way to lam: with five steps the loss is least
    # for lam near 4.5.
    best = min(range(len(curve["step"])), key=lambda i: curve["valid/loss"][i])
    assert 0 < best < 10 and record.selected_step == curve["step"][best]
    assert record.metrics["valid"]["loss"].mean == curve["valid/loss"][best]
    assert record.lam["values"] == {"lam": [float(record.selected_step)] * 3}
    last_valid = max(i for i, (split, _) in enumerate(Noisy.seen) if split == "valid")
    tests = [(i, s, k) for i, (s, k) in enumerate(Noisy.seen) if s in ("test", "official")]
    assert all(i > last_valid for i, _, _ in tests)
    assert [k for _, s, k in tests if s == "test"] == list(range(6))
    assert [k for _, s, k in tests if s == "official"] == list(range(6))
    last = run_cell(scripted(eval_every=1, select="last"), store)
    assert last.selected_step == 10 and last.lam["values"] == {"lam": [10.0] * 3}


def test_selection_by_examples_that_the_outer_loss_does_not_see(store: Store) -> None:
    record = run_cell(scripted(eval_every=1, select="best_selection"), store)
    curve, other = store.curve(record), run_cell(scripted(eval_every=1), store)
    best = min(range(len(curve["step"])), key=lambda i: curve["selection/loss"][i])
    assert 0 < best < 10 and record.selected_step == curve["step"][best] < other.selected_step
    assert record.metrics["selection"]["loss"].mean == curve["selection/loss"][best]
    assert record.metrics["valid"]["loss"].mean == curve["valid/loss"][best]
    assert curve["valid/loss"] == store.curve(other)["valid/loss"]
    assert "selection" not in other.metrics and "selection/loss" not in store.curve(other)
    assert [k for split, k in Noisy.seen if split == "selection"] == [*range(5)] * 11


def test_no_more_episodes_than_there_are(store: Store) -> None:
    record = run_cell(scripted(test_episodes=50), store)
    assert record.metrics["test"]["loss"].n == 50
    assert record.metrics["official"]["loss"].n == 7
    assert record.metrics["official"]["index"].mean == 3.0


def test_estimates_are_t_intervals() -> None:
    values = [0.2, 0.4, 0.9, 0.1]
    got = estimate(values)
    low, high = scipy.stats.t.interval(
        0.95, 3, statistics.mean(values), statistics.stdev(values) / 2
    )
    assert got.mean == pytest.approx(0.4) and got.n == 4
    assert got.std == pytest.approx(statistics.stdev(values))
    assert got.ci95 == pytest.approx((high - low) / 2)
    assert estimate([2.0]) == replace(got, mean=2.0, n=1, std=None, ci95=None)


def test_what_a_method_reports_of_its_state_stands_with_the_metrics(store: Store) -> None:
    settings = {
        "task": {"table": "synthetic", "questions": 20},
        "method": {"inner_steps": 0},
        "budget": {"outer_steps": 4, "eval_every": 2, "select": "last"},
    }
    record = run_cell(make_cell("rag_squad", "ucb", set=settings), store)
    found, curve = record.metrics["test"], store.curve(record)
    assert found["cumulative_regret"].n == 1
    assert found["cumulative_regret"].mean == pytest.approx(4 * found["mean_regret"].mean)
    assert curve["valid/cumulative_regret"][0] is None  # nothing has been pulled
    assert curve["valid/cumulative_regret"][1] < curve["valid/cumulative_regret"][2]


def test_both_numbers_of_inner_steps_are_reported() -> None:
    settings = {"inner_steps": 2, "test_steps": 9}
    budget = {"outer_steps": 3, "test_episodes": 4}
    cell = make_cell("noisy", "bilevel", set={"method": settings, "budget": budget})
    metrics = run_cell(cell).metrics
    assert metrics.keys() == {"valid", "test", "test@2_steps", "official", "official@2_steps"}
    assert metrics["test"] != metrics["test@2_steps"]
    plain = make_cell("noisy", "bilevel", set={"method": {"inner_steps": 2}, "budget": budget})
    assert run_cell(plain).metrics["test"]["loss"] == metrics["test@2_steps"]["loss"]


def test_pictures_of_the_first_test_episode_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tested state, as bytes; they cost nothing, and a task without any adapts no more."""

    def pictures(self: Noisy, lam: Params, theta: Params, episode: Episode) -> Params:
        shown = torch.tensor([[-1.0, 0.5, 2.0, float(lam["lam"][0]) / 255]])
        return {"shown": shown, "episode": torch.full((2, 1), episode.index / 255)}

    without = run_cell(scripted(), store=Store(store.root / "other"))
    assert Store(store.root / "other").pictures(without) == {}
    monkeypatch.setattr(Noisy, "pictures", pictures)
    record = run_cell(scripted(select="last"), store=store)
    found = store.pictures(record)
    assert record.status == "done" and record.cost["inner_gradients"] == 20
    assert str(found["shown"].dtype) == "uint8" and found["shown"].tolist() == [[0, 128, 255, 10]]
    assert found["episode"].tolist() == [[0], [0]]


def test_evaluation_costs_nothing() -> None:
    method = {"inner_steps": 2, "memory": "graph"}  # "auto" measures one step, and counts it
    set_ = {"method": method, "budget": {"outer_steps": 3, "eval_every": 1}}
    record = run_cell(make_cell("noisy", "bilevel", set=set_))
    assert record.cost["inner_gradients"] == 6 and record.cost["outer_gradients"] == 3
    assert record.cost["seconds"] > 0 and record.cost["evaluation_seconds"] > 0
    assert record.cost["peak_memory_bytes"] > 1e7


def test_a_finite_number_that_is_no_result_is_noted() -> None:
    chosen = {"method": {"inner_lr": 1e9, "inner_steps": 5}, "budget": {"outer_steps": 0}}
    record = run_cell(make_cell("ridge", "fixed", set=chosen))
    assert record.status == "done" and record.metrics["test"]["loss"].mean > 1e15
    assert "finite, but the inner training has run away" in record.notes["runaway"]
    chosen["method"] = {"inner_lr": 1e9, "inner_steps": 8}
    record = run_cell(make_cell("ridge", "fixed", set=chosen))
    assert record.status == "diverged"
    assert re.fullmatch(r"loss on episode 0 of 'valid' is \d\.\d+e\+1\d\d", record.reason)
    chosen["method"]["inner_lr"] = 0.1
    assert "runaway" not in run_cell(make_cell("ridge", "fixed", set=chosen)).notes


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"outer_steps": 0}, 0),
        ({"outer_steps": None, "inner_gradients": 9}, 4),
        ({"outer_steps": None, "inner_gradients": 1}, 0),
        ({"outer_steps": None, "inner_gradients": 8}, 4),
        ({"outer_steps": 3, "inner_gradients": 9}, 3),
        ({"outer_steps": None, "seconds": 1e-9}, 1),
        ({"outer_steps": None, "hvps": 1}, loop.IDLE_STEPS),
    ],
)
def test_the_first_limit_reached_ends_the_run(limits: dict, steps: int) -> None:
    record = run_cell(scripted(eval_every=500, **limits))
    assert record.status == "done"
    if "seconds" in limits:
        assert record.steps <= steps
    else:
        assert record.steps == steps
    assert ("ended" in record.notes) == ("hvps" in limits)
    cut = {4: 5, 0: 1}.get(steps) if limits.get("inner_gradients") in (1, 9) else None
    assert record.notes.get(CUT_STEP) == (cut if "outer_steps" in limits else None)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"seconds": 1e6}, 12),  # ended by the script: nothing else is near
        ({"hvps": 1}, 3),
    ],
)
def test_a_step_is_idle_only_if_no_limit_comes_nearer(
    limits: dict, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "IDLE_STEPS", 3)
    record = run_cell(scripted("error", 12, outer_steps=None, eval_every=500, **limits))
    assert record.steps == steps
    assert record.status == ("failed" if steps == 12 else "done")


@pytest.mark.parametrize("how", [{}, {"workers": 3}, {"engine": "vmap"}])
def test_a_step_beyond_the_budget_is_as_if_it_had_not_begun(how: dict, tmp_path: Path) -> None:
    def run(**limits: int | None) -> Any:
        budget = {"eval_every": 2, "test_episodes": 4, **limits}
        chosen = {"task": {"meta_batch": 4}, "method": {"inner_steps": 5}, "budget": budget}
        cell = make_cell("noisy", "bilevel", set=chosen)
        return run_cell(cell, Store(tmp_path / cell.key), **how)

    whole, longer = run(outer_steps=3), run(outer_steps=4)
    spent = whole.cost["inner_gradients"]
    cut = run(outer_steps=None, inner_gradients=longer.cost["inner_gradients"] - 1)
    exact = run(outer_steps=None, inner_gradients=spent)
    assert cut.steps == exact.steps == 3 and cut.cost["inner_gradients"] == spent
    assert cut.metrics == exact.metrics == whole.metrics
    assert cut.notes == {**whole.notes, CUT_STEP: 4} and CUT_STEP not in exact.notes


@pytest.mark.parametrize("how", [{}, {"workers": 3}, {"engine": "vmap"}])
def test_a_cost_ends_a_run_and_says_when_to_look(how: dict, tmp_path: Path) -> None:
    """Prices 1, 3 and 0.5 of inner and outer gradients and Hessian products, 0 of the rest."""
    prices = {"inner_gradients": 1.0, "outer_gradients": 3.0, "hvps": 0.5, "mixed_products": 0.0}

    def run(**limits: Any) -> tuple[Any, Any]:
        budget = {"test_episodes": 4, **limits}
        chosen = {"task": {"meta_batch": 4}, "method": {"inner_steps": 5}, "budget": budget}
        cell = make_cell("noisy", "bilevel", set=chosen)
        store = Store(tmp_path / cell.key)
        record = run_cell(cell, store, **how)
        return record, store.curve(record)

    whole, _ = run(outer_steps=6, eval_every=1)
    a_step = sum(whole.cost[name] * price for name, price in prices.items()) / 6
    assert a_step > 20
    cut, curve = run(cost=6 * a_step + 1, prices=prices, eval_every_cost=2.5 * a_step)
    assert cut.steps == 6 and cut.notes[CUT_STEP] == 7
    assert curve["step"] == [0, 3, 5, 6]
    exact, curve = run(cost=6 * a_step, prices=prices, eval_every_cost=100 * a_step)
    assert exact.steps == 6 and curve["step"] == [0, 6]
    assert cut.notes == {**exact.notes, CUT_STEP: 7}


@pytest.mark.parametrize(
    ("method", "budget", "lacks"),
    [
        ("bilevel", {"cost": 90.0}, "outer_gradients"),
        ("ift", {"cost": 900.0}, "hvps"),
        ("bilevel", {"outer_steps": 3, "eval_every_cost": 5.0}, "outer_gradients"),
    ],
)
def test_what_has_no_price_is_a_failure_that_names_it(
    tmp_path: Path, method: str, budget: dict[str, Any], lacks: str
) -> None:
    """A run that could not pay for a step of unknown cost would be "done" after none."""
    prices = dict.fromkeys(PRICED, 1.0)
    budget = {**budget, "prices": {k: v for k, v in prices.items() if k != lacks}}
    cell = make_cell("noisy", method, set={"budget": budget})
    record = run_cell(cell, Store(tmp_path))
    assert record.status == "failed" and record.metrics == {}
    said = f"{method} on noisy uses {lacks}, which has no price in it; to measure it: metabench"
    assert said in record.reason
    cell = make_cell("noisy", method, set={"budget": {**budget, "prices": prices}})
    assert run_cell(cell, Store(tmp_path)).status == "done"


@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ("nan lam", "diverged", "lam is not finite after outer step 5 (in lam)"),
        ("inf loss", "diverged", "the outer loss at outer step 5 is inf"),
        ("diverged", "diverged", "no way out"),
        ("error", "failed", "RuntimeError: a bug"),
    ],
)
def test_what_goes_wrong_is_a_record_without_numbers(
    store: Store, do: str, status: str, reason: str
) -> None:
    record = run_cell(scripted(do), store, checkpoint_seconds=0)
    assert (record.status, record.reason) == (status, reason)
    assert record.metrics == {} and record.lam == {} and record.selected_step is None
    assert record.steps == 5 and record.cost["inner_gradients"] == 10
    assert ("a bug" in record.traceback) == (do == "error")
    assert store.get(record.key) == record and store.curve(record)["step"] == [0, 4]
    assert os.listdir(store.folder(record.key)).count(CHECKPOINT) == 0
    again = run_cell(scripted(do), store)
    assert again.attempts == 2 and again.outcome() == record.outcome()


def test_a_metric_that_is_no_number_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Noisy, "metrics", lambda self, lam, theta, episode: {"loss": 0.0, "x": math.nan}
    )
    record = run_cell(scripted())
    assert (record.status, record.reason) == ("diverged", "x on episode 0 of 'valid' is nan")


def test_a_task_without_its_own_metric_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noisy, "metrics", lambda self, lam, theta, episode: {"los": 0.0})
    record = run_cell(scripted())
    assert record.status == "failed" and "'loss'; near: los" in record.reason


def test_what_does_not_apply_is_refused_before_anything_is_made(store: Store) -> None:
    cell = make_cell("ridge", "maml", set={"budget": {"outer_steps": 1}})
    with pytest.raises(NotApplicable, match="initial value"):
        run_cell(cell, store)
    assert not store.root.exists()


def test_a_finished_cell_is_not_run_again(store: Store) -> None:
    events: list[Event] = []
    first = run_cell(scripted(), store)
    assert run_cell(scripted(), store, listener=events.append) == first
    assert events == [Finished(first, reused=True)]


def test_a_cell_that_is_held_is_not_run(store: Store) -> None:
    with store.lease(scripted().key), pytest.raises(Held, match=str(os.getpid())):
        run_cell(scripted(), store)


def test_a_run_whose_lease_is_taken_ends_without_a_record(store: Store) -> None:
    cell = scripted("steal")

    def steal() -> None:
        (store.folder(cell.key) / "claim.json").write_text("{}")

    Scripted.hooks["steal"] = steal
    with pytest.raises(Held, match="taken"):
        run_cell(cell, store, checkpoint_seconds=0)
    assert store.get(cell.key) is None


def test_events_tell_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "PROGRESS_SECONDS", 0.0)
    events: list[Event] = []
    record = run_cell(scripted(), listener=events.append)
    assert events[0] == Started(scripted(), 0) and events[-1] == Finished(record)
    progress = [e for e in events if isinstance(e, Progress)]
    assert {e.phase for e in progress} == {"training", "validation", "test", "official"}
    training = [e for e in progress if e.phase == "training"]
    assert [e.fraction for e in training] == [i / 10 for i in range(10)]
    assert training[3].latest["outer_loss"] == 1.0


def test_an_error_of_the_listener_is_not_the_cells(store: Store) -> None:
    def broken(event: Event) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        run_cell(scripted(), store, listener=broken)
    assert store.get(scripted().key).status == "done"


def test_the_record_says_what_it_ran_on(store: Store) -> None:
    record = run_cell(scripted(), store)
    about = record.environment
    assert about["versions"]["torch"] == torch.__version__
    assert {"host", "processor", "cores", "memory_bytes"} <= about["machine"].keys()
    assert (about["device"], about["engine"], about["threads"]) == ("cpu", "loop", 1)
    assert record.seeds == vars(Seeds.of(3)) and record.notes == {"first": 0}
    assert record.started <= record.ended


def test_git_state_is_of_the_checkout_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "core" / "environment" / "provenance.py")
    )
    assert provenance.git() == {}
    note = {"sha256": "of a snapshot", "commit": "abc", "dirty": False}
    (tmp_path / provenance.NOTE).write_text(json.dumps(note))
    assert provenance.git() == note


# Independence of everything but the cell


def test_threads_and_global_generators_change_nothing(tmp_path: Path) -> None:
    cell = make_cell(
        "noisy", "bilevel", set={"task": {"meta_batch": 4}, "budget": {"outer_steps": 5}}
    )
    stores = [Store(tmp_path / name) for name in "ab"]
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    first = run_cell(cell, stores[0], workers=1)
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    second = run_cell(cell, stores[1], workers=3)
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads
    assert (first.environment["workers"], second.environment["workers"]) == (1, 3)
    same(*stores, cell.key)


def test_batched_episodes_give_what_the_loop_gives(tmp_path: Path) -> None:
    cell = make_cell(
        "noisy",
        "bilevel",
        set={"task": {"meta_batch": 4}, "budget": {"outer_steps": 5, "test_episodes": 10}},
    )
    a, b = run_cell(cell, engine="loop"), run_cell(cell, engine="vmap")
    assert b.environment["engine"] == "vmap"
    assert {k: a.cost[k] for k in COUNT_NAMES} == {k: b.cost[k] for k in COUNT_NAMES}
    assert a.metrics["test"]["loss"].n == b.metrics["test"]["loss"].n == 10
    assert a.metrics["test"]["loss"].mean == pytest.approx(b.metrics["test"]["loss"].mean, 1e-10)


def test_an_engine_that_is_not_there_is_named(tmp_path: Path) -> None:
    store, one = Store(tmp_path), make_cell("ridge", "fixed", set={"budget": {"outer_steps": 1}})
    with pytest.raises(UnknownName, match="no engine 'vamp'; near: vmap; known: auto, graph"):
        run_cell(one, store, engine="vamp")
    assert store.get(one.key) is None


# Checkpoints

CHARGED = {
    "charge_looks": True,
    "cost": 400.0,
    "eval_every_cost": 30.0,
    "prices": {
        "inner_gradients": 1.0, "outer_gradients": 1.0, "hvps": 1.0, "mixed_products": 1.0,
        "function_evaluations": 0.5,
    },
}  # fmt: skip
CROSSINGS = [
    ("quadratic", "bilevel", {"task": {"dim": 4}, "method": {"outer_solver": "momentum"}}),
    ("quadratic", "maml", {"task": {"formulation": "init", "dim": 3}}),
    ("quadratic", "reptile", {"task": {"formulation": "init"}}),
    ("ridge", "bilevel", {"task": {"carried": True}, "solver": {}}),
    ("ridge", "random", {"method": {"inner_steps": 3}}),
    ("ridge", "fixed", {"task": {"carried": True}}),
    ("noisy", "bilevel", {"task": {"meta_batch": 3}}),
    ("noisy", "scripted", {}),
    ("noisy", "bilevel", {"task": {"meta_batch": 3}, "budget": {"inner_gradients": 1000}}),
    ("noisy", "bilevel", {"budget": {"select": "best_selection"}}),
    ("noisy", "bilevel", {"budget": CHARGED}),
    ("ridge", "fixed", {"task": {"carried": True}, "budget": CHARGED | {"cost": 1e6}}),
]


@pytest.mark.parametrize(("task", "method", "set_"), CROSSINGS)
def test_a_run_stopped_anywhere_ends_as_if_undisturbed(
    tmp_path: Path, task: str, method: str, set_: dict
) -> None:
    budget = {"outer_steps": 9, "eval_every": 4, "valid_episodes": 3, "test_episodes": 40}
    budget |= set_.get("budget", {})
    cell = make_cell(task, method, solver="momentum", set={**set_, "budget": budget})
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    run_cell(cell, whole)
    asked = stops = 0
    while True:
        asked += 1
        left = iter(range(asked % 3 + 1))  # every attempt gets a few looks further
        try:
            record = run_cell(cell, pieces, stop=lambda left=left: next(left, None) is None)
            break
        except Stopped:
            stops += 1
            assert (pieces.folder(cell.key) / CHECKPOINT).exists()
        assert stops < 60
    assert stops > 2 and record.attempts == stops + 1
    resumed = record.environment["resumed"]
    assert [r["step"] for r in resumed] == sorted(r["step"] for r in resumed)
    same(whole, pieces, cell.key)
    assert record.notes == whole.get(cell.key).notes
    assert set(os.listdir(pieces.folder(cell.key))) == {RECORD, *record.files}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("task", "method", "set_"), CROSSINGS[:6])
def test_on_a_gpu_a_stopped_run_ends_as_if_undisturbed(
    tmp_path: Path, task: str, method: str, set_: dict
) -> None:
    budget = {"outer_steps": 9, "eval_every": 4}
    cell = make_cell(task, method, solver="momentum", set={**set_, "budget": budget})
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    record = run_cell(cell, whole, device="cuda")
    assert record.status == "done" and record.cost["peak_device_memory_bytes"] > 0
    for looks in (3, 6):
        left = iter(range(looks))
        with pytest.raises(Stopped):
            run_cell(cell, pieces, device="cuda", stop=lambda left=left: next(left, None) is None)
    run_cell(cell, pieces, device="cuda")
    same(whole, pieces, cell.key)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_keeps_the_last_step_boundary(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    cell = scripted("interrupt", at=6)
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    Scripted.hooks["interrupt"] = lambda: None
    run_cell(cell, whole)

    def interrupt() -> None:
        raise kind

    Scripted.hooks["interrupt"] = interrupt
    events: list[Event] = []
    with pytest.raises(kind):
        run_cell(cell, pieces, listener=events.append)
    assert events[-1] == Interrupted(cell, 6)
    Scripted.hooks["interrupt"] = lambda: None
    run_cell(cell, pieces, listener=events.append)
    assert [e.step for e in events if isinstance(e, Started)] == [0, 6]
    same(whole, pieces, cell.key)


def test_a_step_that_is_cut_off_leaves_no_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory mode is measured in the first step, and counted: a resumed run does so again."""
    budget = {"outer_steps": 2, "eval_every": 1, "valid_episodes": 1, "test_episodes": 1}
    cell = make_cell("ridge", "bilevel", set={"budget": budget})
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    run_cell(cell, whole)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(unrolled, "_whole_graph", cut)
        run_cell(cell, pieces)
    assert run_cell(cell, pieces).attempts == 2
    same(whole, pieces, cell.key)


def test_a_time_limit_leaves_a_checkpoint_that_a_rerun_goes_on_from(tmp_path: Path) -> None:
    cell = scripted()
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    run_cell(cell, whole)
    record = run_cell(cell, pieces, time_limit=-1.0)
    assert record.status == "timeout" and record.metrics == {}
    assert "goes on" in record.reason and pieces.get(cell.key) == record
    assert (pieces.folder(cell.key) / CHECKPOINT).exists()
    assert run_cell(cell, pieces).attempts == 2
    same(whole, pieces, cell.key)


HOW = ["truncate", "flip", "foreign", "other version", "code", "old class", "old layout"]


def old_checkpoint(path: Path, made: dict[str, Any], boundary: Any) -> None:
    """A sealed checkpoint whose content an earlier version has written."""
    rest = {"notes": {}, "seconds": 0.0, "evaluation_seconds": 0.0, "peak": {}}
    content = {"boundary": boundary, **rest, "attempts": 1, "resumed": []}
    checkpoint.write(path, content, made)


def state_of_an_earlier_version(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object of the class ``metabench.method.State``, a module that there is no more."""
    module = types.ModuleType("metabench.method")
    module.State = type("State", (), {"__module__": "metabench.method"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metabench.method", module)
    return module.State()


@pytest.mark.parametrize("how", HOW)
def test_a_checkpoint_that_cannot_be_trusted_is_quarantined(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = scripted()
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    run_cell(cell, whole)
    left = iter(range(6))
    with pytest.raises(Stopped):
        run_cell(cell, pieces, stop=lambda: next(left, None) is None)
    path = pieces.folder(cell.key) / CHECKPOINT
    data = path.read_bytes()
    if how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flip":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif how == "foreign":
        path.write_bytes(b"something else")
    elif how == "other version":
        was = determinism.versions()
        monkeypatch.setattr(determinism, "versions", lambda: {**was, "torch": "0.1"})
    else:
        made = {**determinism.versions(), "contract": cell.contract, "key": cell.key}
        made |= {"device": "cpu", "engine": "loop", "threads": 1}
        if how == "code":
            old_checkpoint(path, made, Scripted())
        elif how == "old class":
            old_checkpoint(path, made, {"state": state_of_an_earlier_version(monkeypatch)})
            monkeypatch.undo()
        else:
            old_checkpoint(path, made, {"state": {"lam": {}, "theta": None, "memory": {}}})
    events: list[Event] = []
    run_cell(cell, pieces, listener=events.append)
    monkeypatch.undo()
    (bad,) = [e.bad for e in events if isinstance(e, Quarantined)]
    assert bad.path == path and bad.moved_to is not None
    assert bad.moved_to.parent == pieces.root / QUARANTINE and bad.moved_to.exists()
    expected = {
        "truncate": "sha256",
        "flip": "sha256",
        "foreign": "not a checkpoint",
        "other version": "made with torch",
        "code": "plain data",
        "old class": "this version of metabench: it holds a metabench.method.State, not plain data",
        "old layout": "this version of metabench: KeyError: 'best'",
    }
    assert expected[how] in bad.what and "\n" not in bad.what
    same(whole, pieces, cell.key)


def full_disk(monkeypatch: pytest.MonkeyPatch, from_call: int = 0) -> None:
    calls = iter(range(10**6))

    def fsync(fd: int) -> None:
        if next(calls) >= from_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("metabench.store.store.os.fsync", fsync)


def test_a_full_disk_fails_the_cell_and_not_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run_cell(scripted(outer_steps=2), store)
    events: list[Event] = []
    with monkeypatch.context() as m:
        full_disk(m, from_call=9)  # the lease's, and a few checkpoints
        record = run_cell(scripted(), store, checkpoint_seconds=0, listener=events.append)
    assert record.status == "failed" and "No space left" in record.reason
    (finished,) = [e for e in events if isinstance(e, Finished)]
    assert "No space left" in finished.unsaved
    assert store.records() == [other] and store.problems() == []
    assert os.listdir(store.folder(scripted().key)) == [CHECKPOINT]
    again = run_cell(scripted(), store, listener=events.append)
    assert again.status == "done" and again.environment["resumed"][0]["step"] > 0
    assert again.outcome() == run_cell(scripted()).outcome()


def test_a_disk_that_is_full_for_the_curve_alone_still_takes_the_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.store import files

    real = files.draft

    def draft(path: Path, data: bytes) -> Path:
        if path.name.startswith("curve"):
            raise files.StoreError(f"cannot write {path}: No space left on device")
        return real(path, data)

    monkeypatch.setattr(files, "draft", draft)
    record = run_cell(scripted(), store)
    assert record.status == "failed" and "No space left" in record.reason
    assert record.metrics == {} and store.get(record.key) == record


# lam in numbers


def test_lam_columns() -> None:
    problem = Noisy(NoisyTask(), Seeds.of(0))
    assert learning_curve.lam_columns({"a": torch.tensor(2.0)}, problem) == {"lam/a": 2.0}
    large = {"a": torch.arange(65.0), "b": torch.ones(2, 2)}
    columns = learning_curve.lam_columns(large, problem)
    assert columns["lam/a.mean"] == 32.0 and columns["lam/a.max"] == 64.0
    assert columns["lam/b.std"] == 0.0 and len(columns) == 8
    many = {f"p{i}": torch.ones(10) * i for i in range(21)}
    columns = learning_curve.lam_columns(many, problem)
    assert columns.keys() == {f"lam/all.{what}" for what in ("mean", "std", "min", "max")}
    assert columns["lam/all.max"] == 20.0


def test_a_description_of_lam() -> None:
    small = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3, dtype=torch.bfloat16)}
    said = learning_curve.describe(small)
    assert said["numbers"] == 3 and said["shapes"] == {"a": [2], "b": []}
    assert said["values"] == {"a": [1.0, 2.0], "b": 3.0}
    assert said["summary"]["a"] == {"mean": 1.5, "std": 0.5, "min": 1.0, "max": 2.0}
    assert "values" not in learning_curve.describe({"a": torch.zeros(65)})
