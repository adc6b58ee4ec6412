"""A small GAN on two modes: does the generator find both? lam is the discriminator's penalty.

Data: numbers around -2 and 2 (deviation 0.2), as often each. Generator and discriminator are
networks with one hidden tanh layer; the losses are Goodfellow et al.'s (NeurIPS 2014), the
generator's not saturating, with the gradient penalty e^lam / 2 E|D'(data)|^2 of Mescheder, Geiger,
Nowozin (ICML 2018). Both move at once along their own gradients. Outer loss: the energy distance of
generated from held-out numbers (Szekely, Rizzo 2013), which is differentiable and 0 where the two
have one distribution. A mode is found where at least a tenth of what is generated lies within 0.6
of it. The problem is this project's own, after section 4 of Lorraine et al. (arXiv 2102.08431).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.registry import task

LOW, HIGH = -8.0, 4.0
MODES = (-2.0, 2.0)
DEVIATION, NEAR, SHARE = 0.2, 0.6, 0.1
PLAYERS = ("generator", "discriminator")
Count = Annotated[int, Field(ge=1)]


@task("two_mode_gan")
@dataclass(frozen=True)
class TwoModeGAN(Task):
    """A small GAN on numbers around -2 and 2; lam is the log of the discriminator's penalty."""

    width: Count = 16
    """Hidden units of each network."""
    batch: Count = 64
    held_out: Count = 256
    """Numbers of an outer batch, real and generated."""
    first_log_penalty: Annotated[float, Field(ge=LOW, le=HIGH)] = -2.0
    carried: bool = False

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "modes", "log_penalty")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """A field with derivatives, and one number in it."""
        own = {"field", "lam_in_inner_loss", "small_lam", "search_space"}
        return GRADIENTS | own | (set() if self.carried else {"episodes"})

    def build(self, seeds: Seeds, device: torch.device) -> TwoModeGANProblem:
        """Draw the first weights."""
        return TwoModeGANProblem(self, seeds, device)


class TwoModeGANProblem(Problem):
    """float64. A batch has "real" [n, 1] and noise "z" [n, 2]. theta: for each of the players
    "in" [width, inputs], "bias" [width] and "out" [1, width]. lam: "log_penalty", a scalar."""

    hypers = (Hyper("log_penalty", (), LOW, HIGH, meaning="log of the discriminator's penalty"),)

    def __init__(self, task: TwoModeGAN, seeds: Seeds, device: torch.device) -> None:
        self.task, self.seeds, self.device, self.carried = task, seeds, device, task.carried
        gen = generator(seeds.init, "two_mode_gan")
        self.start: Params = {}
        for player, inputs in zip(PLAYERS, (2, 1), strict=True):
            for part, shape in (("in", (task.width, inputs)), ("out", (1, task.width))):
                drawn = torch.randn(shape, generator=gen, dtype=torch.float64)
                self.start[f"{player}.{part}"] = (drawn / shape[1] ** 0.5).to(device)
            zero = torch.zeros(task.width, dtype=torch.float64)
            self.start[f"{player}.bias"] = zero.to(device)

    def init_outer(self) -> Params:
        """The first penalty."""
        return {"log_penalty": self.start["generator.in"].new_tensor(self.task.first_log_penalty)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same first weights always."""
        return dict(self.start)

    def network(self, theta: Params, player: str, x: Tensor) -> Tensor:
        """A player's output [n, 1] of its input [n, inputs]."""
        hidden = F.linear(x, theta[f"{player}.in"], theta[f"{player}.bias"]).tanh()
        return F.linear(hidden, theta[f"{player}.out"])

    def losses(self, lam: Params, theta: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the generator and the discriminator descend."""
        fake = self.network(theta, "generator", batch["z"])
        on_fake = self.network(theta, "discriminator", fake)
        on_real = self.network(theta, "discriminator", batch["real"])
        # D'(x) by hand, so that it is one product in every kind of differentiation.
        first, out = theta["discriminator.in"], theta["discriminator.out"]
        hidden = F.linear(batch["real"], first, theta["discriminator.bias"]).tanh()
        slope = ((1 - hidden.square()) * out) @ first
        penalty = 0.5 * lam["log_penalty"].exp() * slope.square().mean()
        judge = F.softplus(on_fake).mean() + F.softplus(-on_real).mean() + penalty
        return F.softplus(-on_fake).mean(), judge

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params:
        """Each player's gradient of its own loss."""
        live = any(v.requires_grad for v in (*theta.values(), *lam.values()))
        out: Params = {}
        for i, player in enumerate(PLAYERS):
            own = {k: v for k, v in theta.items() if k.startswith(player)}

            def loss(moved: Params, i: int = i) -> Tensor:
                return self.losses(lam, {**theta, **moved}, batch)[i]

            out |= autodiff.grad(loss, own, create_graph=live or autodiff.is_functional())[1]
        return {k: out[k] for k in theta}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 |field|^2."""
        parts = self.field(lam, theta, batch).values()
        return 0.5 * torch.stack([v.square().sum() for v in parts]).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """2 E|X - Y| - E|X - X'| - E|Y - Y'| of generated X and real Y."""
        fake, real = self.network(theta, "generator", batch["z"]), batch["real"]

        def mean(a: Tensor, b: Tensor) -> Tensor:
            return (a - b.mT).abs().mean()

        return 2 * mean(fake, real) - mean(fake, fake) - mean(real, real)

    def draw(self, n: int, *address: int | str) -> Batch:
        """n real numbers and as much noise."""
        gen = generator(self.seeds.data, *address)
        side = torch.randint(2, (n, 1), generator=gen).double()
        spread = DEVIATION * torch.randn(n, 1, generator=gen, dtype=torch.float64)
        real = MODES[0] + (MODES[1] - MODES[0]) * side + spread
        z = torch.randn(n, 2, generator=gen, dtype=torch.float64)
        return {"real": real.to(self.device), "z": z.to(self.device)}

    def episode(self, split: str, index: int) -> Episode:
        """Fresh numbers at every inner step."""

        def inner(step: int) -> Batch:
            return self.draw(self.task.batch, split, index, step)

        return Episode(inner, self.draw(self.task.held_out, split, index, "outer"), index)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The loss (the energy distance), how many of the two modes are found, and lam."""
        fake = self.network(theta, "generator", episode.outer["z"])
        found = [float(((fake - mode).abs() < NEAR).double().mean()) >= SHARE for mode in MODES]
        return {
            "loss": float(self.outer_loss(lam, theta, episode.outer)),
            "modes": float(sum(found)),
            "log_penalty": float(lam["log_penalty"]),
        }

    def count(self, split: str) -> int | None:
        """Without end, but of a carried training, which is one."""
        return 1 if self.carried else None
