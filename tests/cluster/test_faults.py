"""The fault matrix on a real Slurm, with and without accounting: pytest -m slurm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.faults import FAULTS
from cluster.faults.injection import forget_plugin, perform

from metabench.cluster_profiles.local_cluster import Cluster, Options, missing_packages, running
from metabench.store.store import Store


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "accounting"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    missing = missing_packages(request.param)
    if missing and os.environ.get("METABENCH_REQUIRE_SLURM") == "1":
        pytest.fail(f"{', '.join(missing)} not installed, and METABENCH_REQUIRE_SLURM=1")
    if missing:
        pytest.skip(f"no Slurm: {', '.join(missing)} not installed")
    port = 23817 if request.param else 22817
    options = Options(base_port=port, accounting=request.param)
    with running(tmp_path_factory.mktemp("slurm"), options) as made:
        yield made


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("reference"))


@pytest.mark.slurm
@pytest.mark.parametrize("name", FAULTS)
def test_no_cell_is_lost_or_doubled_or_changed(
    name: str, cluster: Cluster, reference: Store, tmp_path: Path
) -> None:
    fault = FAULTS[name]
    if fault.accounting_only and not cluster.options.accounting:
        pytest.skip("there is no database to stop")
    if fault.root and os.geteuid():
        pytest.skip("needs root, to mount a small file system")
    row = perform(fault, cluster, tmp_path, reference)
    forget_plugin()
    assert row.verdict == "ok", row
    assert (row.lost, row.doubled, row.left_over) == (0, 0, 0)
    assert row.identical == row.cells > 0
