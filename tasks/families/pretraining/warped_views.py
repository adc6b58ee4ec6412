"""Contrastive pre-training on signals whose two views are warped in time as lam says.

After Raghu et al.: Meta-learning to Improve Pre-training, NeurIPS 2021, arXiv 2111.01754, section
5: SimCLR (Chen, Kornblith, Norouzi, Hinton, ICML 2020) whose two views of a signal are warped in
time by a smooth random curve. Its strength, 2 sigmoid(.) times a learned scale, is lam: free
numbers, or the output of a small network of the signal. The curve's form, a sum of sines, is this
project's, and so is the white noise that both views have besides.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.method import Positive
from metabench.contract.problem import Batch, Hyper, Params
from metabench.contract.seeds import Seeds, generator

from ...models.encoders import MLP, ResNet, first_values
from .two_stage import ENCODER, Count, TwoStage, TwoStageProblem

VIEWS = ("one", "two")
LIMIT = 6.0
"""Bound of a free strength's logit."""
WIDEST = 0.25
"""Largest scale of the warp, as a part of the window."""
COARSE = 16
"""Points a lead that the network of strengths sees."""


@dataclass(frozen=True)
class WarpedViews(TwoStage):
    """Settings of tasks that pre-train on warped views."""

    registered_name: ClassVar[str]
    strength: Literal["numbers", "network"] = "numbers"
    """What lam is: a strength for each band of the warp, or a network that gives them for each
    example."""
    bands: Count = 4
    """Half waves in the window of the fastest part of the warp."""
    first_scale: Annotated[float, Field(ge=0, le=WIDEST)] = 0.02
    """The first scale of the warp, as a part of the window."""
    jitter: Annotated[float, Field(ge=0)] = 0.1
    """Deviation of the white noise on each view, in deviations of the signal."""
    temperature: Positive = 0.5
    batch: Annotated[int, Field(ge=2)] = 64
    """Examples of an inner step."""
    width: Count = 16
    stages: Count = 3
    blocks: Count = 1
    """Four stages of two blocks are a ResNet-18."""
    projection: Count = 32
    """Width of what the contrast is taken of."""

    tune_lr: Positive = 0.1
    final_lr: Positive = 0.1
    final_steps: Count = 200

    @property
    def offers(self) -> frozenset[str]:
        """A few numbers can be searched too."""
        few = {"small_lam", "search_space"} if self.strength == "numbers" else set()
        return super().offers | few

    @property
    def lacks(self) -> dict[str, str]:
        """Why some needs are not met, in words."""
        if self.strength == "numbers":
            return {}
        why = "lam has every weight of the network of strengths: too many scalars to search in"
        return dict.fromkeys(("small_lam", "search_space"), why)


