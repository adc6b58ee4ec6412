"""The checks of the derivatives that a task offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metabench.conformance.harness import NotTested, tolerance
from metabench.contract import autodiff
from metabench.contract.problem import (
    Episode,
    Params,
    Problem,
    count_numbers,
    differentiated_loss,
)
from metabench.contract.seeds import Seeds

NO_DERIVATIVES = "its inner steps are its own: nothing is differentiated"


def build(task: Any, seed: int = 0) -> Problem:
    """The task's problem on the CPU."""
    problem: Problem = task.build(Seeds.of(seed), torch.device("cpu"))
    return problem


def splits(problem: Problem) -> tuple[str, ...]:
    """Every split that the harness asks for."""
    return ("train", "valid", *problem.evaluations)


def start(problem: Problem, split: str = "train", index: int = 0) -> tuple[Params, Params, Episode]:
    """lam, theta and the episode that they are for."""
    lam, episode = problem.init_outer(), problem.episode(split, index)
    return lam, autodiff.detach(problem.init_inner(lam, episode)), episode


def check_derivatives(task: Any) -> None:
    """Derivatives that the task offers are there, finite, and not all zero."""
    if "own_step" in task.offers:
        raise NotTested(NO_DERIVATIVES)
    problem, offers = build(task), task.offers
    lam, theta, episode = start(problem)
    batch = episode.batch(0)
    if theta:
        g = autodiff.grad(lambda t: problem.inner_loss(lam, t, batch), theta)[1]
        _real(g, "the inner loss in theta")
    moved = theta_moved(theta)
    if "outer_gradient" in offers:

        def outer_gradient(at: Params) -> Params:
            return autodiff.grad(
                lambda x: problem.outer_loss(_part(x, "lam"), _part(x, "theta"), episode.outer),
                _joined(lam, at),
            )[1]

        found = outer_gradient(theta)
        if all(not bool(v.any()) for v in found.values()):
            # The start may be stationary for the outer loss.
            found = outer_gradient(moved)
        _real(found, "the outer loss")
    if "lam_in_inner_loss" in offers:

        def slope(p: Params) -> Tensor:
            f = problem.inner_loss
            g = autodiff.grad(lambda t: f(p, t, batch), moved, create_graph=True)[1]
            return sum(
                (v.square().sum() for v in g.values()), start=torch.zeros((), dtype=torch.float32)
            )

        _real(autodiff.grad(slope, lam)[1], "the inner loss's gradient in lam")
    if "lam_is_initialisation" in offers:
        begin, back = autodiff.pullback(lambda p: problem.init_inner(p, episode), lam)
        _real(back({k: torch.ones_like(v) for k, v in begin.items()})[0], "init_inner in lam")


def check_second_order(task: Any) -> None:
    """Hessian products of the inner loss are there; in float64 they agree with differences."""
    if "second_order" not in task.offers:
        raise NotTested("it offers no second derivatives")
    problem = build(task)
    lam, theta, episode = start(problem)
    theta, batch = theta_moved(theta), episode.batch(0)
    gen = torch.Generator().manual_seed(0)
    v = {
        k: torch.randn(x.shape, generator=gen, dtype=torch.float64).to(x) for k, x in theta.items()
    }

    def gradient(t: Params, create_graph: bool = False) -> Params:
        f = problem.inner_loss
        return autodiff.grad(lambda p: f(lam, p, batch), t, create_graph=create_graph)[1]

    hv = autodiff.grad(lambda t: autodiff.dot(gradient(t, True), v), theta)[1]
    _real(hv, "the inner loss's gradient in theta")
    if all(x.dtype == torch.float64 for x in theta.values()):
        found = [_differences(gradient, theta, v, h) for h in STEPS]
        for k, exact in hv.items():
            gap = min(float((exact - near[k]).abs().max()) for near in found)
            assert gap <= 1e-4 * (1 + float(exact.abs().max())), (
                f"the Hessian product in {k} is {gap:.1e} away from differences of gradients"
            )


STEPS = (1e-5, 1e-7, 1e-9)
"""Of differences. Short ones stay between the kinks of deep networks of ReLUs and poolings, where
the gradient jumps; long ones keep more digits where it is smooth. One that agrees is enough."""


