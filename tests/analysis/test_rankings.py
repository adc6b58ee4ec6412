from metabench.analysis.rankings import ranked, scores
from metabench.analysis.results import collect


def test_complete_results_are_ranked_over_columns_and_seeds(full):
    found = ranked(full[0])
    assert found.ranking.blocks == 6
    assert len(found.rows) == 6
    assert "2 columns × seeds" in found.footnotes[0]
    assert any("not further tasks" in note for note in found.footnotes)
    best = min(range(6), key=lambda i: found.ranking.ranks[i])
    assert found.rows[best] == "bilevel"


def test_rows_with_holes_give_way_until_blocks_are_complete(holed):
    found = ranked(holed[0])
    assert found.ranking.blocks == 2
    assert any("Too few blocks" in note for note in found.footnotes)


def test_too_little_is_said_and_not_ranked(suite, helpers):
    store = helpers.Fake()
    for results in (
        collect(suite, "laptop", store, why_not=helpers.allowed),
        collect(suite, "smoke", helpers.fill(suite, "smoke"), seeds=[5], why_not=helpers.allowed),
    ):
        found = ranked(results)
        assert found.ranking is None
        assert "No ranking" in found.footnotes[0]


def test_a_row_without_any_value_is_left_out_by_name(suite, helpers):
    store = helpers.fill(suite, "laptop")
    for place in suite.cells("laptop"):
        if place.row == "anil":
            store.add(place, **helpers.failure("failed"))
    found = ranked(collect(suite, "laptop", store, why_not=helpers.allowed))
    assert "anil" not in found.rows
    assert found.numbers == (0, 1, 3, 4, 5)
    assert any("ANIL" in note for note in found.footnotes)


def test_scores_are_by_column(holed):
    assert [len(group) for group in scores(holed[0], "bilevel")] == [3, 2]
    assert [len(group) for group in scores(holed[0], "reptile")] == [3]
