"""The formula and the loop in the docstring of every method; most gradient methods do what it says.

The loop is Python: it is run beside the method on the closed-form check problem, in float64.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import F64, context
from torch import Tensor

from metabench.core.registry import methods, tasks
from metabench.core.settings import values

DIM, STEPS = 3, 3
CARRIED = {"dim": DIM, "carried": True}
STARTS = {"dim": DIM, "formulation": "init"}
PLAIN = {"inner_lr": 0.1, "outer_lr": 0.05, "outer_solver": "sgd"}
RUN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fixed": (CARRIED, {}),
    "bilevel": (CARRIED, PLAIN),
    "ift": (CARRIED, {**PLAIN, "alpha": 0.15, "terms": 4}),
    "one_step": (CARRIED, PLAIN),
    "amigo": (CARRIED, {**PLAIN, "inner_steps": 2, "linear_steps": 3, "linear_lr": 0.15}),
    "stocbio": (CARRIED, {**PLAIN, "inner_steps": 2, "linear_steps": 3, "linear_lr": 0.15}),
    "soba": (CARRIED, PLAIN),
    "f2sa": (CARRIED, {**PLAIN, "inner_steps": 4}),
    "bome": (CARRIED, {**PLAIN, "theta_lr": 0.08}),
    "pbgd": (CARRIED, {**PLAIN, "theta_lr": 0.08, "ramp_steps": 0, "gamma_max": 3.0}),
    "sgld": (CARRIED, {**PLAIN, "inner_steps": 6, "kappa": 0.9, "estimator": "first_order"}),
    "maml": (STARTS, {**PLAIN, "inner_steps": 3}),
    "reptile": (STARTS, {**PLAIN, "inner_steps": 3, "outer_decay": "none"}),
    "imaml": (STARTS, {**PLAIN, "inner_steps": 4, "mu": 2.0, "terms": DIM}),
}
"""Method to the settings of the task and its own."""


def section(name: str, head: str) -> str:
    """A section of the docstring of a method's class, without its indentation."""
    doc = inspect.getdoc(methods.get(name)) or ""
    _, _, after = doc.partition(f"\n{head}:\n")
    lines = after.split("\n")
    end = next((i for i, x in enumerate(lines) if x and not x.startswith("    ")), len(lines))
    return textwrap.dedent("\n".join(lines[:end])).strip("\n")


def grad(y: Tensor, x: Tensor) -> Tensor:
    """The whole derivative of a scalar."""
    (found,) = torch.autograd.grad(y, x, create_graph=True)
    return found


def partials(name: str, f: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """A loss and its derivatives at given points, under the names that loops use."""

    def derivative(which: int) -> Callable[[Tensor, Tensor], Tensor]:
        def at(lam: Tensor, theta: Tensor) -> Tensor:
            return torch.func.grad(f, argnums=which)(lam.detach(), theta.detach())

        return at

    def second(lam: Tensor, theta: Tensor) -> Tensor:
        return torch.func.jacrev(torch.func.grad(f, 1), 1)(lam.detach(), theta.detach())

    def mixed(lam: Tensor, theta: Tensor) -> Tensor:
        return torch.func.jacrev(torch.func.grad(f, 0), 1)(lam.detach(), theta.detach())

    return {
        name: f, f"d{name}_dlam": derivative(0), f"d{name}_dtheta": derivative(1),
        f"d2{name}_dtheta2": second, f"d2{name}_dlam_dtheta": mixed,
    }  # fmt: skip


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(True)


def names(name: str, problem: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What a loop finds at the start of a run."""
    batch = problem.episode("train", 0).batch(0)

    def inner(lam: Tensor, theta: Tensor) -> Tensor:
        return problem.inner_loss({"lam": lam}, {"w": theta}, batch)

    def outer(lam: Tensor, theta: Tensor) -> Tensor:
        return problem.outer_loss({"lam": lam}, {"w": theta}, batch) + 0 * lam.sum()

    lam = leaf(problem.init_outer()["lam"])
    theta = leaf(problem.w0)
    episode = (lambda p: outer(lam.detach(), p), lambda p: inner(lam.detach(), p))
    return {
        **settings, **partials("F", outer), **partials("G", inner), "grad": grad, "k": 0,
        "lam": lam, "theta": theta, "start": lambda lam: space["theta"], "v": 0 * theta,
        "y": theta, "z": theta, "omega": theta, "gamma": settings.get("gamma_max"),
        "noise": lambda t: 0.0, "episodes": [episode], "solve": torch.linalg.solve,
        "eye": torch.eye(DIM, dtype=F64),
        "hessian": lambda f, x: torch.func.hessian(f)(x.detach()),
    }  # fmt: skip


space: dict[str, Any] = {}


@pytest.mark.parametrize("name", RUN)
def test_the_loop_is_what_the_method_does(name: str) -> None:
    on, set_ = RUN[name]
    method = methods.get(name)(**set_)
    ctx = context(tasks.get("quadratic")(**on))
    state = method.init(ctx)
    space.clear()
    space.update(names(name, ctx.problem, {k: v for k, v in values(method).items()}))
    loop = compile(section(name, "Loop"), name, "exec")
    first = space["lam"].detach().clone()
    for step in range(STEPS):
        ctx.step = space["k"] = step
        state, _ = method.step(ctx, state)
        exec(loop, space)
        torch.testing.assert_close(space["lam"].detach(), state.lam["lam"], rtol=1e-10, atol=1e-12)
        for key in ("lam", "theta", "y", "z", "v", "omega"):
            space[key] = leaf(space[key])
    assert (name == "fixed") == torch.equal(first, space["lam"].detach())


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_formula_and_a_short_loop(name: str) -> None:
    if not methods.get(name).__module__.startswith("metabench.methods."):
        pytest.skip("no built-in method")
    formula, loop = section(name, "Formula"), section(name, "Loop")
    assert formula and "$" not in formula
    tree = ast.parse(loop)
    assert tree.body and len(loop.splitlines()) <= 12
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    own = set(values(methods.get(name)()))
    assert name in ("fixed", "maml_learn2learn") or used & own, "no setting stands in it"
