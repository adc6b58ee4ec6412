"""The footnote that says over what ± is an interval names the split that the table is of."""

from dataclasses import replace

import pytest

from metabench.analysis.results import collect
from metabench.reports.tables import grids
from metabench.store.record import Estimate


def text(helpers, evaluation, episodes, seeds=(0, 1, 2)):
    suite = replace(helpers.make_suite(floor=""), evaluation=evaluation)
    store = helpers.Fake()
    for place in suite.cells("laptop", seeds=seeds):
        known = Estimate(0.5 + 0.1 * place.cell.seed, episodes, 0.1, None if episodes == 1 else 0.1)
        store.add(place, metrics={evaluation: {"accuracy": known}})
    return grids.table(
        collect(suite, "laptop", store, seeds=seeds, why_not=helpers.allowed), "text"
    )


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [("test", "test"), ("valid", "validation"), ("test@5_steps", "test"), ("shifted", "shifted")],
)
def test_episodes_are_those_of_the_tables_split(helpers, evaluation, words):
    assert f"(n = 3 seeds, 4 {words} episodes each)" in text(helpers, evaluation, 4)
    one = text(helpers, evaluation, 4, seeds=(0,))
    assert f"the 95 % t-interval over the 4 {words} episodes of that run" in one
    assert f"is one seed on one {words} episode." in text(helpers, evaluation, 1, seeds=(0,))


def test_one_episode_is_one(helpers):
    assert "(n = 3 seeds, 1 test episode each)" in text(helpers, "test", 1)
