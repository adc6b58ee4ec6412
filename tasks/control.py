"""Control by values of actions: a cart pole and a lunar lander, learned by TAGI or by Adam.

Nguyen, Goulet: Analytically Tractable Bayesian Deep Q-Learning, arXiv 2106.11086, 2021; constants
of the authors' code where it has them (4-64-2 units, batch 10, discount 0.99, memory 50,000,
sigma_v 2 times 0.9999 every 128 steps, at least 0.3). The environments are gymnasium's. theta is
all that a learner knows: its network, memory and counts; lam is what it has to be told: sigma_v and
the gain of the prior, or Adam's step size. An inner step is one episode of the environment
(``Problem.own_step``). A step of the environment is counted as a function evaluation, an update as
an inner gradient.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import OwnStep
from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

from .families.own_learning import (
    ADAM,
    NO_GRADIENTS,
    TAGI_PARTS,
    Gain,
    Rate,
    SigmaV,
    draw,
    first,
)
from .families.q_learning import (
    AdamValues,
    Learner,
    RandomValues,
    Rules,
    Standing,
    TagiValues,
    copied,
    judged,
    play,
)
from .models.adam_network import Adam, AdamNetwork
from .models.dense import Dense
from .models.tagi import TAGI, Belief

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
ENVIRONMENTS = {
    "cart_pole": ("CartPole-v1", 4, 2, 200),
    "lunar_lander": ("LunarLander-v3", 8, 4, 1000),
}
"""Name to gymnasium's, numbers of an observation, actions, and steps of an episode at most (those
of CartPole-v0 and LunarLander-v3)."""


@task("control")
@dataclass(frozen=True)
class Control(Task):
    """A cart pole or a lunar lander by Q-learning; values by TAGI, by Adam, or none."""

    environment: Literal["cart_pole", "lunar_lander"] = "cart_pole"
    learner: Literal["tagi", "adam", "random"] = "tagi"
    """"random": any action, always; lam is then a number that nothing reads."""
    algorithm: Literal["replay", "n_step"] = "replay"
    """Batches from a replay memory at every step, or windows of ``window`` steps once each."""
    units: Count = 64
    relu: Literal["linearised", "exact"] = "linearised"
    """TAGI's moments of a ReLU."""
    sigma_v: SigmaV = 2.0
    """lam's first standard deviation of an observed value, in units of reward."""
    sigma_decay: Annotated[float, Field(gt=0, le=1)] = 0.9999
    sigma_least: Positive = 0.3
    sigma_every: Count = 128
    gain: Gain = 1.0
    """lam's first multiple of He's variances."""
    rate: Rate = 1e-3
    """lam's first step size of Adam."""
    explore_last: Annotated[float, Field(ge=0, le=1)] = 0.05
    explore_steps: Count = 4000
    """Adam's exploration rate falls from 1 to ``explore_last`` over so many steps."""
    discount: Annotated[float, Field(gt=0, lt=1)] = 0.99
    batch: Count = 10
    memory: Count = 50_000
    window: Count = 128
    horizon: Count = 128
    """Steps of n-step returns at most; they end with the window anyway."""
    target_every: Count = 1
    """Steps after which the values that are looked ahead to are copied."""
    limit: Count | None = None
    """Steps of an episode at most; None: 200 and 1000."""
    judged: Count = 5
    """Episodes of the environment in one judgement."""
    carried: bool = False
    """Learning goes on from outer step to outer step, or starts anew in each episode."""

    metric: ClassVar[str] = "return"
    goal: ClassVar[Literal["max", "min"]] = "max"
    metrics: ClassVar[tuple[str, ...]] = ("return", "loss", "score", "played", "floored")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[dict[str, str]] = NO_GRADIENTS

    def __post_init__(self) -> None:
        kept, name = (
            (self.window, "window") if self.algorithm == "n_step" else (self.memory, "memory")
        )
        if self.batch > kept:
            raise ValueError(f"batch is {self.batch}: it must be at most {name}, {kept}")

    @property
    def packages(self) -> tuple[str, ...]:
        """gymnasium, and what draws up the lunar lander."""
        lander = ("Box2D", "pygame") if self.environment == "lunar_lander" else ()
        return ("gymnasium", *lander)

    @property
    def offers(self) -> frozenset[str]:
        """Steps of its own, bounds of a few numbers, and episodes unless it is carried."""
        own = {"own_step", "search_space", "small_lam"}
        return frozenset(own if self.carried else own | {"episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> ControlProblem:
        """Nothing to load."""
        return ControlProblem(self, seeds, device)


class ControlProblem(Problem):
    """lam, float64: "sigma_v" [] and "gain" [], or "rate" []. theta, float64: what the learner
    holds, the same of its target, "memory" [transitions, numbers], "returns" [100], and counts []:
    "stored", "steps", "episodes", "floored". Everything is computed on the CPU."""

    def __init__(self, task: Control, seeds: Seeds, device: torch.device) -> None:
        self.task, self.seeds, self.device = task, seeds, device
        self.carried = task.carried
        self.hypers = TAGI_PARTS if task.learner == "tagi" else ADAM
        self.env_name, inputs, actions, limit = ENVIRONMENTS[task.environment]
        self.dense = Dense((inputs, task.units, actions))
        self.rules = Rules(
            task.algorithm,
            task.discount,
            task.batch,
            task.window if task.algorithm == "n_step" else task.memory,
            task.horizon,
            task.target_every,
            task.limit or limit,
        )

    def init_outer(self) -> Params:
        """The settings'."""
        return first(self.hypers, self.task, self.device)

    def learner(self, lam: Params) -> Learner[Any]:
        """With the numbers of lam."""
        t = self.task
        if t.learner == "random":
            return RandomValues(self.dense.sizes[-1])
        if t.learner == "adam":
            network = AdamNetwork(self.dense)
            return AdamValues(network, float(lam["rate"]), t.explore_last, t.explore_steps)
        return TagiValues(
            TAGI(self.dense, t.relu),
            float(lam["gain"]),
            float(lam["sigma_v"]),
            t.sigma_decay,
            t.sigma_least,
            t.sigma_every,
        )

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """Drawn by the episode, and an empty memory."""
        held = self.learner(lam).start(draw(episode.outer["start"]))
        width = 2 * self.dense.sizes[0] + 4
        return self.params(Standing(held, held, np.zeros((self.rules.memory, width))))

    def own_step(self, lam: Params, theta: Params, batch: Batch) -> OwnStep:
        """One episode of the environment, with learning."""
        at = copied(self.standing(theta))
        before = at.steps
        updates = play(at, self.rules, self.learner(lam), self.env(), draw(batch["seed"]))
        costs = {"inner_gradients": updates, "function_evaluations": at.steps - before}
        return OwnStep(self.params(at), costs)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Minus the return of an episode without learning and exploration."""
        return self.loss(lam, theta, batch["seed"][None])

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Minus the mean return of ``judged`` episodes without learning and exploration."""
        return self.loss(lam, theta, batch["seeds"])

    def loss(self, lam: Params, theta: Params, seeds: Tensor) -> Tensor:
        """Minus the mean return."""
        held, learner = self.standing(theta).held, self.learner(lam)
        found = [judged(held, self.rules, learner, self.env(), draw(seed)) for seed in seeds]
        return torch.tensor(-float(np.mean(found)), dtype=torch.float64, device=self.device)

    def env(self) -> Any:
        """A new environment: nothing of an earlier episode is left in it."""
        import gymnasium

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return gymnasium.make(self.env_name, disable_env_checker=True).unwrapped

    def params(self, at: Standing) -> Params:
        """As theta."""
        counts = {k: getattr(at, k) for k in ("stored", "steps", "episodes", "floored")}
        parts = {"memory": at.memory, "returns": at.returns, **counts}
        for name, held in (("", at.held), ("target.", at.target)):
            parts |= {name + k: v for k, v in (held._asdict() if held else {}).items()}
        return {
            k: torch.as_tensor(v, dtype=torch.float64, device=self.device) for k, v in parts.items()
        }

    def standing(self, theta: Params) -> Standing:
        """From theta."""
        kind: Any = {"tagi": Belief, "adam": Adam, "random": None}[self.task.learner]
        arrays = {k: v.detach().cpu().numpy() for k, v in theta.items()}
        held, target = (
            kind(*(arrays[name + k] for k in kind._fields)) if kind else ()
            for name in ("", "target.")
        )
        counts = {k: int(arrays[k]) for k in ("stored", "steps", "episodes", "floored")}
        return Standing(held, target, arrays["memory"], returns=arrays["returns"], **counts)

    def episode(self, split: str, index: int) -> Episode:
        """A start of its own, and episodes of the environment of its own."""
        address = (self.seeds.batches, "control", split, index)

        def seeds(*more: int | str, n: int | None = None) -> Tensor:
            shape = () if n is None else (n,)
            return torch.randint(2**62, shape, generator=generator(*address, *more))

        def batch(step: int) -> Batch:
            return {"seed": seeds(step)}

        start = torch.randint(
            2**62, (), generator=generator(self.seeds.init, "control", split, index)
        )
        return Episode(batch, {"seeds": seeds("judged", n=self.task.judged), "start": start}, index)

    def count(self, split: str) -> int | None:
        """No end of them."""
        return None

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """``return`` without learning and exploration; ``loss``: minus that; ``score``: the mean
        return of the last 100 episodes of learning; ``played``: their number; ``floored``: how
        often variances ended at their floor."""
        played = int(theta["episodes"])
        last = theta["returns"][: max(1, min(played, 100))]
        loss = float(self.outer_loss(lam, theta, episode.outer))
        return {
            "return": -loss,
            "loss": loss,
            "score": float(last.mean()),
            "played": float(played),
            "floored": float(theta["floored"]),
        }
