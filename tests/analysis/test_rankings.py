"""Rankings have a block a problem, and refuse where they must."""

import numpy as np
import pytest

from metabench.analysis import stats
from metabench.analysis.rankings import FEWEST, normalised, ranked
from metabench.analysis.results import collect
from metabench.store.record import Estimate

ROWS = ("maml", "fomaml", "anil", "reptile", "bilevel", "fixed")


def results(helpers, value, problems=FEWEST, *, same=(), suite=None, **changes):
    """A suite of ``problems`` columns; ``value(row, problem, seed)`` is what each run has, None for
    a hole; the columns ``same`` share a problem."""
    base = helpers.make_suite()
    columns = [
        {"id": f"c{i}", "task": "ridge", "label": f"C{i}", "set": {"task": {"rows": 40 + i}}}
        | ({"problem": "twins"} if i in same else {})
        for i in range(problems)
    ]
    made = helpers.make_suite(columns=columns, paper=[], paper_rows=[], floor="", **changes)
    assert [r.id for r in made.rows] == [r.id for r in base.rows] == list(ROWS)
    store = helpers.Fake()
    for place in made.cells("laptop"):
        found = value(place.row, int(place.column[1:]), place.cell.seed)
        if found is not None:
            store.add(place, metrics={"test": {"accuracy": Estimate(float(found), 600, 0.1, 0.01)}})
    return collect(made, "laptop", store, why_not=helpers.allowed)


def order(row, problem, seed):
    """The suite's order in every problem, seeds far apart."""
    return 0.9 - 0.1 * ROWS.index(row) + 0.01 * seed + 0.001 * problem


def test_a_block_is_a_problem(helpers):
    found = ranked(results(helpers, order))
    assert found.rows == ROWS
    assert found.problems == tuple(f"C{i}" for i in range(6))
    assert found.ranking.blocks == 6
    assert found.means == (1, 2, 3, 4, 5, 6)
    assert "6 problems" in found.footnotes[0]


def test_a_row_with_lost_runs_ranks_after_those_without(helpers):
    """In the problem where it lost one, by whatever its survivors have."""
    found = results(helpers, order)
    for run in found.table_cells["maml", "c2"].runs[:1]:
        object.__setattr__(run, "state", "diverged")
    ranks = dict(zip(ROWS, zip(*ranked(found).ranks, strict=True), strict=True))
    assert ranks["maml"] == (1, 1, 6, 1, 1, 1)
    assert ranks["fomaml"] == (2, 2, 1, 2, 2, 2) and ranks["fixed"] == (6, 6, 5, 6, 6, 6)
    assert (
        "Where runs of a row are lost, it ranks after rows without (MAML)."
        in ranked(found).footnotes
    )


def test_columns_of_one_problem_are_one_block(helpers):
    def value(row, problem, seed):
        return order(row, problem, seed) if problem else -order(row, problem, seed)

    found = ranked(results(helpers, value, 7, same=(0, 1)))
    assert found.problems[0] == "twins"
    assert found.ranking.blocks == 6
    assert found.ranks[0] == (3.5,) * 6  # best in one of the two and worst in the other


def test_below_six_problems_there_are_ranks_and_no_test(helpers):
    found = ranked(results(helpers, order, FEWEST - 1))
    assert found.ranking is None
    assert found.means == (1, 2, 3, 4, 5, 6)
    assert "Not tested" in found.footnotes[0]
    assert not any("p =" in note for note in found.footnotes)


def test_two_methods_are_not_tested(helpers):
    found = ranked(results(helpers, lambda r, c, s: order(r, c, s) if r in ROWS[:2] else None, 8))
    assert found.ranking is None
    assert found.rows == ROWS[:2]


def test_rows_with_holes_give_way_until_six_problems_are_complete(helpers):
    found = ranked(results(helpers, lambda r, c, s: order(r, c, s) if r != "anil" or c else None))
    assert found.numbers == (0, 1, 3, 4, 5)
    assert found.ranking.blocks == 6
    assert any("ANIL" in note for note in found.footnotes)


def test_nothing_finished_is_no_ranking(suite, helpers):
    found = ranked(collect(suite, "laptop", helpers.Fake(), why_not=helpers.allowed))
    assert (found.rows, found.ranks, found.means, found.ranking) == ((), (), (), None)


def test_methods_that_no_two_problems_agree_about_are_not_told_apart(helpers):
    """Each method is good and bad at random by problem, the same in every seed: as an own block
    each seed would call them different in half of all tables."""
    generator, wrong, tables = np.random.default_rng(0), 0, 150
    pseudo = 0
    for _ in range(tables):
        effects = generator.normal(size=(FEWEST, 6))
        noisy = effects[:, None] + 0.3 * generator.normal(size=(FEWEST, 3, 6))
        wrong += stats.ranking([stats.ranks(list(p)) for p in noisy.mean(1)], "min").p < 0.05
        pseudo += stats.ranking(noisy.reshape(-1, 6).tolist()).p < 0.05
    assert wrong / tables < 0.05 + 4 * (0.05 * 0.95 / tables) ** 0.5
    assert pseudo / tables > 0.3


def test_ranks_share_what_round_off_alone_tells_apart():
    assert stats.ranks([0.3, 0.1, 0.3 + 1e-13, 0.2]) == [1.5, 4.0, 1.5, 3.0]
    assert stats.ranks([0.3, 0.1, 0.3, 0.2], "min") == [3.5, 1.0, 3.5, 2.0]
    assert stats.ranks([]) == []


def test_scores_are_0_without_learning_and_1_at_the_bound(helpers):
    found = normalised(results(helpers, order, 2))
    assert "fixed" not in found.by_row
    zero = 0.4 + 0.01  # the mean of the fixed row over seeds 0 to 2, in the first column
    first = [(0.9 + 0.01 * s - zero) / (1 - zero) for s in range(3)]
    assert found.by_row["maml"][0] == pytest.approx(first)
    assert found.columns == ("c0", "c1")


def test_a_bound_is_in_the_tables_unit_and_a_loss_needs_one(helpers):
    changes = {"goal": "min", "percent": False}
    found = normalised(results(helpers, order, 1, **changes))
    assert found.by_row == {}
    assert "no bound" in found.left_out[0]
    column = {"id": "c0", "task": "ridge", "label": "C0", "bound": 0.1}
    made = helpers.make_suite(columns=[column], paper=[], paper_rows=[], floor="", **changes)
    assert made.bound(made.columns[0]) == 0.1
    percent = helpers.make_suite(columns=[column | {"bound": 95.0}], paper=[], paper_rows=[])
    assert percent.bound(percent.columns[0]) == pytest.approx(0.95)


def test_a_column_where_nothing_can_be_gained_has_no_score(helpers):
    found = normalised(results(helpers, lambda r, c, s: 1.0 if c else order(r, c, s), 2))
    assert found.columns == ("c0",)
    assert found.left_out == ("C1: no learning is as good as the bound",)