def _differences(f: Callable[[Params], Params], theta: Params, v: Params, h: float) -> Params:
    """(f(theta + h v) - f(theta - h v)) / 2h."""
    up, down = (f(autodiff.axpy(s * h, v, theta)) for s in (1, -1))
    return {k: (up[k] - down[k]) / (2 * h) for k in up}


def check_split(task: Any) -> None:
    """A diagonal penalty, a gradient by hand and a Hessian in closed form, where there is one,
    agree with the loss."""
    if "own_step" in task.offers:
        raise NotTested(NO_DERIVATIVES)
    problem = build(task)
    lam, theta, episode = start(problem)
    theta, batch = theta_moved(theta), episode.batch(0)
    allowed = tolerance(theta)
    moved = problem.project({k: v + 0.1 for k, v in lam.items()})
    for there in (lam, moved):
        penalty = problem.diagonal_penalty(there)
        rest = problem.unpenalised_loss(there, theta, batch)
        added = [0.5 * (c * theta[k].square()).sum() for k, c in (penalty or {}).items()]
        whole, parts = problem.inner_loss(there, theta, batch), sum(added, start=rest)
        gap = float(abs(whole - parts) / (1 + abs(whole)))
        why = (
            "" if penalty is not None else "; it has no diagonal_penalty, so nothing uses the rest"
        )
        assert gap <= allowed, (
            f"the inner loss is {gap:.1e} away from the sum of its penalty and the rest{why}"
        )
    loss = differentiated_loss(problem, problem.diagonal_penalty(lam))
    by_hand = problem.inner_gradient(lam, theta, batch)
    if by_hand is not None:
        value, expected = autodiff.grad(lambda t: loss(lam, t, batch), theta)
        _held("inner_gradient", by_hand[1], expected, allowed)
        _held("inner_gradient", {"the value": by_hand[0]}, {"the value": value}, allowed)
    closed = problem.inner_hessian(lam, theta, batch)
    if closed is None:
        return
    v = {k: torch.cos(torch.arange(x.numel()).to(x)).view(x.shape) for k, x in theta.items()}
    _, (back,) = autodiff.pullbacks(
        lambda t: autodiff.grad(lambda p: loss(lam, p, batch), t, create_graph=True)[1], theta
    )
    _held("inner_hessian", closed(v), back(v), allowed)


def _held(name: str, found: Params, expected: Params, allowed: float) -> None:
    assert list(found) == list(expected), f"{name} gives {list(found)}, not {list(expected)}"
    for k, value in expected.items():
        gap = float((found[k] - value).abs().max() / (1 + value.abs().max()))
        assert gap <= allowed, f"{name} in {k} is {gap:.1e} away from differentiation"


MOST_DENSE = 200
"""Numbers in theta up to which whole second derivatives are built."""


def check_moduli(task: Any) -> None:
    """Moduli that are said to be proved hold at two points, and between them, by the whole second
    derivatives of both losses."""
    problem = build(task)
    lam, theta, episode = start(problem)
    known = problem.moduli(lam)
    if "strongly_convex" not in task.offers or known is None:
        raise NotTested("it gives no moduli")
    if not known.certified:
        raise NotTested("its moduli are estimates")
    if count_numbers(theta) > MOST_DENSE:
        raise NotTested(f"theta has more than {MOST_DENSE} numbers")
    near, far = (theta_moved(theta, size) for size in (0.1, 1.0))
    one, other = (_second_derivatives(problem, lam, t, episode) for t in (near, far))
    values = torch.linalg.eigvalsh(one["hessian"])
    distance = float(autodiff.norm(autodiff.axpy(-1.0, near, far)))

    def size(m: Tensor) -> float:
        return float(torch.linalg.matrix_norm(m, 2))

    def change(name: str) -> float:
        return size(other[name] - one[name]) / distance

    rough = 100 * torch.finfo(values.dtype).eps * float(values[-1])
    for name, true, bound in (
        ("mu", known.mu, float(values[0]) + rough),
        ("smooth", float(values[-1]), known.smooth + rough),
        ("outer_smooth", size(one["outer_hessian"]), known.outer_smooth),
        ("mixed", size(one["mixed"]), None if known.mixed is None else known.mixed(near)),
        ("mixed_lipschitz", change("mixed"), known.mixed_lipschitz),
        ("hessian_lipschitz", change("hessian"), known.hessian_lipschitz),
        ("direct_lipschitz", change("direct"), known.direct_lipschitz),
    ):
        assert bound is None or true <= bound * (1 + 1e-6) + rough, (
            f"{name} of its moduli, said to be proved, is broken: {true:.6g} against {bound:.6g}"
        )
    if known.outer_convex:
        least = float(torch.linalg.eigvalsh(one["outer_hessian"])[0])
        assert least >= -1e-6 * (1 + size(one["outer_hessian"])), (
            f"its outer loss is said to be convex; its Hessian has an eigenvalue of {least:.3g}"
        )


