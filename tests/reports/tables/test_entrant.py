"""What is said of those who are not compared with a method: a line a reason."""

from __future__ import annotations

from metabench.analysis.arena.entrant import Place
from metabench.reports.tables import entrant


def test_who_is_left_out_is_told_by_reason_that_of_most_methods_first() -> None:
    several = {
        "hoag": {"two": ["needs a"], "three": ["needs a"]},
        "es": {"three": ["too many scalars", "with batches"]},
        "stn": {"three": ["too many scalars"], "four": ["too many scalars"]},
    }
    place = Place("A", True, "mine", ["two", "three", "four"], 3, [], [], several)
    assert entrant.left_out(place) == [
        "left out, too many scalars (three, four): 2 methods: es, stn",
        "left out, needs a (two, three): 1 method: hoag",
        "left out, with batches (three): 1 method: es",
    ]
    assert entrant.left_out(Place("A", True, "mine", ["two"], 1, [], [])) == []
