"""The linear game: implicit differentiation solves the transposed system, or says why not."""

import pytest
import torch
from oracles import F64, context, hypergradient

from metabench.core.capabilities import why_not
from metabench.core.errors import SettingError
from metabench.core.registry import methods, tasks


def game(**settings):
    return tasks.get("bilinear")(dim=3, condition=4.0, **settings)


@pytest.mark.parametrize("adversarial", [0.0, 0.6, 0.8])
@pytest.mark.parametrize(
    "settings",
    [
        {"inverse": "exact"},
        {"inverse": "neumann", "alpha": 0.3, "terms": 4000, "growth_limit": 1e9},
    ],
)
def test_implicit_hypergradients_of_a_game(adversarial, settings):
    ctx = context(game(adversarial=adversarial))
    lam = {"centre": torch.linspace(-1, 1, 6, dtype=F64)}
    found = hypergradient(ctx, "ift", lam=lam, inner_steps=4000, inner_lr=0.3, **settings)
    # theta* = lam, so that the hypergradient is grad F there.
    torch.testing.assert_close(
        found["centre"], lam["centre"] - ctx.problem.target, rtol=1e-7, atol=1e-8
    )


def test_conjugate_gradient_refuses_a_game():
    ctx = context(game())
    with pytest.raises(SettingError, match=r"inverse = \"cg\" solves symmetric systems"):
        hypergradient(ctx, "ift", inner_steps=1, inner_lr=0.1, inverse="cg")


def test_methods_that_train_with_a_loss_do_not_apply():
    task = game()
    for name in ("pbgd", "sgld", "imaml", "stn", "hoag"):
        assert why_not(task, methods.get(name)()) is not None, name
    assert "follow the gradient of a loss" in why_not(task, methods.get("pbgd")())
    for name in ("bilevel", "ift", "fixed", "random"):
        assert why_not(tasks.get("bilinear")(), methods.get(name)()) is None, name


def test_the_mixture_is_the_gradient_of_two_losses_where_nobody_opposes():
    problem = context(game(adversarial=0.0)).problem
    lam, theta = problem.init_outer(), problem.init_inner({}, None)
    field = problem.field(lam, theta, {})
    torch.testing.assert_close(field["x"], problem.entries * theta["x"])
    torch.testing.assert_close(field["y"], problem.entries * theta["y"])
    assert float(problem.entries.log().mean()) == pytest.approx(0, abs=1e-12)
    assert float(problem.entries.max() / problem.entries.min()) == pytest.approx(4.0)
