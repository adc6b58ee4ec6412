"""A learned start against MAML's own formula, in float64, and where inner problems come from."""

from __future__ import annotations

import own_problems
import pytest
import torch
from own_problems import linear, numbers, regression, regressions

from metabench import problem_from, testing

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


@pytest.mark.parametrize("method", ["maml", "bilevel"])
def test_one_step_from_the_start_has_the_hypergradient_of_maml(method: str) -> None:
    """(I - a H) grad F(lam - a grad G(lam)), H = 2/n X'X."""
    (x, y), (xq, yq), a = numbers(20), numbers(15, 1), 0.1
    task = problem_from(linear(bias=False), (x, y), (xq, yq), learn="initialisation")
    ctx = testing.context(task)
    how = testing.build("method", method, inner_steps=1, inner_lr=a)
    lam = ctx.problem.init_outer()
    found = how.hypergradient(ctx, lam, None, ctx.problem.episode("train", 0))
    w = lam["weight"][0]
    theta = w - a * 2 / 20 * x.T @ (x @ w - y[:, 0])
    slope = 2 / 15 * xq.T @ (xq @ theta - yq[:, 0])
    expected = slope - a * 2 / 20 * x.T @ (x @ slope)
    torch.testing.assert_close(found.theta["weight"][0], theta, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.grad["weight"][0], expected, rtol=1e-12, atol=1e-12)


def test_a_list_is_gone_through_again_and_again_in_new_orders() -> None:
    given = regressions(5)
    task = problem_from(
        linear(), given, regressions(3, 1), test=regressions(2, 2), learn="initialisation"
    )
    problem = testing.context(task).problem
    assert [problem.count(split) for split in ("train", "valid", "test")] == [5, 3, 2]

    def place(index: int) -> int:
        x = problem.episode("train", index).batch(0)["x"]
        return next(i for i, ((s, _), _) in enumerate(given) if torch.equal(s, x))

    rounds = [[place(5 * r + i) for i in range(5)] for r in range(4)]
    assert all(sorted(one) == [*range(5)] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert torch.equal(problem.episode("test", 1).outer["y"], regressions(2, 2)[1][1][1])
    with pytest.raises(IndexError):
        problem.episode("test", 2)


def test_a_function_draws_by_split_index_and_seed() -> None:
    task = problem_from(linear(), regression, regression, learn="initialisation")
    problem, other = (testing.context(task, seed=s).problem for s in (0, 1))
    assert problem.count("train") is None

    def x(p: object, split: str, index: int) -> torch.Tensor:
        found: torch.Tensor = p.episode(split, index).batch(0)["x"]  # type: ignore[attr-defined]
        return found

    assert torch.equal(x(problem, "train", 3), x(problem, "train", 3))
    assert not torch.equal(x(problem, "train", 3), x(problem, "valid", 3))
    assert not torch.equal(x(problem, "train", 3), x(problem, "train", 4))
    assert not torch.equal(x(problem, "train", 3), x(other, "train", 3))


def test_episodes_of_one_data_set_start_anew_and_are_one() -> None:
    task = problem_from(own_problems.mlp, *own_problems.BINARY, learn="initialisation")
    problem = testing.context(task).problem
    assert problem.episodes_per_step == 1 and problem.count("train") == 1 and not problem.carried
    assert task.outer_on_validation and "full_batch" in task.offers


def test_several_inner_problems_a_step() -> None:
    task = problem_from(linear(), regression, regression, learn="initialisation", meta_batch=3)
    assert testing.context(task).problem.episodes_per_step == 3
