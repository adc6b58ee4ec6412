"""Cancelling, where there is no cluster."""

from __future__ import annotations

import re
from pathlib import Path

from metabench.cluster.submission import Array, Submission, submissions
from metabench.store.store import Store


def test_what_cannot_be_asked_is_not_called_cancelled(type_, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    place = tmp_path / "runs" / "cluster" / "one"
    place.mkdir(parents=True)
    arrays = [Array("mb-a-0", 0, 2, "7", 1.0)]
    made = Submission(place, "quickstart", "smoke", {"name": "site"}, "", "", 1.0, 2, None, arrays)
    made.write()
    done = type_("cancel", "quickstart", "--budget", "smoke")
    assert done.exit_code == 1
    assert "nothing was cancelled on site: squeue is not here" in done.output
    (again,) = submissions(Store(tmp_path / "runs"))
    assert again.cancelled is None


def test_all_is_of_every_budget_unless_one_is_typed(type_, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, budget in (("one", "smoke"), ("two", "paper")):
        place = tmp_path / "runs" / "cluster" / name
        place.mkdir(parents=True)
        at = {"name": f"site-{budget}"}
        Submission(place, "quickstart", budget, at, "", "", 1.0, 2, None, []).write()
    said = re.sub(r"\s+", " ", type_("cancel", "all", "--budget", "laptop").output)
    assert "no submission of suite 'all --budget laptop'" in said
    assert "on site-paper" in type_("cancel", "all", "--budget", "paper").output
    assert "on site-smoke" in type_("cancel", "all").output  # the first of both
