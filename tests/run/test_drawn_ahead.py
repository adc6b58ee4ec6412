"""Under a captured graph the next step's episodes are drawn while the device works at this one's.

:func:`rerun` stands for the graph, so that the loop goes the way that it goes on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from metabench.contract.context import Context
from metabench.contract.parallel.at_once import rerun
from metabench.contract.problem import Episode
from metabench.contract.seeds import Seeds
from metabench.core.cell import make_cell
from metabench.core.errors import Stopped
from metabench.core.registry import tasks
from metabench.run import engines, loop
from metabench.run.runner import run_cell
from metabench.store.record import Record, curve_outcome
from metabench.store.store import Store

STEPS = 5
CELL = make_cell(
    "glyphs",
    "maml",
    set={
        "task": {"ways": 3, "queries": 2, "meta_batch": 3, "filters": 3},
        "method": {"inner_steps": 1, "inner_lr": 0.1},
        "budget": {
            "outer_steps": STEPS, "eval_every": 2, "valid_episodes": 3, "test_episodes": 3,
        },
    },
)  # fmt: skip
Events = list[tuple[str, int]]


@pytest.fixture
def problem() -> Any:
    """The class of the problem."""
    return type(tasks.get("glyphs")().build(Seeds.of(0), torch.device("cpu")))


@pytest.fixture
def events(problem: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """What happens in the order in which it does: ("draw", step), ("replay", number), ("log",
    step), the last when the host has a step's numbers."""
    seen: Events = []

    def recorded(f: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        outputs, again = rerun(f)

        def replay() -> None:
            again()
            seen.append(("replay", sum(what == "replay" for what, _ in seen)))

        return outputs, replay

    drawn, step = problem.episodes, loop.Loop.step

    def episodes(self: Any, split: str, indices: Sequence[int]) -> list[Episode]:
        if split == "train":
            seen.append(("draw", indices[0] // 3))
        found: list[Episode] = drawn(self, split, indices)
        return found

    def stepped(self: loop.Loop) -> None:
        step(self)
        seen.append(("log", self.boundary.step - 1))

    monkeypatch.setattr(problem, "episodes", episodes)
    monkeypatch.setattr(loop.Loop, "step", stepped)
    monkeypatch.setattr(engines, "cuda_graph", recorded)
    monkeypatch.setattr(engines, "check_capturable", lambda *_: None)
    monkeypatch.setattr(loop, "warm_up", lambda *_: (0.0, None))
    yield seen


def run(store: Store, **more: Any) -> Record:
    return run_cell(CELL, store, device="cpu", engine="graph", **more)


def test_a_step_is_drawn_once_between_the_replay_before_it_and_what_that_tells(
    tmp_path: Path, events: Events
) -> None:
    record = run(Store(tmp_path))
    assert record.status == "done" and record.environment["engine"] == "graph"
    assert [step for what, step in events if what == "draw"] == list(range(STEPS))
    for step in range(1, STEPS):
        before = events.index(("log", step - 1))
        drawn = events.index(("draw", step))
        assert drawn < before and events[drawn - 1][0] == "replay"


def test_no_bit_moves(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, alone = Store(tmp_path / "ahead"), Store(tmp_path / "alone")
    one = run(ahead)
    monkeypatch.setattr(Context, "draw_ahead", lambda self: None)
    events.clear()
    two = run(alone)
    assert events.index(("draw", 1)) > events.index(("log", 0))
    assert one.outcome() == two.outcome() and one.lam == two.lam
    assert curve_outcome(ahead.curve(one)) == curve_outcome(alone.curve(two))


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_goes_on_from_a_checkpoint_is_the_same(
    tmp_path: Path, events: Events, after: int
) -> None:
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    one = run(whole)
    events.clear()
    with pytest.raises(Stopped):
        run(parts, checkpoint_seconds=0, stop=lambda: ("log", after - 1) in events)
    assert ("draw", after) in events, "drawn, and lost with the process"
    two = run(parts)
    assert two.environment["resumed"][0]["step"] == after
    assert one.outcome() == two.outcome() and one.lam == two.lam
    assert curve_outcome(whole.curve(one)) == curve_outcome(parts.curve(two))


def test_an_error_in_drawing_is_that_of_its_own_step(
    tmp_path: Path, problem: Any, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = problem.episodes

    def episodes(self: Any, split: str, indices: Sequence[int]) -> list[Episode]:
        if split == "train" and indices[0] == 9:
            raise OSError("episode 9 cannot be read")
        found: list[Episode] = drawn(self, split, indices)
        return found

    monkeypatch.setattr(problem, "episodes", episodes)
    record = run(Store(tmp_path))
    assert (record.status, record.reason) == ("failed", "OSError: episode 9 cannot be read")
    assert record.steps == 3 and ("log", 2) in events, "the step before it has ended"
