"""The marks have the error that they promise, and the power that the note prints."""

import math

import numpy as np
import pytest

from metabench.analysis import stats
from metabench.analysis.comparisons import ALPHA, compare

TABLES = 400


def drawn(generator, rows, seeds, spread=1.0, better=0.0):
    """A column: each seed shifts every row, as data and test episodes do."""
    numbers = generator.normal(size=(rows, seeds)) * np.linspace(1.0, spread, rows)[:, None]
    numbers = numbers + 5 * generator.normal(size=seeds)
    numbers[0] += better
    return {f"r{i}": dict(enumerate(map(float, row))) for i, row in enumerate(numbers)}


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(("rows", "spread"), [(2, 1.0), (5, 1.0), (9, 1.0), (9, 5.0)])
def test_equal_rows_are_marked_in_no_more_than_one_table_of_twenty(seeds, rows, spread):
    generator = np.random.default_rng(rows + seeds)
    wrong = sum(bool(compare(drawn(generator, rows, seeds, spread)).worse) for _ in range(TABLES))
    # Four standard deviations of the count, so that no right procedure fails by chance.
    assert wrong / TABLES < ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / TABLES)
    assert spread > 1 or wrong / TABLES > 0.015  # and it is not that nothing is ever marked


def test_rows_against_the_best_alone_would_be_marked_too_often():
    """Why the correction is over all pairs: the best row is chosen by the same numbers."""
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(TABLES):
        rows = drawn(generator, 9, 10)
        best = max(rows, key=lambda r: stats.mean([*rows[r].values()]))
        p = [stats.paired_t([*rows[best].values()], [*rows[r].values()]) for r in rows if r != best]
        wrong += min(stats.holm(p)) < ALPHA
    assert wrong / TABLES > 0.09


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_better_row_hides_no_error_among_the_others(seeds):
    """Family-wise in the strong sense: equal rows beside one that is far better."""
    generator, wrong = np.random.default_rng(seeds), 0
    for _ in range(TABLES):
        family = compare(drawn(generator, 6, seeds, better=1e3))
        wrong += any(pair.shown for (a, _), pair in family.pairs.items() if a != "r0")
    assert wrong / TABLES < ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / TABLES)


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_difference_of_the_note_is_seen_with_its_power(seeds):
    """Differences of two rows of deviation 1 have deviation sqrt 2."""
    generator = np.random.default_rng(seeds)
    better = stats.detectable(math.sqrt(2), seeds, ALPHA / 10, 0.8)
    shown = sum(
        compare(drawn(generator, 5, seeds, better=better)).pairs["r0", "r1"].shown
        for _ in range(TABLES)
    )
    # Later steps of Holm's correction show a little more than the first.
    assert 0.75 < shown / TABLES < 0.95
    family = compare(drawn(generator, 5, seeds))
    spreads = sorted(p.spread for p in family.pairs.values())
    low, high = (stats.detectable(s, seeds, ALPHA / 10, 0.8) for s in (spreads[0], spreads[-1]))
    found = family.detectable
    assert (found.least, found.most) == (low, high)
    assert low <= found.median <= high


def test_rows_without_spread_or_with_few_seeds_are_not_tested():
    rows = {
        "a": {0: 1.0, 1: 2.0, 2: 3.0},
        "same": {0: 0.5, 1: 1.5, 2: 2.5},
        "round_off": {0: 1.0, 1: 2.0 + 1e-15, 2: 3.0},
        "short": {0: 0.1, 1: 0.3},
        "b": {0: 0.9, 1: 1.8, 2: 2.6},
    }
    family = compare(rows)
    tested = {at for at, pair in family.pairs.items() if pair.p is not None}
    assert tested == {("a", "b"), ("same", "b"), ("round_off", "b")}
    assert family.tests == 3
    assert compare({"a": {0: 1.0}, "b": {1: 2.0}}).of("a", "b") is None


def test_a_pair_is_one_test_from_both_sides():
    family = compare({"a": {0: 1.0, 1: 2.0, 2: 4.0}, "b": {0: 0.9, 1: 1.8, 2: 3.7}}, "min")
    there, back = family.of("a", "b"), family.of("b", "a")
    assert there.gain == pytest.approx(-0.2)
    assert (there.gain, there.p, there.pm) == (-back.gain, back.p, back.pm)


def test_powers_of_ten_are_compared_by_logarithms_where_all_are_positive():
    """Beside errors near 1, one of 1e-9 that varies tenfold is nothing but the logarithms'."""
    rows = {"a": {0: 1e-9, 1: 1e-8, 2: 1e-10}, "b": {0: 0.9, 1: 0.1, 2: 0.5}}
    assert not compare(rows, "min").worse
    assert compare(rows, "min", logs=True).worse == {"b"}
    zero = {**rows, "c": {0: 0.0, 1: 1.0, 2: 2.0}}
    assert compare(zero, "min", logs=True).logs is False
