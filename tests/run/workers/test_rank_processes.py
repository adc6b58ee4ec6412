"""One cell on several processes: the bits of one process, and what becomes of faults."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optional import needs

from metabench.contract.parallel.process_group import ProcessGroup, _packed, _Raised, _unpacked
from metabench.core import registry
from metabench.core.cell import Cell, make_cell
from metabench.core.costs import Meter
from metabench.core.errors import Distrusted, Diverged, RankLost, Stopped, UnknownName
from metabench.run.events import Event, Retried
from metabench.run.runner import run_cell
from metabench.run.workers.local_launcher import launch
from metabench.run.workers.rank_processes import RankProcesses, over
from metabench.store.cell_folder import CHECKPOINT, LEASE
from metabench.store.record import Record, curve_outcome
from metabench.store.store import Store

# A method that goes wrong on one rank, where a file of its own folder says so.
PLUGIN = '''
"""A method for tests."""
import os, signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import torch
from metabench.core.errors import Diverged
from metabench.contract.problem import Episode, Problem
from metabench.contract.task import Task
from metabench.contract.seeds import generator
from metabench.core.registry import methods, tasks

class Points(Problem):
    """Inner and outer squared distances to points, four episodes a step."""
    episodes_per_step = 4

    def __init__(self, seeds):
        self.seeds = seeds

    def init_outer(self):
        return {"w": torch.zeros(3, dtype=torch.float64)}

    def init_inner(self, lam, episode):
        return {"w": lam["w"]}

    def inner_loss(self, lam, theta, batch):
        return (theta["w"] - batch["x"]).square().sum()

    def outer_loss(self, lam, theta, batch):
        return (theta["w"].sin() - batch["x"]).square().sum()

    def episode(self, split, index):
        gen = generator(self.seeds.batches, split, index)
        x, y = torch.randn(2, 3, generator=gen, dtype=torch.float64)
        return Episode({"x": x}, {"x": y}, index)

    def count(self, split):
        return None

    def metrics(self, lam, theta, episode):
        return {"loss": float(self.outer_loss(lam, theta, episode.outer))}

@tasks.register("points")
@dataclass(frozen=True)
class PointsTask(Task):
    """Points to be near to."""
    metric: ClassVar = "loss"
    goal: ClassVar = "min"
    data: ClassVar = ()
    offers: ClassVar = frozenset(
        {"outer_gradient", "second_order", "lam_is_initialisation", "episodes"})

    def build(self, seeds, device):
        return Points(seeds)

@methods.register("ranked")
@dataclass(frozen=True)
class Ranked(methods.get("maml")):
    """Does what it is told on one rank, or for some episodes."""
    folder: str = ""
    do: str = ""

    def step(self, ctx, state):
        if ctx.step == 2 and ctx.group.rank == 1:
            once = Path(self.folder, "once")
            if self.do == "die" or (self.do == "die once" and not once.exists()):
                once.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            if self.do == "raise outside":
                raise MemoryError("rank 1 is full")
        return super().step(ctx, state)

    def hypergradient(self, ctx, lam, theta, episode):
        self.act(episode)
        return super().hypergradient(ctx, lam, theta, episode)

    def act(self, episode):
        # Of a step with episodes 4 to 7 those that rank 1 has come first, and last.
        if self.do == "diverge" and episode.index in (5, 6):
            raise Diverged(f"told to at episode {episode.index}")
        if self.do == "raise" and episode.index == 7:
            raise KeyError("no such thing")
        if self.do == "raise own" and episode.index == 5:
            class Own(Exception):
                pass
            raise Own("a class that does not travel")
'''
BUDGET = {"outer_steps": 4, "eval_every": 2, "valid_episodes": 5, "test_episodes": 35}
GLYPHS = {"filters": 4, "meta_batch": 4, "queries": 2}
REPRESENTATION = {**GLYPHS, "formulation": "representation", "dtype": "float64"}
POLICY = {"rank": 1, "policy_rank": 2, "targets": ("q",), "question_tokens": 24, "edit_tokens": 24,
          "questions": 1, "sample_tokens": 8, "documents": 2, "adapt_epochs": 2, "meta_batch": 3,
          "dtype": "float64"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("plugin") / "ranked.py"
    path.write_text(PLUGIN)
    before = os.environ.get("METABENCH_PLUGINS")
    os.environ["METABENCH_PLUGINS"] = str(path)
    registry.load_plugin(path)
    yield
    del registry.methods._classes["ranked"], registry.tasks._classes["points"]
    del sys.modules["metabench_plugin_ranked"]  # a worker may come back to this file later
    if before is None:
        del os.environ["METABENCH_PLUGINS"]
    else:
        os.environ["METABENCH_PLUGINS"] = before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needs("transformers")
    from self_edits import small_world

    with small_world(tmp_path_factory.mktemp("data")) as folder:
        yield folder


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    """One more rank, which stays for all tests until one of them kills it."""
    with RankProcesses(1, patience=240.0) as made:
        yield made


def cell(task: str, method: str, /, **settings: Any) -> Cell:
    return make_cell(task, method, set={**settings, "budget": BUDGET})


def points(**method: Any) -> Cell:
    return cell("points", "ranked", method={"inner_steps": 2, **method})


def run(one: Cell, store: Path, processes: RankProcesses | None = None, **more: Any) -> Record:
    return run_cell(
        one, Store(store), device="cpu", gather=processes and processes.gathered, **more
    )


def same(a: Record, b: Record, stores: Path) -> None:
    """Equal in all but clocks, machine and memory; in lam and the curve, too."""
    assert a.outcome() == b.outcome() and a.notes == b.notes
    files = []
    for name in ("one", "two"):
        store = Store(stores / name)
        kept = store.get(a.key)
        assert kept is not None
        lam = store.folder(a.key) / "lam.npz"
        files.append((curve_outcome(store.curve(kept)), lam.exists() and lam.read_bytes()))
    assert files[0] == files[1]


def both(one: Cell, tmp_path: Path, processes: RankProcesses) -> Record:
    """The record of two processes, which is that of one."""
    alone = run(one, tmp_path / "one")
    found = run(one, tmp_path / "two", processes)
    same(alone, found, tmp_path)
    assert alone.environment["ranks"] == 1
    assert not list((tmp_path / "two").glob(f"*/*/{LEASE}"))
    return found


@pytest.mark.parametrize(
    ("task", "method", "task_settings", "method_settings"),
    [
        pytest.param(
            "glyphs", "maml", GLYPHS, {"inner_steps": 2, "test_steps": 3}, marks=pytest.mark.slow
        ),
        ("glyphs", "pbgd", REPRESENTATION, {"inner_steps": 2}),
        ("recipe_bandit", "restem", {"meta_batch": 5}, {"batch": 3}),
        ("recipe_bandit", "restem", {"meta_batch": 3}, {"select": "above", "threshold": -0.2}),
        ("ridge", "random", {}, {"inner_steps": 5}),
    ],
)
def test_two_processes_give_the_bits_of_one(
    task: str,
    method: str,
    task_settings: Any,
    method_settings: Any,
    tmp_path: Path,
    processes: RankProcesses,
) -> None:
    found = both(
        cell(task, method, task=task_settings, method=method_settings), tmp_path, processes
    )
    assert found.status == "done", found.reason
    assert found.environment["ranks"] == 2 and len(found.environment["rank_hosts"]) == 2
    assert ("ranks_note" in found.environment) == (task == "ridge")


@pytest.mark.slow
def test_the_language_model_task_too(model: str, tmp_path: Path) -> None:
    one = cell("self_edit_policy", "restem", task={**POLICY, "model": model},
               method={"samples": 2, "batch": 2})  # fmt: skip
    with RankProcesses(1, patience=240.0) as processes:  # it must be born where the data are known
        found = both(one, tmp_path, processes)
    assert found.status == "done", found.traceback
    assert found.cost["trainings"] == 4 * 3 * 2


def test_memory_is_that_of_one_process(tmp_path: Path, processes: RankProcesses) -> None:
    one = make_cell("points", "ranked", set={"budget": {**BUDGET, "measure_memory": True}})
    assert both(one, tmp_path, processes).cost["peak_tensor_bytes"] > 0


@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ("diverge", "diverged", "told to at episode 5"),  # of two, the first, as in one process
        ("raise", "failed", "KeyError: 'no such thing'"),
    ],
)
def test_what_an_episode_raises_is_raised_on_all_ranks(
    do: str, status: str, reason: str, tmp_path: Path, processes: RankProcesses
) -> None:
    one = points(do=do)
    alone, found = run(one, tmp_path / "one"), run(one, tmp_path / "two", processes)
    assert (found.status, found.reason) == (alone.status, alone.reason) == (status, reason)
    assert (found.steps, found.metrics, found.lam) == (alone.steps, alone.metrics, alone.lam)
    if status == "failed":
        assert "on rank 1" in found.traceback and "in act" in found.traceback


def test_what_one_rank_alone_meets_is_told_and_nobody_hangs(
    tmp_path: Path, processes: RankProcesses
) -> None:
    found = run(points(do="raise outside"), tmp_path, processes)
    assert (found.status, found.reason) == ("failed", "MemoryError: rank 1 is full")
    found = run(points(do="raise own"), tmp_path, processes)
    assert found.reason == "RuntimeError: Own: a class that does not travel"
    assert run(points(), tmp_path, processes).status == "done"


def test_a_rank_that_is_killed_ends_the_run_at_once_and_the_cell_can_go_on(
    tmp_path: Path, processes: RankProcesses
) -> None:
    one = points(do="die once", folder=str(tmp_path))
    whole = run(one, tmp_path / "one")
    assert run(points(), tmp_path / "three", processes).status == "done"  # its process is up
    began = time.monotonic()
    with pytest.raises(RankLost, match=r"^rank 1: its process died \(signal 9, SIGKILL"):
        run(one, tmp_path / "two", processes)
    assert time.monotonic() - began < 20
    store = Store(tmp_path / "two")
    assert store.holder(one.key) is None and store.get(one.key) is None
    assert (store.folder(one.key) / CHECKPOINT).is_file()
    found = run(one, tmp_path / "two", processes)
    assert found.environment["resumed"][0]["step"] == 2 and found.attempts == 2
    same(whole, found, tmp_path)


@pytest.mark.parametrize("first", ["one process", "two processes"])
def test_a_run_goes_on_with_another_number_of_ranks(
    first: str, tmp_path: Path, processes: RankProcesses
) -> None:
    one = points()
    whole = run(one, tmp_path / "one")
    # Its process is up: while it starts, stop is asked at every look.
    assert run(points(), tmp_path / "three", processes).status == "done"
    orders = [processes, None] if first == "two processes" else [None, processes]
    asked: list[int] = []
    with pytest.raises(Stopped):
        run(one, tmp_path / "two", orders[0], stop=lambda: asked.append(1) or len(asked) > 5)
    found = run(one, tmp_path / "two", orders[1])
    assert found.environment["resumed"] and 0 < found.environment["resumed"][0]["step"] < 4
    same(whole, found, tmp_path)


def test_a_limit_in_seconds_is_rank_0s(tmp_path: Path, processes: RankProcesses) -> None:
    budget = {"seconds": 0.3, "eval_every": 10**6, "valid_episodes": 2, "test_episodes": 2}
    one = make_cell("recipe_bandit", "restem", set={"budget": budget})
    found = run(one, tmp_path, processes)
    assert found.status == "done" and found.steps > 1
    late = run(points(), tmp_path, processes, time_limit=0.0)
    assert late.status == "timeout"


@pytest.mark.slow
def test_a_launch_tries_a_cell_again_whose_rank_has_died(tmp_path: Path) -> None:
    store, events = Store(tmp_path / "runs"), list[Event]()
    one, always = (points(do=do, folder=str(tmp_path)) for do in ("die once", "die"))
    summary = launch([one, always], store, ranks=2, device="cpu", listener=events.append)
    assert summary.records[one.key].status == "done"
    assert summary.records[one.key].environment["ranks"] == 2
    failed = summary.records[always.key]
    assert failed.status == "failed" and failed.reason.endswith(", 2 times")
    for reason in [failed.reason, *(e.reason for e in events if isinstance(e, Retried))]:
        assert reason.startswith("rank 1: its process died (signal 9, SIGKILL")
    assert not list(store.root.glob(f"*/*/{LEASE}"))


# without a group


ORPHAN = """
import sys, time
from metabench.run.workers.rank_processes import _started_peer
if __name__ == "__main__":
    print(_started_peer(None).process.pid, flush=True)
    time.sleep(600)
