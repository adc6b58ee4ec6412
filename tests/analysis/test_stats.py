import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optional import needs

from metabench.analysis import stats

# Demsar 2006, table 6: AUC of four classifiers on 14 data sets; mean ranks 3.143, 2.000, 2.893,
# 1.964 and critical difference 1.25 are printed in the paper.
DEMSAR = [
    (0.763, 0.768, 0.771, 0.798),
    (0.599, 0.591, 0.590, 0.569),
    (0.954, 0.971, 0.968, 0.967),
    (0.628, 0.661, 0.654, 0.657),
    (0.882, 0.888, 0.886, 0.898),
    (0.936, 0.931, 0.916, 0.931),
    (0.661, 0.668, 0.609, 0.685),
    (0.583, 0.583, 0.563, 0.625),
    (0.775, 0.838, 0.866, 0.875),
    (1.000, 1.000, 1.000, 1.000),
    (0.940, 0.962, 0.965, 0.962),
    (0.619, 0.666, 0.614, 0.669),
    (0.972, 0.981, 0.9751, 0.975),
    (0.957, 0.978, 0.946, 0.970),
]


def test_interval_by_hand():
    # 2, 4, 9: mean 5, variance (9 + 1 + 16) / 2 = 13, t(0.975, 2) = 4.302653.
    assert stats.mean([2, 4, 9]) == 5
    assert stats.std([2, 4, 9]) == pytest.approx(math.sqrt(13))
    assert stats.half_width([2, 4, 9]) == pytest.approx(4.30265273 * math.sqrt(13 / 3))


def test_one_value_has_no_spread():
    assert stats.std([3.0]) is None
    assert stats.half_width([3.0]) is None


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_of_nothing_or_of_what_is_not_finite(values):
    with pytest.raises(ValueError, match="no mean"):
        stats.mean(values)


def test_iqm_by_hand():
    # Eight values: the two lowest and the two highest go.
    assert stats.iqm([100, 3, 4, 5, 6, -50, -60, 200]) == pytest.approx(4.5)
    assert stats.iqm([1, 2, 9]) == 4  # a quarter of three is none


@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=30))
def test_iqm_and_ranks_are_scipys(values):
    from scipy.stats import rankdata, trim_mean

    assert stats.iqm(values) == pytest.approx(trim_mean(values, 0.25), abs=1e-12)
    assert stats.ranks(values, "min") == rankdata(values).tolist()
    assert stats.ranks(values) == rankdata([-v for v in values]).tolist()


def test_bootstrap_is_stratified():
    # Within a group all values are equal: resampling inside groups changes nothing at all.
    groups = [[1.0] * 3, [5.0] * 9]
    assert stats.bootstrap(groups, lambda v: float(v.mean())) == (4.0, 4.0)


def test_bootstrap_covers_what_it_should():
    rng = np.random.default_rng(3)
    hits = 0
    for i in range(60):
        groups = [rng.normal(0, 1, 20), rng.normal(1, 1, 20)]
        low, high = stats.bootstrap(groups, lambda v: float(v.mean()), samples=300, seed=i)
        hits += low <= 0.5 <= high
    assert 50 <= hits <= 60


def test_bootstrap_is_the_same_from_the_same_seed():
    groups = [[1.0, 2.0, 4.0], [0.0, 3.0]]
    first = stats.bootstrap(groups, stats.iqm, samples=50, seed=1)
    assert first == stats.bootstrap(groups, stats.iqm, samples=50, seed=1)
    assert first != stats.bootstrap(groups, stats.iqm, samples=50, seed=2)


def test_paired_t_by_hand():
    # Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641, p = 0.0742 with 2 degrees of freedom.
    assert stats.paired_t([2, 4, 6], [1, 2, 3]) == pytest.approx(0.074179900, abs=1e-8)


def test_paired_t_without_chance():
    assert stats.paired_t([1.0, 2.0], [1.0, 2.0]) is None
    assert stats.paired_t([2.0, 3.0], [1.0, 2.0]) is None
    assert stats.paired_t([1.0], [2.0]) is None


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=2, max_size=12))
def test_paired_t_is_scipys(pairs):
    from scipy.stats import ttest_rel

    a, b = zip(*pairs, strict=True)
    spread = stats.std([x - y for x, y in pairs])
    if spread < 1e-6:
        return
    assert stats.paired_t(a, b) == pytest.approx(float(ttest_rel(a, b).pvalue), rel=1e-6, abs=1e-12)


def test_wilcoxon_has_no_power_with_few():
    assert stats.wilcoxon([2, 4, 6], [1, 2, 3]) == pytest.approx(0.25)
    assert stats.wilcoxon([10, 20, 30, 40, 50, 60], [1, 2, 3, 4, 5, 6]) == pytest.approx(0.03125)
    assert stats.wilcoxon([1, 2], [1, 2]) is None


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.05 / 8), (5, 0.05 / 36), (10, 0.05)])
def test_a_detectable_difference_has_its_power(n, alpha):
    from scipy.stats import nct, t

    critical = t.isf(alpha / 2, n - 1)
    found = stats.detectable(2.0, n, alpha, 0.8)
    assert nct.sf(critical, n - 1, found / 2.0 * n**0.5) == pytest.approx(0.8, abs=1e-5)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.9 times 4, 3, 2, 1, then never falling.
    assert stats.holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_never_lowers_a_p_nor_changes_their_order(p):
    corrected = stats.holm(p)
    assert all(q >= x and q <= 1 for q, x in zip(corrected, p, strict=True))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(corrected[i] <= corrected[j] for i, j in pairwise(order))