class WarpedViewsProblem(TwoStageProblem):
    """Pre-training batches: ``x`` [n, leads, window] and, of each view, normal ``warp_*``
    [n, bands] and ``jitter_*`` [n, leads, window].

    lam: ``scale`` [] and ``logit`` [bands], or ``strength.*`` of the network. Subclasses fill
    ``unlabelled`` int64 [n], the examples to pre-train on, besides ``roles``.
    """

    unlabelled: Tensor

    def __init__(
        self,
        task: WarpedViews,
        seeds: Seeds,
        device: torch.device,
        encoder: ResNet,
        size: int,
        rate: int,
    ) -> None:
        """``size``: samples of a window; ``rate``: of a second."""
        super().__init__(task, seeds, device)
        self.task, self.encoder, self.size, self.rate = task, encoder, size, rate
        self.leads, self.feature_size = encoder.channels, encoder.feature_size
        self.network = MLP(self.leads * COARSE, (16, task.bands))
        named = [Hyper("scale", (), 0.0, WIDEST, meaning="warp, as a part of the window")]
        if task.strength == "numbers":
            meaning = "logit of the strength of each band of the warp"
            named.append(Hyper("logit", (task.bands,), -LIMIT, LIMIT, meaning=meaning))
        self.hypers = tuple(named)

    @abstractmethod
    def windows(self, chosen: Tensor) -> Tensor:
        """[n, leads, window] of the examples of these indices int64 [n]."""

    def init_outer(self) -> Params:
        """The first scale, every strength half of its range."""
        first = torch.tensor(self.task.first_scale, dtype=self.dtype, device=self.device)
        lam = {"scale": first}
        if self.task.strength == "numbers":
            return lam | {"logit": first.new_zeros(self.task.bands)}
        gen = generator(self.seeds.init, "strength")
        drawn = first_values(self.network.shapes(), gen, self.dtype)
        return lam | {f"strength.{k}": v.to(self.device) for k, v in drawn.items()}

    def first_weights(self) -> Params:
        """An encoder, and two layers ``pretrain.layer{0,1}`` to what the contrast is taken of."""
        gen = generator(self.seeds.init, self.task.registered_name)
        n, m = self.feature_size, self.task.projection
        shapes = {f"{ENCODER}{k}": shape for k, shape in self.encoder.shapes().items()}
        shapes |= {"pretrain.layer0.weight": (n, n), "pretrain.layer0.bias": (n,)}
        shapes |= {"pretrain.layer1.weight": (m, n), "pretrain.layer1.bias": (m,)}
        return {k: v.to(self.device) for k, v in first_values(shapes, gen, self.dtype).items()}

    def encode(self, theta: Params, x: Tensor) -> Tensor:
        """[n, features] of windows [n, leads, window]."""
        return self.encoder.features(theta, x, ENCODER)

    def amplitude(self, lam: Params, x: Tensor) -> Tensor:
        """2 sigmoid(strength) times the scale, [bands] or, by the network, [n, bands]."""
        if self.task.strength == "numbers":
            logit = lam["logit"]
        else:
            seen = F.adaptive_avg_pool1d(x, COARSE).flatten(1)
            logit = self.network.features(lam, seen, "strength.")
        return 2 * logit.sigmoid() * lam["scale"]

    def view(self, lam: Params, batch: Batch, which: str) -> Tensor:
        """One warped and noisy view [n, leads, window]."""
        x = batch["x"]
        moved = warp(x, self.amplitude(lam, x) * batch[f"warp_{which}"])
        return moved + self.task.jitter * batch[f"jitter_{which}"]

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Projections of both views, [2n, projection]."""
        x = torch.cat([self.view(lam, batch, which) for which in VIEWS])
        at = "pretrain.layer"
        x = F.relu(F.linear(self.encode(theta, x), theta[f"{at}0.weight"], theta[f"{at}0.bias"]))
        return F.linear(x, theta[f"{at}1.weight"], theta[f"{at}1.bias"])

    def pretraining_loss(self, lam: Params, prediction: Tensor, batch: Batch) -> Tensor:
        """Each view against its twin and all others."""
        return contrast(prediction, self.task.temperature)

    def pretraining(self, split: str, index: int) -> Batch | Callable[[int], Batch]:
        """Examples and the noise of both views, drawn for every step."""
        task = self.task

        def drawn(t: int) -> Batch:
            gen = generator(self.seeds.batches, split, index, t)
            chosen = torch.randint(len(self.unlabelled), (task.batch,), generator=gen)
            batch = {"x": self.windows(self.unlabelled[chosen])}
            for which in VIEWS:
                batch |= {f"{k}_{which}": v for k, v in self.noise(task.batch, gen).items()}
            return batch

        return drawn

    def noise(self, n: int, gen: torch.Generator) -> Batch:
        """What is random in one view of n examples: ``warp`` and ``jitter``."""
        out = {}
        for name, shape in (("warp", (self.task.bands,)), ("jitter", (self.leads, self.size))):
            drawn = torch.randn(n, *shape, generator=gen, dtype=torch.float64)
            out[name] = drawn.to(self.device, self.dtype)
        return out

    def judge(self, lam: Params) -> dict[str, float]:
        """Root mean square of the warp of the validation windows' middle half, in milliseconds."""
        x = self.roles["valid"][1]["x"]
        size = self.amplitude(lam, x).expand(len(x), self.task.bands)
        curves = sines(self.task.bands, self.size, x)
        rms = (size.square() @ curves.square()).mean().sqrt()
        return {"warp_ms": 1000 * float(rms) * (self.size - 1) / self.rate}


def sines(bands: int, size: int, like: Tensor) -> Tensor:
    """sin(pi k t) / k at ``size`` points t from 0 to 1, [bands, size]: still at both ends."""
    k = torch.arange(1, bands + 1, dtype=like.dtype, device=like.device)[:, None]
    t = torch.linspace(0, 1, size, dtype=like.dtype, device=like.device)
    return torch.sin(math.pi * k * t) / k


def warp(x: Tensor, weights: Tensor) -> Tensor:
    """x [n, channels, size] read at t + sum_k weights[:, k] sin(pi k t) / k, t in parts of the
    signal, linear between samples; ``weights`` [n, bands]."""
    n, channels, size = x.shape
    curve = weights @ sines(weights.shape[1], size, x)
    at = torch.arange(size, dtype=x.dtype, device=x.device) + (size - 1) * curve
    at = at.clamp(0, size - 1)
    low = at.detach().floor().clamp(max=size - 2)
    index = low.long()[:, None].expand(n, channels, size)
    before, after = x.gather(2, index), x.gather(2, index + 1)
    return before + (at - low)[:, None] * (after - before)


def contrast(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen et al. 2020, equation 1) of projections [2n, d], twins n rows apart."""
    n = len(z) // 2
    z = F.normalize(z, dim=1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    near = (z @ z.t() / temperature).masked_fill(itself, -1e9)
    twin = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(near, twin)
