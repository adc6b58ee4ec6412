"""The page on short look-aheads follows from its CSV, and its lines from the arena's problem."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))  # benchmarks/ is no package that is installed
from benchmarks.studies import short_horizon as study

RESULTS = study.ROOT / "results" / study.ARENA


def test_the_committed_page_follows_from_the_committed_lines() -> None:
    lines = study.read((RESULTS / "short-horizon.csv").read_text(encoding="utf-8"))
    page = (RESULTS / "short-horizon.md").read_text(encoding="utf-8")
    assert page == study.rendered(lines), "python -m benchmarks.studies.short_horizon"
    assert study.read(study.written(lines)) == lines
    cases = len(study.RATES) * len(study.TRAINED) * len(study.HORIZONS) + 1
    assert len(lines) == 10 * len(study.ANGLES) * cases


@pytest.mark.parametrize(
    ("values", "right", "said"),
    [
        ((1.0, 1.1, 0.9), 2.0, "right"),
        ((1.0, 1.1, 0.9), -2.0, "wrong"),
        ((-1.0, -1.1, -0.9), -2.0, "right"),
        ((1.0, -1.1, 0.9), 2.0, ""),
        ((1.0,), 2.0, ""),
    ],
)
def test_a_sign_is_told_where_the_interval_does_not_hold_0(
    values: tuple[float, ...], right: float, said: str
) -> None:
    assert study.verdict(values, right) == said


def test_the_page_counts_what_its_table_says() -> None:
    """One case a horizon: one step wrong, five not told, twenty right; twice, for two angles."""
    lines = []
    for angle in (12, 25):
        for seed in range(3):
            lines.append(study.Line(angle, 0.0, 0, 0, seed, -4.0 - 0.1 * seed))
            for horizon, value in ((1, 0.5), (5, (-1.0) ** seed), (20, -2.0)):
                value += 0.01 * seed
                lines.append(study.Line(angle, 0.1, 60, horizon, seed, value))
    text = study.rendered(lines)
    assert "mean over 3 seeds" in text and "-4.100 ± 0.248" in text
    assert text.endswith(
        "1 step: 0 right, 2 wrong, 0 not told; 5 steps: 0 right, 0 wrong, 2 not told; "
        "20 steps: 2 right, 0 wrong, 0 not told.\n"
    )


@pytest.mark.skipif(
    not (Path(os.environ.get("METABENCH_DATA", "/nowhere")) / "mnist").is_dir(),
    reason="needs MNIST in METABENCH_DATA",
)
def test_a_measured_line_is_the_committed_one() -> None:
    """Of the shortest training: every digit but the last ones, on any machine."""
    kept = study.read((RESULTS / "short-horizon.csv").read_text(encoding="utf-8"))
    known = {line[:5]: line.value for line in kept}
    found = [
        line
        for line in study.measured(0, angles=(12,), trained=(60,), rates=(0.1,))
        if line.horizon
    ]
    assert [line.horizon for line in found] == [*study.HORIZONS]
    for line in found:
        assert line.value == pytest.approx(known[line[:5]], rel=0.05, abs=1e-3)
