"""From cells to arrays, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.cluster.profile import Profile
from metabench.cluster.submission import Member
from metabench.cluster.submitting.packing import (
    Bundle,
    Needs,
    Setbacks,
    bundles,
    needs,
    parts,
    peaks,
)
from metabench.core.cell import Cell
from metabench.store.record import Record

PROFILE = Profile(time=480, memory_gb=8, pack_minutes=30, parallel=10, most_jobs=50)


def member(seed: int, seconds: float | None = None, method: str = "bilevel") -> Member:
    return Member("row", "column", Cell("ridge", method, "sgd", seed), seconds)


def test_unknown_costs_get_the_whole_time_and_known_ones_a_part_of_it() -> None:
    free = Setbacks()
    assert needs(member(0), PROFILE, 0.0, free) == Needs(480, 8)
    assert needs(member(0, 60), PROFILE, 0.0, free) == Needs(30, 8), "no less than a pack"
    assert needs(member(0, 3600), PROFILE, 0.0, free) == Needs(120, 8), "with a margin"
    assert needs(member(0, 1e6), PROFILE, 0.0, free) == Needs(480, 8)
    short = replace(PROFILE, pack_minutes=1)
    assert needs(member(0, 1), short, 0.0, free).minutes == 15, "above ten minutes"


def test_memory_follows_what_was_measured_and_needs_grow_with_setbacks() -> None:
    assert needs(member(0), PROFILE, 10.0, Setbacks()).memory_gb == 16
    assert needs(member(0), PROFILE, 0.0, Setbacks(memory=1)).memory_gb == 16
    assert needs(member(0), PROFILE, 0.0, Setbacks(memory=9)).memory_gb == 32, "to a limit"
    assert needs(member(0), PROFILE, 0.0, Setbacks(time=1)).minutes == 960, "without most_time too"
    assert needs(member(0), PROFILE, 0.0, Setbacks(time=9)).minutes == 1920, "to a limit"
    longer = replace(PROFILE, most_time="2-00:00:00")
    assert needs(member(0), longer, 0.0, Setbacks(time=2)).minutes == 4 * 480
    shared = replace(PROFILE, at_once=4)
    assert needs(member(0), shared, 2.0, Setbacks()).memory_gb == 16
    done = Record(key="", cell=member(0).cell, status="done", cost={"peak_memory_bytes": 3e9})
    assert peaks([done, replace(done, status="failed")]) == {("ridge", "bilevel"): 3.0}


def test_cells_are_bundled_by_needs_and_packed_by_cost() -> None:
    short = [member(i, 60.0) for i in range(100)]
    long = [member(200 + i, 3600.0) for i in range(3)]
    unknown = [member(300 + i) for i in range(5)]
    found = bundles([*short, *long, *unknown], PROFILE, {}, {})
    assert [b.needs.minutes for b in found] == [480, 120, 30], "the longest first"
    assert [len(b.members) for b in found] == [5, 3, 100]
    # 100 minutes with their margin in packs of 30; a long cell is a pack of its own.
    assert [b.workers for b in found] == [5, 3, 5]
    many = bundles([member(i) for i in range(1000)], PROFILE, {}, {})
    assert [b.workers for b in many] == [50], "most_jobs"
    grown = bundles([member(0), member(1)], PROFILE, {}, {member(1).cell.key: Setbacks(memory=1)})
    assert {b.needs.memory_gb for b in grown} == {8, 16}


def test_no_more_jobs_than_most_jobs_whatever_cells_need() -> None:
    """Needs that differ by memory: a bundle of its own for each."""
    few = replace(PROFILE, most_jobs=3)
    one = [member(i) for i in range(5)]
    grown = {m.cell.key: Setbacks(memory=i) for i, m in enumerate(one)}
    most = replace(few, most_memory_gb=1000.0)
    found = bundles(one, most, {}, grown)
    assert [b.needs.memory_gb for b in found] == [128, 64, 32], "the largest first"
    assert [b.workers for b in found] == [1, 1, 1]
    # Small bundles have a job each, which the large one pays for.
    many = [*one[1:3], *(member(i) for i in range(10, 110))]
    assert [b.workers for b in bundles(many, replace(most, most_jobs=50), {}, grown)] == [1, 1, 48]


def test_cells_beyond_most_jobs_are_told_of_and_stay_open(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from metabench.cli.printing.cluster import print_draft
    from metabench.cluster.submitting import draft as drafting
    from metabench.store.store import Store
    from metabench.suites.planning import Planned

    planned = [
        Planned("r", "c", member(i).cell, "open", estimated_seconds=seconds)
        for i, seconds in enumerate((60.0, 3600.0, None))
    ]
    made = drafting.draft(planned, replace(PROFILE, most_jobs=2), Store(tmp_path), "s", "smoke")
    assert [m.cell.seed for b in made.bundles for m in b.members] == [2, 1]
    assert (made.cells, made.later) == (2, 1) and sum(p.size for p in made.parts) == 2
    out = io.StringIO()
    print_draft(Console(file=out), made, planned)
    assert "1 cell left for another submission" in out.getvalue()
    assert drafting.draft(planned, PROFILE, Store(tmp_path), "s", "smoke").later == 0


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    most=st.integers(1, 1001),
    parallel=st.integers(1, 200),
)
def test_arrays_keep_every_limit(sizes: list[int], most: int, parallel: int) -> None:
    found = [Bundle(Needs(60, 8), [], n) for n in sizes]
    made = parts(found, most, parallel)
    for at, n in enumerate(sizes):
        assert sum(p.size for p in made if p.bundle == at) == n
    assert all(1 <= p.size <= most and 1 <= p.parallel <= p.size for p in made)
    assert sum(p.parallel for p in made) <= max(parallel, len(made))


def test_parallelism_that_is_left_over_is_used() -> None:
    made = parts([Bundle(Needs(60, 8), [], 2500)], 1001, 64)
    assert [p.size for p in made] == [1001, 1001, 498]
    assert sum(p.parallel for p in made) == 64


def test_the_sbatch_file_is_as_it_was(tmp_path: Path) -> None:
    from metabench.cluster.profile import load
    from metabench.cluster.submitting import draft as drafting
    from metabench.store.store import Store
    from metabench.suites.planning import Planned

    profile = load("gpu-preemptible", {"account": "lab", "setup": ["module load cuda"],
                                       "python": "python3", "extra.mail-type": "END"})  # fmt: skip
    planned = [Planned("r", "c", member(i).cell, "open") for i in range(3)]
    made = drafting.draft(planned, profile, Store(tmp_path), "suite", "paper")
    made = replace(made, folder=Path("/runs/cluster/20300101-000000-suite-abcdef"))
    (script,) = made.scripts()
    golden = Path(__file__).with_name("gpu-preemptible.sbatch")
    assert script == golden.read_text()
    assert "4 cells" not in script and made.cells == 3


@pytest.mark.parametrize("state", ["done", "failed", "diverged", "not applicable"])
def test_only_missing_cells_are_taken(tmp_path: Path, state: str) -> None:
    from metabench.cluster.submitting import draft as drafting
    from metabench.store.store import Store
    from metabench.suites.planning import Planned

    planned = [
        Planned("r", "c", member(0).cell, state),  # type: ignore[arg-type]
        Planned("r", "c", member(1).cell, "open"),
        Planned("r", "c", member(1).cell, "open"),
        Planned("r", "c", member(2).cell, "timeout"),
    ]
    busy = {member(2).cell.key: "earlier"}
    made = drafting.draft(planned, PROFILE, Store(tmp_path), "suite", "smoke", busy=busy)
    assert [m.cell.seed for b in made.bundles for m in b.members] == [1]
    assert made.left_out == {member(2).cell.key: "earlier"} and made.others == {state: 1}
