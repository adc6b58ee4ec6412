"""The iterated prisoners' dilemma: values by playing it, and each player's own slope."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import F64, differences

from metabench.contract.seeds import Seeds
from metabench.core.registry import tasks
from metabench.tasks import prisoners


def build(**settings_):
    return tasks.get("prisoners")(**settings_).build(Seeds.of(0), torch.device("cpu"))


ALWAYS, NEVER = 40.0, -40.0
TIT_FOR_TAT = [ALWAYS, ALWAYS, NEVER, ALWAYS, NEVER]
DEFECT = [NEVER] * 5
COOPERATE = [ALWAYS] * 5


def test_losses_of_known_strategies():
    problem = build(branches=4, discount=0.9)
    first = torch.tensor([COOPERATE, DEFECT, DEFECT, TIT_FOR_TAT], dtype=F64)
    second = torch.tensor([COOPERATE, DEFECT, COOPERATE, DEFECT], dtype=F64)
    # Tit-for-tat is betrayed once (3, then 2 for ever), whom it answers gains once.
    expected = torch.tensor([[1, 2, 0, 3 * 0.1 + 2 * 0.9], [1, 2, 3, 2 * 0.9]], dtype=F64)
    found = problem.losses({"first": first, "second": second})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), discount=st.floats(0, 0.95))
def test_losses_are_the_discounted_sum_over_rounds(seed, discount):
    problem = build(branches=2, discount=discount)
    gen = torch.Generator().manual_seed(seed)
    theta = {k: 2 * torch.randn(2, 5, generator=gen, dtype=F64) for k in prisoners.PLAYERS}
    found = problem.losses(theta)
    p, q = theta["first"].sigmoid(), theta["second"].sigmoid()
    for b in range(2):
        at = {}  # the chance of each pair of actions, cooperation as True
        for mine in (True, False):
            for other in (True, False):
                x, y = float(p[b, 0]), float(q[b, 0])
                at[mine, other] = (x if mine else 1 - x) * (y if other else 1 - y)
        total, weight = [0.0, 0.0], 1 - discount
        cost = {(True, True): (1, 1), (True, False): (3, 0), (False, True): (0, 3),
                (False, False): (2, 2)}  # fmt: skip
        index = {(True, True): 1, (True, False): 2, (False, True): 3, (False, False): 4}
        for _ in range(600):
            for pair, chance in at.items():
                total = [t + weight * chance * c for t, c in zip(total, cost[pair], strict=True)]
            new = dict.fromkeys(at, 0.0)
            for (mine, other), chance in at.items():
                x, y = float(p[b, index[mine, other]]), float(q[b, index[other, mine]])
                for m, n in new:
                    new[m, n] += chance * (x if m else 1 - x) * (y if n else 1 - y)
            at, weight = new, weight * discount
        assert found[:, b].tolist() == pytest.approx(total, abs=1e-7)


def test_each_player_descends_its_own_loss():
    problem = build(branches=3)
    theta = problem.init_outer()
    field = problem.field({}, theta, {})
    for i, player in enumerate(prisoners.PLAYERS):
        slope = differences(
            lambda x, i=i: problem.losses({**theta, **x})[i].sum(), {player: theta[player]}
        )
        torch.testing.assert_close(field[player], slope[player], rtol=1e-7, atol=1e-10)


def test_solutions_are_counted():
    problem = build(branches=3)
    episode = problem.episode("test", 0)
    kinds = torch.tensor([DEFECT, DEFECT, TIT_FOR_TAT], dtype=F64)
    found = problem.metrics({}, {"first": kinds, "second": kinds}, episode)
    assert found["solutions"] == 2.0
    assert found["defecting"] == pytest.approx(2 / 3)
    assert found["reciprocal"] == pytest.approx(1 / 3)
    trusting = torch.tensor([COOPERATE] * 3, dtype=F64)  # who would be exploited is no solution
    found = problem.metrics({}, {"first": trusting, "second": trusting}, episode)
    assert found["solutions"] == 0.0
    assert found["loss"] == pytest.approx(1.0)
