"""An arena on a real Slurm: one command queues its trials, the same again its finals."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cluster.faults.stage import Stage

HEAD = """
kind = "arena"
title = "Two quadratics"

[budgets.smoke]
trials = 2
tuning_seeds = [100]
seeds = [0, 1]

[[methods]]
id = "unrolling"
label = "unrolling"
method = "bilevel"
tracks = ["A"]
space = { "method.outer_lr" = { low = 0.01, high = 1.0, log = true } }

[[methods]]
id = "nothing"
label = "no outer learning"
method = "fixed"
tracks = ["A"]
"""
PROBLEM = """
[[problems]]
id = "dim{0}"
label = "of {0} numbers"
track = "A"
task = "quadratic"
set.task.dim = {0}
fixed = 4.0
bound = 0.0
cap = 300.0
select = "best_valid"

[problems.prices]
inner_gradients = 1
outer_gradients = 1
function_evaluations = 1
hvps = 1
mixed_products = 1
"""


@pytest.mark.slow
def test_the_same_command_queues_trials_then_finals_then_nothing(stage: Stage) -> None:
    file = stage.home / "small.toml"
    file.write_text(HEAD + PROBLEM.format(2) + PROBLEM.format(5))

    def metabench(*words: str) -> str:
        asked = [sys.executable, "-m", "metabench", *words, "--budget", "smoke"]
        done = subprocess.run(
            [*asked, "--store", str(stage.store.root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def submitted() -> str:
        settings = ["slurm.parallel=2", "slurm.query_seconds=0"]
        chosen = [w for one in settings for w in ("--set", one)]
        told = metabench("submit", "arena", str(file), "--cluster", "local", *chosen)
        stage.until("the end of all jobs", lambda: not stage.live())
        return told

    assert "these are trials" in submitted()
    trials = {r.key for r in stage.store.records()}
    assert len(trials) == 2 * (2 + 1), "unrolling has two trials a problem, no learning has one"
    assert "these are finals" in submitted()
    records = stage.store.records()
    finals = [r for r in records if r.key not in trials]
    assert len(finals) == 2 * 2 * (2 + 1), "two seeds, tuned and as shipped, which no learning is"
    assert all(r.status == "done" for r in records)
    assert all("slurm" in r.environment["machine"] for r in records)
    assert "every final is done" in submitted()
    assert len(stage.store.records()) == len(records)
    assert "unrolling" in metabench("arena", str(file))
