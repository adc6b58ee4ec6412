"""A real Slurm for the tests, where its packages are; otherwise they skip and say so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.faults.injection import forget_plugin, live_or_none
from cluster.faults.stage import FOLDER, PAUSE, PLUGIN, SLOW, Stage

from metabench.cluster_profiles.local_cluster import (
    Cluster,
    ClusterError,
    Options,
    missing_packages,
)
from metabench.core.registry import load_plugin
from metabench.store.store import Store

REQUIRE = "METABENCH_REQUIRE_SLURM"


def absent(reason: str) -> None:
    """Skip where there is no Slurm, or fail where it is required."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason}, and {REQUIRE}=1")
    pytest.skip(f"no Slurm: {reason}")


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without accounting, up for the session."""
    if missing := missing_packages(False):
        absent(f"{', '.join(missing)} not installed")
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), Options(base_port=21817 + 100 * worker))
    try:
        cluster.up()
    except ClusterError as error:
        cluster.down()
        absent(str(error))
    yield cluster
    cluster.down()


@pytest.fixture
def stage(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """Makes a stage on the cluster: a store and the paced method; cancels what is left of it."""
    for name in ("SLURM_CONF", PAUSE, FOLDER, "METABENCH_PLUGINS"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv(SLOW, raising=False)
    made = Stage(slurm_cluster, tmp_path, Store(tmp_path / "reference"))
    made.plugin.write_text(PLUGIN)
    os.environ["METABENCH_PLUGINS"] = str(made.plugin)
    forget_plugin()
    load_plugin(made.plugin)
    yield made
    for job in {j.id.partition("_")[0] for j in live_or_none(made)}:
        made.ask("scancel", job)
    forget_plugin()