def _second_derivatives(
    problem: Problem, lam: Params, theta: Params, episode: Episode
) -> dict[str, Tensor]:
    """Whole: of G and F in theta [n, n], of G in both [n, numbers of lam], grad_lam F [1, ...]."""

    def slope(loss: Callable[..., Tensor], batch: Params) -> Callable[[Params, Params], Params]:
        return lambda p, t: autodiff.grad(lambda x: loss(p, x, batch), t, create_graph=True)[1]

    v, (to_lam, to_theta) = autodiff.pullbacks(
        slope(problem.inner_loss, episode.batch(0)), lam, theta
    )
    _, (_, outer) = autodiff.pullbacks(slope(problem.outer_loss, episode.outer), lam, theta)
    direct = autodiff.grad(lambda p: problem.outer_loss(p, theta, episode.outer), lam)[1]
    flat = autodiff.flatten(v)
    eye = [autodiff.unflatten(e, theta) for e in torch.eye(len(flat), dtype=flat.dtype).to(flat)]
    return {
        "hessian": torch.stack([autodiff.flatten(to_theta(e)) for e in eye]),
        "mixed": torch.stack([autodiff.flatten(to_lam(e)) for e in eye]),
        "outer_hessian": torch.stack([autodiff.flatten(outer(e)) for e in eye]),
        "direct": autodiff.flatten(direct)[None],
    }


def check_batched(task: Any) -> None:
    """Inner gradients of several episodes at once (vmap) are those of one after another."""
    if not {"episodes", "second_order"} <= task.offers:
        raise NotTested("it offers no episodes with second derivatives")
    problem = build(task)
    lam = problem.init_outer()
    n = problem.count("train")
    episodes = [problem.episode("train", i) for i in range(2 if n is None else min(2, n))]
    starts = [autodiff.detach(problem.init_inner(lam, e)) for e in episodes]
    batches = [e.batch(0) for e in episodes]

    def gradient(theta: Params, batch: Params) -> Params:
        return autodiff.grad(lambda t: problem.inner_loss(lam, t, batch), theta)[1]

    with autodiff.functional():
        found = torch.func.vmap(gradient)(
            *({k: torch.stack([x[k] for x in xs]) for k in xs[0]} for xs in (starts, batches))
        )
    for i, (theta, batch) in enumerate(zip(starts, batches, strict=True)):
        for k, expected in gradient(theta, batch).items():
            gap = float((found[k][i] - expected).abs().max() / (1 + expected.abs().max()))
            assert gap <= tolerance(theta), f"batched, the gradient in {k} is {gap:.1e} away"


def _joined(lam: Params, theta: Params) -> Params:
    return {f"lam/{k}": v for k, v in lam.items()} | {f"theta/{k}": v for k, v in theta.items()}


def _part(x: Params, which: str) -> Params:
    return {k.removeprefix(which + "/"): v for k, v in x.items() if k.startswith(which + "/")}


def theta_moved(theta: Params, size: float = 0.1) -> Params:
    """theta a little off its start, where symmetric starts have lost their zeros."""
    gen = torch.Generator().manual_seed(1)
    return {
        k: v + size * torch.randn(v.shape, generator=gen, dtype=torch.float64).to(v)
        for k, v in theta.items()
    }


def _real(g: Params, what: str) -> None:
    """Raise unless a gradient is finite and somewhere not zero."""
    for name, value in g.items():
        assert bool(torch.isfinite(value).all()), (
            f"the derivative of {what} in {name} is not finite"
        )
    assert any(bool(v.any()) for v in g.values()), f"the derivative of {what} is zero everywhere"
