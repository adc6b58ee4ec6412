"""Learning the inner minimiser as a function of lam: what self-tuning networks share.

MacKay, Vicol, Lorraine, Duvenaud, Grosse: Self-Tuning Networks, ICLR 2019, arXiv 1903.03088; Bae,
Grosse: Delta-STN, NeurIPS 2020, arXiv 2010.13514. lam = r(u) for an unconstrained vector u [n], and
every tensor of theta answers u by rows:

    theta(u) = theta0 + diag(V u) theta1,    for vectors and scalars of theta entry by entry.

So nothing is asked of the model but the names and shapes of its parameters: a bias has rows of one
entry, and a theta that belongs to no layer is affine in u. V may be a product of two thin matrices
where lam is long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from metabench.contract.per_example_weights import Gated
from metabench.contract.problem import Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import generator
from metabench.contract.solver import Solver, why_no_noise

VALUE, SLOPE, GATE, PROJECTION = "value/", "slope/", "gate/", "projection"
"""Names of theta0, theta1 and V in a response's parameters: prefix and theta's name."""

MOVED: tuple[str, ...] = ("u", "scale")
"""What the outer solver moves."""
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
        return _softplus_inverse((value - low).clamp(min=MARGIN))
    return value if high is None else _softplus_inverse((high - value).clamp(min=MARGIN))


def _softplus_inverse(x: Tensor) -> Tensor:
    return x + (-torch.expm1(-x)).log()


def begin(
    theta: Params, n: int, gen: torch.Generator, *, rank: int | None = None, gates: float = 0.0
) -> Params:
    """A response's first parameters for u of n entries: value theta, rows that hardly answer.

    V is normal with deviation ``gates``. theta1 is uniform within 1 / sqrt(inputs) for tensors
    with rows, and one for vectors and scalars.
    """
    phi = {VALUE + k: v for k, v in theta.items()}
    width = n
    if rank is not None:
        some = next(iter(theta.values()))
        phi[PROJECTION] = torch.randn(rank, n, generator=gen, dtype=some.dtype).to(some) / n**0.5
        width = rank
    for k, v in theta.items():
        slope = torch.ones_like(v)
        if v.dim() > 1:
            drawn = torch.rand(v.shape, generator=gen, dtype=v.dtype).to(v)
            slope = (2 * drawn - 1) * (len(v) / v.numel()) ** 0.5
        phi[SLOPE + k] = slope
        rows = len(v) if v.dim() else 1
        phi[GATE + k] = gates * torch.randn(rows, width, generator=gen, dtype=v.dtype).to(v)
    return phi


def respond(phi: Params, at: Tensor) -> Params:
    """theta at u [n], or at a row of u [k, n] for each of k examples: gated tensors."""
    if PROJECTION in phi:
        at = F.linear(at, phi[PROJECTION])
    theta: Params = {}
    for k, value in part(phi, VALUE).items():
        gate, slope = F.linear(at, phi[GATE + k]), phi[SLOPE + k]
        if at.dim() > 1:
            theta[k] = Gated(value, slope, gate)
        else:
            shape = [-1] + [1] * (value.dim() - 1) if value.dim() else []
            theta[k] = value + gate.view(shape) * slope
    return theta


def part(phi: Params, prefix: str) -> Params:
    """The parameters whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in phi.items() if k.startswith(prefix)}


def entropy(scale: Tensor) -> Tensor:
    """Of a normal distribution with these deviations [n]: sum_i log(scale_i sqrt(2 pi e))."""
    return scale.log().sum() + scale.numel() * 0.5 * math.log(2 * math.pi * math.e)


