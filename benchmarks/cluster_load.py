"""How many trivial cells a one-machine Slurm gets through, and how long large plans take.

    python -m benchmarks.cluster_load [--cells 1000] [--planned 10000] [--out FOLDER]

Three ways of running the same thing: workers that pull cells, a raw sbatch array whose jobs do
nothing but start Python, and one metabench job a cell. The plan, its standing and its table are
timed for many more cells than are run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metabench.analysis import results
from metabench.cluster import submission as folder
from metabench.cluster.cell_states import standings
from metabench.cluster.profile import load
from metabench.cluster.slurm import job_states
from metabench.cluster.slurm.commands import Slurm
from metabench.cluster.submitting import draft as drafting
from metabench.cluster.submitting import submit as submitting
from metabench.cluster_profiles.local_cluster import Cluster, Options, running
from metabench.core.errors import MetabenchError
from metabench.reports.tables import grids
from metabench.store.store import Store
from metabench.suites import planning as plan
from metabench.suites.overrides import read_overrides

WORDS = ["budget.outer_steps=1", "budget.valid_episodes=1", "budget.test_episodes=1"]
SECONDS = 1500.0


def chosen(count: int) -> list[Any]:
    """That many cells of next to no work."""
    suite = plan.suite_of_pairs(["ridge"], ["fixed"])
    return plan.choose(suite, "laptop", set=WORDS, seeds=range(count))


def pulled(store: Store, count: int, **settings: Any) -> dict[str, float]:
    """Run cells through ``submit``; seconds, and what was lost or done twice."""
    profile = load("local", {"parallel": 4, "query_seconds": 0, **settings})
    there = Slurm(profile)
    begin = time.monotonic()
    planned = plan.plan(chosen(count), store)
    made = drafting.draft(planned, profile, store, "load", "laptop", max_array=there.max_array())
    submission = submitting.submit(made, there)
    queued = time.monotonic() - begin
    keys = {p.cell.key for p in planned}

    def finished() -> bool:
        answer = job_states.look(there, store, seconds=2.0)
        return not answer.live(submission)

    wait(finished, 1.0)
    seconds = time.monotonic() - begin
    done = {r.key for r in store.records() if r.status == "done"}
    twice = sum(
        sum(a.end == "recorded" and a.what == "done" for a in folder.attempts(submission.folder, k))
        > 1
        for k in keys
    )
    return {
        "cells": count,
        "jobs": len(submission.array_tasks()),
        "queued_seconds": round(queued, 2),
        "seconds": round(seconds, 1),
        "cells_per_second": round(count / seconds, 2),
        "lost": len(keys - done),
        "doubled": twice,
    }


def raw(cluster: Cluster, count: int, home: Path) -> dict[str, float]:
    """An sbatch array whose jobs start Python and end."""
    begin = time.monotonic()
    for first in range(0, count, 1000):
        size = min(1000, count - first)
        options = [f"--array=0-{size - 1}%4", "--mem=100M", "-o", "/dev/null", "-J", "raw"]
        cluster.ask("sbatch", *options, f"--wrap={sys.executable} -I -c pass")

    def finished() -> bool:
        return not cluster.ask("squeue", "-h", "--name=raw", "-o", "%i").stdout.strip()

    wait(finished, 1.0)
    seconds = time.monotonic() - begin
    return {"jobs": count, "seconds": round(seconds, 1), "per_second": round(count / seconds, 2)}


def wait(done: Callable[[], bool], every: float) -> None:
    """Until something is so; raises MetabenchError after too long."""
    deadline = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise MetabenchError(f"not finished in {SECONDS:.0f} s")
        time.sleep(every)


def planning(store: Store, count: int) -> dict[str, float]:
    """Seconds for the plan, the standing and the table of many cells in a store."""
    suite = plan.suite_of_pairs(["ridge"], ["fixed"])
    out: dict[str, float] = {"cells": count}
    begin = time.monotonic()
    cells = chosen(count)
    planned = plan.plan(cells, store)
    out["plan_seconds"] = round(time.monotonic() - begin, 2)
    begin = time.monotonic()
    submissions = folder.submissions(store)
    answer = job_states.look(Slurm(load("local", {"query_seconds": 0})), store)
    standings(planned, submissions, answer)
    out["status_seconds"] = round(time.monotonic() - begin, 2)
    begin = time.monotonic()
    found = results.collect(
        suite, "laptop", store, overrides=read_overrides(WORDS), seeds=range(count)
    )
    grids.draw(found, "text")
    out["table_seconds"] = round(time.monotonic() - begin, 2)
    return out


def main(words: list[str] | None = None) -> int:
    """Run the command line; 1 where a cell was lost or done twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--planned", type=int, default=10000)
    parser.add_argument("--single", type=int, default=40, help="cells with a job each")
    parser.add_argument("--base-port", type=int, default=20817)
    parser.add_argument("--out", type=Path, help="a folder for load.json")
    given = parser.parse_args(words)
    home = Path(tempfile.mkdtemp(prefix="metabench-load-"))
    out: dict[str, Any] = {"command": "python -m benchmarks.cluster_load --out FOLDER"}
    out["cores"] = os.cpu_count()
    with running(home / "cluster", Options(base_port=given.base_port)) as cluster:
        os.environ["SLURM_CONF"] = str(cluster.conf)
        many = Store(home / "many")
        out["pulled"] = pulled(many, given.cells, most_jobs=4)
        show(out, "pulled")
        out["one_job_a_cell"] = pulled(Store(home / "single"), given.single, growth=1.0)
        show(out, "one_job_a_cell")
        out["raw_array"] = raw(cluster, given.cells, home)
        show(out, "raw_array")
        out["planning"] = planning(many, given.planned)
        show(out, "planning")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "load.json").write_text(json.dumps(out, indent=1) + "\n")
    return int(bool(out["pulled"]["lost"] or out["pulled"]["doubled"]))


def show(out: dict[str, Any], name: str) -> None:
    """One line."""
    print(f"{name}: {json.dumps(out[name])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
