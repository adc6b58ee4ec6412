"""Second routes to the same numbers: closed forms of the check problems, finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metabench.contract.method import Context, split
from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core import settings
from metabench.core.registry import methods, solvers, tasks

F64 = torch.float64


def context(task: object, solver: object = "sgd", **more: object) -> Context:
    """A context for a task's settings object, or for a registered name, on seed 0."""
    seeds = Seeds.of(0)
    task = settings.build(tasks.get(task), {}, task) if isinstance(task, str) else task
    solver = solvers.get(solver)() if isinstance(solver, str) else solver
    problem = task.build(seeds, torch.device("cpu"))
    return Context(problem, solver, seeds, task.offers, **more)


def given(problem: Problem, *offers: str, solver: object = "sgd", **more: object) -> Context:
    """A context for a problem that no task has built."""
    solver = solvers.get(solver)() if isinstance(solver, str) else solver
    return Context(problem, solver, Seeds.of(0), frozenset(offers), **more)


def hypergradient(ctx: Context, name: str, *, lam=None, theta=None, **set_) -> Params:
    """What a method answers on training episode 0 with these settings."""
    method = methods.get(name)(**set_)
    lam = method.init(ctx).outer if lam is None else lam
    return method.hypergradient(ctx, lam, theta, ctx.problem.episode("train", 0)).grad


def quadratic_end(problem, lam: Tensor, w0: Tensor, eta: float, steps: int) -> Tensor:
    """w_T = w* + (I - eta A)^T (w_0 - w*), w* = B lam."""
    decay = torch.linalg.matrix_power(torch.eye(len(w0), dtype=F64) - eta * problem.A, steps)
    return problem.B @ lam + decay @ (w0 - problem.B @ lam)


def quadratic_unrolled(problem, lam, w0, eta: float, steps: int, kept: int | None = None) -> Tensor:
    """B' (I - (I - eta A)^K) (w_T - c), with K the steps kept."""
    kept = steps if kept is None else kept
    eye = torch.eye(len(w0), dtype=F64)
    decay = torch.linalg.matrix_power(eye - eta * problem.A, kept)
    return problem.B.T @ (eye - decay) @ (quadratic_end(problem, lam, w0, eta, steps) - problem.c)


def differences(f: Callable[[Params], Tensor], x: Params, h: float = 1e-5) -> Params:
    """The gradient of a scalar function by fourth-order central differences, entry by entry."""
    out = {}
    for name, value in x.items():
        g = torch.zeros_like(value)
        for i in range(value.numel()):

            def at(step: float, name=name, value=value, i=i) -> float:
                moved = value.clone()
                moved.view(-1)[i] += step
                return float(f({**x, name: moved}))

            slope = 8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))
            g.view(-1)[i] = slope / (12 * h)
        out[name] = g
    return out


def after_training(method, ctx: Context, theta: Params | None = None) -> Callable[[Params], Tensor]:
    """lam -> F(lam, theta_T(lam)) with no derivative by the code under test: plain inner steps."""
    episode = ctx.problem.episode("train", 0)

    def f(lam: Params) -> Tensor:
        at = ctx.problem.init_inner(lam, episode) if theta is None else theta
        at = {k: v.detach().clone() for k, v in at.items()}
        only = method.only(ctx) or tuple(at)
        memory = ctx.solver.init({k: at[k] for k in only})
        for t in range(method.inner_steps):
            leaves = {k: at[k].clone().requires_grad_() for k in only}
            loss = ctx.problem.inner_loss(lam, {**at, **leaves}, episode.batch(t))
            g = dict(zip(only, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            moved, memory = ctx.solver.update(
                {k: at[k] for k in only}, g, memory, method.rate(split(lam)[1])
            )
            at = {**at, **moved}
        return ctx.problem.outer_loss(lam, at, episode.outer)

    return f


class LinearEpisodes(Problem):
    """Linear regression, lam the initial weights: L_S = 1/2 |X phi - y|^2, L_Q alike on (Xq, yq).

    phi_T = phi_inf + (I - alpha A)^T (theta - phi_inf) with A = X'X.
    """

    def __init__(self, dim: int = 4, rows: int = 7, per_step: int = 3) -> None:
        self.dim, self.rows, self.episodes_per_step = dim, rows, per_step

    def init_outer(self) -> Params:
        return {"phi": torch.linspace(-1, 1, self.dim, dtype=F64)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        return {"phi": lam["phi"]}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        return 0.5 * (batch["x"] @ theta["phi"] - batch["y"]).square().sum()

    outer_loss = inner_loss

    def episode(self, split: str, index: int) -> Episode:
        def draw(role: str) -> Batch:
            gen = generator(split, index, role)
            x = torch.randn(self.rows, self.dim, generator=gen, dtype=F64) / self.rows**0.5
            return {"x": x, "y": torch.randn(self.rows, generator=gen, dtype=F64)}

        return Episode(draw("support"), draw("query"), index)

    def adapted(self, theta: Tensor, episode: Episode, alpha: float, steps: int):
        """phi_T and (I - alpha A)^T in closed form."""
        x, y = episode.inner["x"], episode.inner["y"]
        a = x.T @ x
        decay = torch.linalg.matrix_power(torch.eye(self.dim, dtype=F64) - alpha * a, steps)
        best = torch.linalg.solve(a, x.T @ y)
        return best + decay @ (theta - best), decay


class SmallNet(Problem):
    """A tanh network with a named head in float64, lam the initial weights; the head comes first
    in theta. With ``pull`` the inner loss also draws theta towards lam / 2."""

    head = ("head.weight",)
    episodes_per_step = 3

    def __init__(self, pull: float = 0.0, batches: bool = False) -> None:
        self.pull, self.batches = pull, batches

    def init_outer(self) -> Params:
        gen = generator("small net")
        shapes = {"head.weight": (4,), "body.weight": (4, 3), "body.bias": (4,)}
        return {k: 0.7 * torch.randn(*s, generator=gen, dtype=F64) for k, s in shapes.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        return {k: lam[k] for k in ("head.weight", "body.weight", "body.bias")}

    def fit(self, theta: Params, batch: Batch) -> Tensor:
        hidden = torch.tanh(batch["x"] @ theta["body.weight"].T + theta["body.bias"])
        return (hidden @ theta["head.weight"] - batch["y"]).square().mean()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        loss = self.fit(theta, batch)
        if self.pull:
            gaps = torch.stack([(theta[k] - lam[k] / 2).square().sum() for k in theta])
            loss = loss + 0.5 * self.pull * gaps.sum()
        return loss

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        return self.fit(theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        def draw(role: object) -> Batch:
            gen = generator(split, index, str(role))
            x = torch.randn(6, 3, generator=gen, dtype=F64)
            return {"x": x, "y": torch.sin(2 * x.sum(1) + torch.rand(1, generator=gen, dtype=F64))}

        return Episode(draw if self.batches else draw("support"), draw("query"), index)
