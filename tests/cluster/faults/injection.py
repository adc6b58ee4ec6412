"""One fault injected into a cluster, from an empty store to a line of the fault table."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from metabench.cluster.slurm import job_states
from metabench.cluster_profiles.local_cluster import Cluster, ClusterError
from metabench.core.errors import MetabenchError
from metabench.core.registry import load_plugin
from metabench.store.store import Store

from .oracle import Verdict, judge
from .registry import Fault
from .stage import PLUGIN, Lost, Stage


@dataclass(frozen=True)
class Row:
    """A line of the fault table."""

    fault: str
    how: str
    accounting: bool
    cells: int
    lost: int
    doubled: int
    identical: int
    left_over: int
    attempts: int
    seconds: float
    verdict: str


def perform(one: Fault, cluster: Cluster, home: Path, reference: Store) -> Row:
    """Inject one fault; what the judge says."""
    before = dict(os.environ)
    start = time.monotonic()
    stage = Stage(cluster, home, reference)
    stage.plugin.write_text(PLUGIN)
    os.environ["METABENCH_PLUGINS"] = str(stage.plugin)
    forget_plugin()
    load_plugin(stage.plugin)
    said = ""
    try:
        one.act(stage)
    except (Lost, MetabenchError, ClusterError) as error:
        said = str(error)
    except Exception as error:  # a fault of the fault: the others go on
        said = f"{type(error).__name__}: {error}"
    finally:
        for job in {j.id.partition("_")[0] for j in live_or_none(stage)}:
            stage.ask("scancel", job)
        verdict: Verdict = getattr(stage, "verdict", None) or judge(stage)
        os.environ.clear()
        os.environ.update(before)
    if not said:
        said = "ok" if verdict.good else "; ".join(verdict.left_over) or "not the same"
    return Row(
        one.name,
        one.how,
        cluster.options.accounting,
        verdict.cells,
        verdict.lost,
        verdict.doubled,
        verdict.identical,
        len(verdict.left_over),
        verdict.attempts,
        round(time.monotonic() - start, 1),
        said,
    )


def live_or_none(stage: Stage) -> list[job_states.Job]:
    """Live jobs, none where Slurm does not answer."""
    with contextlib.suppress(MetabenchError, ClusterError):
        return stage.live()
    return []


def forget_plugin() -> None:
    """Let the next stage load its own copy of the method."""
    from metabench.core.registry import methods

    sys.modules.pop("metabench_plugin_paced", None)
    methods._classes.pop("paced", None)