"""


def waited(done: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_no_rank_outlives_the_first(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        other = int(first.stdout.readline())
        assert Path(f"/proc/{other}").exists()
        first.kill()
    assert waited(lambda: not Path(f"/proc/{other}").exists())


@pytest.mark.slow
def test_ranks_from_elsewhere_come_to_where_they_are_told(tmp_path: Path) -> None:
    place = tmp_path / "ranks" / "meet.json"
    one = points()
    code = "import sys; from pathlib import Path\n"
    code += "from metabench.run.workers import rank_processes\n"
    code += "rank_processes.attend(Path(sys.argv[1]), int(sys.argv[2]))"
    others = [subprocess.Popen([sys.executable, "-c", code, str(place), str(r)]) for r in (2, 1)]
    try:
        whole = run(one, tmp_path / "one")
        for name in ("two", "three"):  # two processes lease cells, one after the other
            with RankProcesses(2, meet=place, patience=240.0) as processes:
                assert place.stat().st_mode & 0o777 == 0o600
                found = run(one, tmp_path / name, processes)
            assert found.environment["ranks"] == 3
        same(whole, run(one, tmp_path / "two"), tmp_path)
        over(place)
        assert [p.wait(30) for p in others] == [0, 0]
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert json.loads(place.read_text()) == "over"


def test_tensors_keep_bits_strides_and_type() -> None:
    flat = torch.arange(24, dtype=torch.float64).sqrt()
    said = {
        "t": flat.view(4, 6).t(),
        "slice": flat.view(4, 6)[:, 1:3],
        "spread": flat[:1].expand(5),
        "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
        "none": torch.zeros(0, 2),
        "bits": torch.tensor([True, False]),
        "leaf": torch.ones(2, requires_grad=True),
        "nested": [(ProcessGroup, 1.5, None)],
    }
    found = _unpacked(_packed(said, 0), torch.device("cpu"))
    for name in set(said) - {"nested"}:
        assert torch.equal(found[name], said[name]) and found[name].dtype == said[name].dtype
        assert not found[name].requires_grad
    assert found["t"].stride() == (1, 6) and found["nested"] == said["nested"]
    # Of a view only what it shows travels.
    assert len(_packed(torch.zeros(10**6)[:2], 0)) < 1000
    lost = _unpacked(_packed(lambda: 0, 1), torch.device("cpu"))
    assert isinstance(lost, _Raised) and "pickle" in str(lost.rebuilt(1))


@pytest.mark.parametrize(
    "error",
    [
        UnknownName("method", "malm", ["maml"]),
        OSError(28, "No space left", "x"),
        Distrusted("the series grows"),
        KeyError("a"),
    ],
)
def test_exceptions_keep_their_type_and_words(error: Exception) -> None:
    sent = _unpacked(_packed(_Raised(error, 3), 0), torch.device("cpu"))
    found = sent.rebuilt(1)
    assert type(found) is type(error) and str(found) == str(error) and sent.place == 3
    assert vars(found) == vars(error)
    assert "on rank 1" in str(found.__cause__)


def test_one_process_is_a_rank_of_its_own() -> None:
    alone = ProcessGroup()
    assert alone.agree(3) == 3 and alone.exchange("x") == ["x"] and not alone.divides([1, 2])
    with pytest.raises(Diverged):
        alone.together(lambda: (_ for _ in ()).throw(Diverged("x")))


def test_counts_of_ranks_are_added_to_what_was_there() -> None:
    meter = Meter()
    meter.add(hvps=3)
    before = meter.counts.as_dict()
    meter.add(hvps=2)
    other = {**before, "hvps": 10, "trainings": 1}
    meter.grow(before, [meter.counts.as_dict(), other])
    assert meter.counts.hvps == 3 + 2 + 7 and meter.counts.trainings == 1
