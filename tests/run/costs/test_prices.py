import time

import pytest
import torch

from metabench.contract.seeds import Seeds
from metabench.core.costs import PRICED
from metabench.core.errors import NotApplicable
from metabench.core.registry import tasks
from metabench.core.settings import build
from metabench.run.costs.prices import _timed, measure, operations, smoothness


def made(name, **settings):
    return build(tasks.get(name), settings, name)


def test_every_count_of_a_problem_has_a_price():
    found = measure(made("ridge"))
    assert set(found.of) == set(PRICED)
    assert found.of["inner_gradients"] == 1.0
    assert all(price > 0 for price in found.of.values())
    assert found.inner_gradient_seconds > 0
    assert found.settings["rows"] == made("ridge").rows


def test_what_is_timed_is_what_is_counted():
    """On a quadratic in closed form: the product is H v, and the mixed one M v."""
    problem = made("quadratic", dim=3).build(Seeds.of(0), torch.device("cpu"))
    pieces = operations(problem)
    lam = problem.init_outer()
    episode = problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    (value, grad) = pieces["inner_gradients"]()
    assert value == problem.inner_loss(lam, theta, episode.batch(0))
    assert pieces["function_evaluations"]() == value
    hessian = torch.func.hessian(lambda p: problem.inner_loss(lam, p, episode.batch(0)))(theta)
    for piece, many in ((pieces["hvps"], 3), (pieces["mixed_products"], 3)):
        first, again = piece(), piece()
        assert len(first[0].flatten()) == many
        assert torch.equal(first[0], again[0])  # the graph is there still
    name = next(iter(grad))
    (product,) = pieces["hvps"]()
    assert torch.linalg.matrix_rank(hessian[name][name]) == 3
    assert product.abs().sum() > 0


def test_one_thread_is_timed_by_its_own_work_and_not_by_the_clock():
    """Waiting, as for a core that others use, is no work; several threads have no clock but the
    wall's."""
    threads, pieces = torch.get_num_threads(), {"waits": lambda: time.sleep(0.02)}
    try:
        torch.set_num_threads(1)
        assert _timed(pieces, torch.device("cpu"))["waits"] < 0.01
        torch.set_num_threads(2)
        assert _timed(pieces, torch.device("cpu"))["waits"] >= 0.02
    finally:
        torch.set_num_threads(threads)


def test_a_task_without_gradients_has_no_prices():
    with pytest.raises(NotApplicable, match="recipe_bandit has no gradients"):
        measure(made("recipe_bandit"))


def test_measuring_leaves_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measure(made("ridge"))
    assert torch.equal(torch.get_rng_state(), before)


def test_smoothness_is_the_largest_eigenvalue():
    assert smoothness(made("quadratic", a=3.0)) == pytest.approx(3.0, rel=1e-12)
    task = made("quadratic", dim=6)
    problem = task.build(Seeds.of(4), torch.device("cpu"))
    lam = problem.init_outer()
    episode = problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    (name,) = theta
    hessian = torch.func.hessian(lambda p: problem.inner_loss(lam, p, episode.batch(0)))(theta)
    largest = float(torch.linalg.eigvalsh(hessian[name][name]).max())
    assert smoothness(task, seed=4) == pytest.approx(largest, rel=1e-2)


def test_a_task_without_second_derivatives_has_no_smoothness():
    with pytest.raises(NotApplicable, match="recipe_bandit has no second derivatives"):
        smoothness(made("recipe_bandit"))
