"""Learning the inner minimiser as a function of lam: the loop that such methods share.

lam = r(u) for an unconstrained vector u [n]; a response theta_phi(u) with parameters phi is trained
at values of u, and u is tuned through it:

    training  min over phi  E G(r(u'), theta_phi(u')),  u' near u, or wherever the method looks
    tuning    min over u    F(r(u), theta_phi(u))

The gradient in u flows through the response alone (and through an F that names lam), never through
the inner loss: no second derivative is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.guards import check_hypergradient, is_stationary, zero_may_pass
from metabench.contract.method import (
    Context,
    Method,
    Positive,
    SolverName,
    State,
    Steps,
    outer_solver,
)
from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import generator
from metabench.contract.solver import Solver, why_no_noise

VALUE, SLOPE = "value/", "slope/"
"""Names in phi of a response's constant part and of what is multiplied: prefix and theta's name."""

MOVED: tuple[str, ...] = ("u", "scale")
"""What the outer solver moves, where it is there."""
UNTUNED = "warming_up"
"""A note that a record keeps where the budget ended before the first step of u."""
MARGIN = 1e-3
"""How near to a bound, as a part of the range, u can start: on the bound it would be infinite."""


class Coordinates:
    """lam as a vector u [n] and back; a batch of vectors [k, n] is a lam with [k] in front.

    With ``squash`` lam = r(u) stays within the bounds of ``problem.hypers``: a sigmoid stretched to
    two bounds (on a log scale where the hyper says so), softplus from one, floor of a stretched
    sigmoid for choices, u itself without bounds. Otherwise lam is u, projected.
    """

    def __init__(self, problem: Problem, *, squash: bool) -> None:
        self.problem, self.squash = problem, squash
        self.first = problem.init_outer()
        self.hypers = {h.name: h for h in problem.hypers} if squash else {}

    def vector(self, lam: Params) -> Tensor:
        """u [n] of lam; at most ``MARGIN`` off where lam is on a bound."""
        parts = [_outside(lam[k], self.hypers.get(k)).reshape(-1) for k in self.first]
        return torch.cat(parts)

    def lam(self, u: Tensor) -> Params:
        """lam of u [n], or of each row of u [k, n]; differentiable but for choices."""
        parts = torch.split(u, [v.numel() for v in self.first.values()], -1)
        lam = {
            k: _inside(part.reshape((*u.shape[:-1], *v.shape)), self.hypers.get(k))
            for (k, v), part in zip(self.first.items(), parts, strict=True)
        }
        if self.squash:
            return lam
        project = self.problem.project
        return project(lam) if u.dim() == 1 else torch.func.vmap(project)(lam)


def _inside(u: Tensor, hyper: Hyper | None) -> Tensor:
    if hyper is None:
        return u
    if hyper.choices:
        n = len(hyper.choices)
        return (n * u.sigmoid()).floor().clamp(max=n - 1)
    low, high = hyper.low, hyper.high
    if low is not None and high is not None:
        a, b = (math.log(low), math.log(high)) if hyper.log else (low, high)
        value = a + (b - a) * u.sigmoid()
        return (value.exp() if hyper.log else value).clamp(low, high)
    if low is not None:
        return low + F.softplus(u)
    return u if high is None else high - F.softplus(u)


def _outside(value: Tensor, hyper: Hyper | None) -> Tensor:
    if hyper is None:
        return value
    if hyper.choices:
        return ((value.floor() + 0.5) / len(hyper.choices)).logit()
    low, high = hyper.low, hyper.high
    if low is not None and high is not None:
        a, b = (math.log(low), math.log(high)) if hyper.log else (low, high)
        part = ((value.log() if hyper.log else value) - a) / (b - a)
        return part.logit(eps=MARGIN)
    if low is not None:
        return softplus_inverse((value - low).clamp(min=MARGIN))
    return value if high is None else softplus_inverse((high - value).clamp(min=MARGIN))


def softplus_inverse(x: Tensor) -> Tensor:
    """y with log(1 + e^y) = x > 0."""
    return x + (-torch.expm1(-x)).log()


def part(phi: Params, prefix: str) -> Params:
    """The parameters whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in phi.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class BestResponse(Method):
    """Steps of a response's parameters phi and of u in turn; a subclass gives the response.

    An outer step is ``inner_steps`` training steps and one of u. The response and its solver go on
    from step to step, whether or not the task carries theta.
    """

    inner_steps: Annotated[int, Field(ge=1)] = 2
    """Training steps of the response for each step of u."""
    inner_lr: Positive = 0.1
    outer_lr: Positive = 1e-2
    outer_solver: SolverName = "adam"
    """Of u and of what is tuned beside it."""
    warmup: Steps = 0
    """Outer steps at the start that leave u as it is."""
    scale: Positive = 0.5
    """Standard deviation of the perturbations of u in training."""
    squash: bool = True
    """lam = r(u) within its bounds; False: lam is u, projected."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Values of u in a training step, where a task takes one lam for a whole batch. Each is one
    gradient."""

    kind: ClassVar[str] = "a best-response network"
    """What a message calls it."""

    @property
    def needs(self) -> frozenset[str]:
        """One inner minimiser for each lam."""
        return frozenset({"outer_gradient", "best_response"})

    def refuses(self, solver: Solver) -> str | None:
        """The noise of training is on lam."""
        return why_no_noise(solver, self.kind)

    def first_response(self, theta: Params, n: int, gen: torch.Generator) -> Params:
        """phi at the start, for u [n] and a theta like this one."""
        raise NotImplementedError

    def theta(self, phi: Params, u: Tensor) -> Params:
        """The response at u [n]."""
        raise NotImplementedError

    def noises(self, at: Moment, batch: Batch, t: int) -> list[Tensor]:
        """What is added to u in training step ``t``, each [n] or, for a task whose examples can
        each have a lam, [examples, n]."""
        return [at.scale * e for e in at.draws("inner", batch, self.samples, t)]

    def loss(self, at: Moment, phi: Params, noise: Tensor, batch: Batch) -> Tensor:
        """G(r(u + eps), theta_phi(u + eps)) for a noise eps; counted."""
        there = at.u + noise
        return at.ctx.inner_loss(at.coordinates.lam(there), self.theta(phi, there), batch)

    def train(self, at: Moment, phi: Params, solver_state: Any, t: int) -> tuple[Params, Any]:
        """phi and solver state after training step ``t``: the inner solver on all of phi."""
        batch = at.episode.batch(t)
        noises = self.noises(at, batch, t)
        _, g = autodiff.grad(
            lambda p: torch.stack([self.loss(at, p, e, batch) for e in noises]).mean(), phi
        )
        return at.ctx.solver.update(phi, g, solver_state, self.inner_lr)

    def tune(self, at: Moment, phi: Params, moved: Params) -> tuple[Tensor, Params]:
        """The outer loss and its gradient in what the outer solver moves; counted."""
        batch = at.episode.outer
        return autodiff.grad(
            lambda x: at.ctx.outer_loss(at.coordinates.lam(x["u"]), self.theta(phi, x["u"]), batch),
            moved,
        )

    def trains(self, ctx: Context) -> bool:
        """Whether this outer step trains the response."""
        return True

    def first_moved(self, u: Tensor) -> Params:
        """What the outer solver moves, at the start: u and its companions, in ``MOVED``."""
        return {"u": u}

    def step_size(self, name: str) -> float:
        """Of the outer solver on a part of what it moves."""
        return self.outer_lr

    def first_solver_state(self, ctx: Context, phi: Params) -> Any:
        """Of the inner solver on the response's parameters, at the start."""
        return ctx.solver.init(phi)

    def init(self, ctx: Context) -> State:
        """The first lam (a little inside its bounds), and a response that hardly answers it."""
        coordinates = self.coordinates(ctx)
        u = coordinates.vector(coordinates.first)
        theta = autodiff.detach(
            ctx.problem.init_inner(coordinates.first, ctx.problem.episode("train", 0))
        )
        phi = self.first_response(theta, len(u), generator(ctx.seeds.method, "response"))
        moved = self.first_moved(u)
        memory = {
            **moved,
            "response": phi,
            "solver": self.first_solver_state(ctx, phi),
            "outer": outer_solver(self.outer_solver).init(moved),
        }
        return self.state(ctx, memory)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """``inner_steps`` of the response, then u and its companions, unless it is warming up."""
        held = dict(state.memory)
        at = Moment(ctx, self.coordinates(ctx), held["u"], self.deviations(held), _episode(ctx))
        phi, solver = held["response"], held["solver"]
        for t in range(self.inner_steps if self.trains(ctx) else 0):
            phi, solver = self.train(at, phi, solver, t)
        held |= {"response": phi, "solver": solver}
        log: dict[str, float] = {}
        if ctx.step < self.warmup:
            ctx.notes[UNTUNED] = f"lam has not moved yet: {self.warmup} outer steps of warm-up"
        else:
            ctx.notes.pop(UNTUNED, None)
            moved: Params = {k: held[k] for k in MOVED if k in held}
            loss, g = self.tune(at, phi, moved)
            log = {
                "outer_loss": float(loss),
                "hypergradient_norm": check_hypergradient(
                    {"u": g["u"]},
                    ctx.step,
                    lambda: self.is_at_optimum(at, phi) or zero_may_pass(ctx),
                ),
            }
            rates = {k: torch.full_like(v, self.step_size(k)) for k, v in moved.items()}
            moved, held["outer"] = outer_solver(self.outer_solver).update(
                moved, g, held["outer"], rates
            )
            if not self.squash:
                moved["u"] = at.coordinates.vector(at.coordinates.lam(moved["u"]))
            held |= moved
        return self.state(ctx, held), log

    def is_at_optimum(self, at: Moment, phi: Params) -> bool:
        """Whether a hypergradient of zero is right: the outer loss is stationary there too."""
        return is_stationary(at.ctx, at.coordinates.lam(at.u), self.theta(phi, at.u), at.episode)

    def deviations(self, held: Mapping[str, Tensor]) -> Tensor:
        """Standard deviation of each entry of the perturbations [n]."""
        return torch.full_like(held["u"], self.scale)

    def coordinates(self, ctx: Context) -> Coordinates:
        """lam as a vector."""
        return Coordinates(ctx.problem, squash=self.squash)

    def state(self, ctx: Context, memory: dict[str, Any]) -> State:
        """lam and theta at u, beside what they follow from."""
        u = memory["u"]
        theta = self.theta(memory["response"], u) if ctx.problem.carried else None
        return State(self.coordinates(ctx).lam(u), theta, memory)

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """The response at lam: nothing is trained at test time."""
        return self.theta(state.memory["response"], state.memory["u"])


class Moment(NamedTuple):
    """What the steps of one outer step share: u [n], deviations of its perturbations [n]."""

    ctx: Context
    coordinates: Coordinates
    u: Tensor
    scale: Tensor
    episode: Episode

    def draws(self, role: str, batch: Batch | None, samples: int, t: int = 0) -> list[Tensor]:
        """Standard normal draws: one [examples, n] for a batch whose examples can each have a lam,
        else (and without a batch) ``samples`` of [n]; a pure function of the method's seed, the
        step, role and t."""
        gen = generator(self.ctx.seeds.method, "perturbation", self.ctx.step, role, t)
        n, u = len(self.u), self.u
        if batch is not None and "per_example_lam" in self.ctx.offers:
            examples = len(next(iter(batch.values())))
            return [torch.randn(examples, n, generator=gen, dtype=u.dtype).to(u.device)]
        return list(torch.randn(samples, n, generator=gen, dtype=u.dtype).to(u.device))


def _episode(ctx: Context) -> Episode:
    (episode,) = ctx.training_episodes()
    return episode
