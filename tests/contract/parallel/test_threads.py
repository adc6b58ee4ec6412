"""Working through episodes on Python threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from metabench.contract.context import Context
from metabench.contract.problem import Episode
from metabench.contract.seeds import Seeds
from metabench.core.registry import solvers, tasks


def context(workers):
    problem = tasks.get("quadratic")().build(Seeds.of(0), torch.device("cpu"))
    solver = solvers.get("sgd")()
    return Context(problem, solver, Seeds.of(0), frozenset(), workers=workers)


EPISODES = [Episode({}, {}, i) for i in range(9)]


def test_results_keep_the_order_of_the_episodes():
    def late_first(episode):
        time.sleep(0.01 * (episode.index == 0))
        return episode.index

    assert context(3).over_episodes(late_first, EPISODES) == list(range(9))


@pytest.mark.parametrize("workers", [1, 3])
def test_chunks_are_joined_in_order(workers):
    def late_first(chunk):
        time.sleep(0.01 * (chunk[0].index == 0))
        return [e.index for e in chunk]

    assert context(workers).in_chunks(late_first, EPISODES, 4) == list(range(9))
    first = context(workers).in_chunks(late_first, EPISODES, 2, lambda a, b: [*a[:1], b[-1]])
    assert first == [0, 8]


def test_what_a_chunk_gave_is_let_go_when_it_is_joined():
    class Found:
        pass

    alive: list[weakref.ref[Found]] = []

    def given(chunk):
        assert sum(ref() is not None for ref in alive) <= 1  # what is joined so far
        found = Found()
        alive.append(weakref.ref(found))
        return found

    context(1).in_chunks(given, EPISODES, 2, lambda one, more: one)
    assert len(alive) == 5


def test_counts_of_threads_are_kept_or_muted_as_the_callers():
    ctx = context(3)

    def count(episode):
        ctx.meter.add(inner_gradients=1)

    ctx.over_episodes(count, EPISODES)
    with ctx.uncounted():
        ctx.over_episodes(count, EPISODES)
    ctx.over_episodes(count, EPISODES)
    assert ctx.meter.counts.inner_gradients == 18


def test_after_a_failure_nothing_goes_on():
    started: list[int] = []
    done: list[int] = []

    def fail(episode):
        started.append(episode.index)
        if episode.index == 1:
            raise ValueError("one")
        time.sleep(0.02)
        done.append(episode.index)

    with pytest.raises(ValueError, match="one"):
        context(2).over_episodes(fail, EPISODES)
    assert len(started) == len(done) + 1 < 9
    time.sleep(0.05)
    assert len(started) == len(done) + 1


def test_episodes_inside_an_episode_do_not_wait_for_each_other():
    ctx = context(2)

    def outer(episode):
        return ctx.over_episodes(lambda e: threading.current_thread().name, EPISODES)

    assert [len(set(names)) for names in ctx.over_episodes(outer, EPISODES)] == [1] * 9


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads through /proc")
def test_each_thread_stays_inside_its_core():
    """torch.get_num_threads says 1 in a new thread whose operations then take every core."""
    code = """
import os, torch
from metabench.contract.context import Context
from metabench.contract.problem import Episode
torch.set_num_threads(1)
ctx = Context(None, None, None, frozenset(), workers=2)
a = torch.randn(1000, 1000)
before = len(os.listdir("/proc/self/task"))
ctx.over_episodes(lambda e: (a @ a, a.sum(0)), [Episode({}, {}, i) for i in range(9)])
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "4"},
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert int(done.stdout) == 2