@dataclass(frozen=True)
class SelfTuning(Method):
    """Steps of a response's parameters and of u in turn; a subclass says how the response trains.

    An outer step is ``inner_steps`` training steps and one of u. The response and its solver go on
    from step to step, whether or not the task carries theta.
    """

    inner_steps: Annotated[int, Field(ge=1)] = 2
    """Training steps of the response for each step of u."""
    inner_lr: Positive = 0.1
    outer_lr: Positive = 1e-2
    outer_solver: SolverName = "adam"
    """Of u and of the scale."""
    warmup: Steps = 0
    """Outer steps at the start that leave u and the scale as they are."""
    scale: Positive = 0.5
    """First standard deviation of the perturbations of u."""
    tune_scale: bool = True
    """Learn the scale by the expected outer loss and the entropy; u is then perturbed in its own
    steps too."""
    scale_lr: Positive | None = None
    """None: as ``outer_lr``."""
    entropy_weight: Annotated[float, Field(ge=0)] = 1e-3
    """What the entropy of the perturbations counts beside the outer loss (tau)."""
    squash: bool = True
    """lam = r(u) within its bounds, as in the papers; False: lam is u, projected."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Perturbations a step, where a task takes one lam for a whole batch. Each is one gradient.
    Where lam can differ from example to example, every example has its own at no such cost."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Gates see this many learned projections of u: for a long lam. None: u itself."""

    @property
    def needs(self) -> frozenset[str]:
        """One inner minimiser for each lam, and few scalars unless the gates are of low rank."""
        own = {"outer_gradient", "best_response"}
        if self.rank is None:
            own.add("small_lam")
        elif self.squash:
            own.add("search_space")
        return frozenset(own)

    def refuses(self, solver: Solver) -> str | None:
        """The noise of training is on lam."""
        return why_no_noise(solver, "a self-tuning network")

    gates: ClassVar[float] = 0.0
    """Deviation of V's first entries."""

    def centre(self, u: Tensor) -> Tensor:
        """What is taken from u before the gates see it."""
        raise NotImplementedError

    def train(self, at: Moment, phi: Params, solver_state: Any, t: int) -> tuple[Params, Any]:
        """The response's parameters and solver state after training step ``t``; counted."""
        raise NotImplementedError

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
        gen = generator(ctx.seeds.method, "response")
        phi = begin(theta, len(u), gen, rank=self.rank, gates=self.gates)
        moved = {"u": u}
        if self.tune_scale:
            moved["scale"] = _softplus_inverse(torch.full_like(u, self.scale))
        memory = {
            **moved,
            "response": phi,
            "solver": self.first_solver_state(ctx, phi),
            "outer": outer_solver(self.outer_solver).init(moved),
        }
        return self.state(ctx, memory)

    def step(self, ctx: Context, state: State) -> tuple[State, dict[str, float]]:
        """``inner_steps`` of the response, then u and the scale, unless it is warming up."""
        held = dict(state.memory)
        at = Moment(ctx, self.coordinates(ctx), held["u"], self.deviations(held), _episode(ctx))
        phi, solver = held["response"], held["solver"]
        for t in range(self.inner_steps):
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
                "scale": float(at.scale.mean()),
            }
            rate = {"u": self.outer_lr, "scale": self.scale_lr or self.outer_lr}
            rates = {k: torch.full_like(v, rate[k]) for k, v in moved.items()}
            moved, held["outer"] = outer_solver(self.outer_solver).update(
                moved, g, held["outer"], rates
            )
            if not self.squash:
                moved["u"] = at.coordinates.vector(at.coordinates.lam(moved["u"]))
            held |= moved
        return self.state(ctx, held), log

    def tune(self, at: Moment, phi: Params, moved: Params) -> tuple[Tensor, Params]:
        """Expected outer loss, and its gradient in u and the scale, less the entropy's part."""
        draws: Sequence[Tensor | None] = [None]
        if "scale" in moved:
            draws = at.draws("outer", at.episode.outer, self.samples)

        def objective(x: Params) -> tuple[Tensor, Tensor]:
            lam, scale = at.coordinates.lam(x["u"]), self.deviations(x)
            seen = x["u"] - self.centre(at.u)
            thetas = (respond(phi, seen if e is None else seen + scale * e) for e in draws)
            losses = [at.ctx.outer_loss(lam, t, at.episode.outer) for t in thetas]
            loss = torch.stack(losses).mean()
            free = self.entropy_weight * entropy(scale) if "scale" in x else 0.0
            return loss - free, loss

        _, g, loss = autodiff.grad_and_rest(objective, moved)
        return loss, g

    def is_at_optimum(self, at: Moment, phi: Params) -> bool:
        """Whether a hypergradient of zero is right: the outer loss is stationary there too."""
        theta = respond(phi, at.u - self.centre(at.u))
        return is_stationary(at.ctx, at.coordinates.lam(at.u), theta, at.episode)

    def deviations(self, held: Mapping[str, Tensor]) -> Tensor:
        """Standard deviation of each entry of the perturbations [n]."""
        if "scale" in held:
            return F.softplus(held["scale"])
        return torch.full_like(held["u"], self.scale)

    def coordinates(self, ctx: Context) -> Coordinates:
        """lam as a vector."""
        return Coordinates(ctx.problem, squash=self.squash)

    def state(self, ctx: Context, memory: dict[str, Any]) -> State:
        """lam and theta at u, beside what they follow from."""
        u = memory["u"]
        theta = respond(memory["response"], u - self.centre(u)) if ctx.problem.carried else None
        return State(self.coordinates(ctx).lam(u), theta, memory)

    def adapt(self, ctx: Context, state: State, episode: Episode) -> Params:
        """The response at lam: nothing is trained at test time."""
        u = state.memory["u"]
        return respond(state.memory["response"], u - self.centre(u))


class Moment(NamedTuple):
    """What the steps of one outer step share: u [n], deviations of its perturbations [n]."""

    ctx: Context
    coordinates: Coordinates
    u: Tensor
    scale: Tensor
    episode: Episode

    def draws(self, role: str, batch: Batch, samples: int, t: int = 0) -> list[Tensor]:
        """Standard normal draws: one [examples, n] for a batch whose examples can each have a lam,
        else ``samples`` of [n]; a pure function of the method's seed, the step, role and t."""
        gen = generator(self.ctx.seeds.method, "perturbation", self.ctx.step, role, t)
        n, u = len(self.u), self.u
        if "per_example_lam" in self.ctx.offers:
            examples = len(next(iter(batch.values())))
            return [torch.randn(examples, n, generator=gen, dtype=u.dtype).to(u.device)]
        return list(torch.randn(samples, n, generator=gen, dtype=u.dtype).to(u.device))


def _episode(ctx: Context) -> Episode:
    (episode,) = ctx.training_episodes()
    return episode