def test_ranking_of_demsar_2006():
    found = stats.ranking(DEMSAR)
    assert found.ranks == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=5e-4)
    assert found.critical == pytest.approx(1.25, abs=5e-3)
    assert found.blocks == 14
    assert found.cliques() == [(3, 1, 2, 0)]  # 1.179 apart at most: the paper has it at 10 % only


def test_cliques_are_the_largest_groups_within_the_critical_difference():
    found = stats.Ranking((1.0, 4.0, 2.5, 2.0), 10, 0.01, 1.6, 11.3)
    assert found.cliques() == [(0, 3, 2), (2, 1)]
    assert [found.better(i) for i in range(4)] == [[], [0, 3], [], []]
    assert stats.Ranking((1.0, 3.0, 5.0), 10, 0.01, 1.0, 9.2).cliques() == []


def test_where_the_friedman_test_finds_nothing_no_pair_differs():
    """However far apart two mean ranks lie: a diagram and a mark are not to contradict the p."""
    found = stats.Ranking((1.0, 4.0, 2.5, 2.0), 10, 0.06, 1.6, 7.4)
    assert not found.rejected and not any(found.better(i) for i in range(4))
    assert found.cliques() == [(0, 3, 2, 1)]


def test_ranking_is_scipys_friedman():
    from scipy.stats import friedmanchisquare

    columns = list(zip(*DEMSAR, strict=True))
    found, theirs = stats.ranking(DEMSAR), friedmanchisquare(*columns)
    assert found.p == pytest.approx(float(theirs.pvalue))
    assert found.statistic == pytest.approx(float(theirs.statistic))


def test_critical_difference_is_scikit_posthocs():
    posthocs = needs("scikit_posthocs")
    table = np.array(DEMSAR)
    p = posthocs.posthoc_nemenyi_friedman(table).to_numpy()
    found = stats.ranking(DEMSAR)
    for i in range(4):
        for j in range(4):
            apart = abs(found.ranks[i] - found.ranks[j]) > found.critical
            assert apart == (p[i, j] < 0.05), (i, j)


def test_holm_is_scikit_posthocs():
    posthocs = needs("scikit_posthocs")
    from scipy.stats import ttest_rel

    table = np.array(DEMSAR)[:9]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    plain = [float(ttest_rel(table[:, i], table[:, j]).pvalue) for i, j in pairs]
    import pandas as pd

    frame = pd.DataFrame(
        [(v, m) for row in table for m, v in enumerate(row)], columns=["value", "method"]
    ).sort_values("method", kind="stable")
    theirs = posthocs.posthoc_ttest(
        frame, val_col="value", group_col="method", p_adjust="holm", equal_var=True
    ).to_numpy()
    from scipy.stats import ttest_ind

    unpaired = [float(ttest_ind(table[:, i], table[:, j]).pvalue) for i, j in pairs]
    assert stats.holm(unpaired) == pytest.approx([theirs[i, j] for i, j in pairs])
    assert stats.holm(plain) >= plain


def test_ranking_turns_with_the_goal_and_shares_ties():
    rows = [(1.0, 2.0, 2.0), (1.0, 2.0, 2.0)]
    assert stats.ranking(rows, "max").ranks == (3.0, 1.5, 1.5)
    assert stats.ranking(rows, "min").ranks == (1.0, 2.5, 2.5)


def test_ranking_of_equals():
    found = stats.ranking([(1.0, 1.0, 1.0)] * 4)
    assert (found.p, found.statistic) == (1.0, 0.0)
    assert found.cliques() == [(0, 1, 2)]


@pytest.mark.parametrize("scores", [[(1, 2)] * 5, [(1, 2, 3)], []])
def test_ranking_refuses_too_little(scores):
    with pytest.raises(ValueError, match="3 methods and 2 blocks"):
        stats.ranking(scores)


def test_profile_by_hand():
    groups = [[0.1, 0.9], [0.5, 0.6, 0.7, 0.8]]
    assert stats.profile(groups, [0.0, 0.6, 0.85, 1.0]) == pytest.approx([1, 0.625, 0.25, 0])
    assert stats.profile(groups, [0.55], "min") == pytest.approx([0.375])


def test_the_interval_of_an_interquartile_mean_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=10).tolist(), rng.normal(1.0, 2.0, size=7).tolist()]
    one = stats.iqm_interval(groups, samples=20_000)
    # Of 17 values, four are cut at either end.
    other = stats.bootstrap(groups, lambda x: float(np.sort(x)[4:13].mean()), samples=20_000)
    assert one == pytest.approx(other, abs=0.025)
    assert stats.iqm_interval([[2.0] * 5]) == (2.0, 2.0)
