"""Images by class, and parts of the episodes that are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metabench.contract.problem import Batch, Episode
from metabench.contract.seeds import generator


@dataclass(frozen=True)
class Classes:
    """Images of one split: uint8 [classes, drawings, channels, size, size], ink or light high."""

    images: Tensor
    rotations: int = 1
    """4: every class turned by 90 degrees is a further class."""

    def __len__(self) -> int:
        return len(self.images) * self.rotations

    def pick(self, classes: Tensor, drawings: Tensor) -> Tensor:
        """uint8 [n, k, channels, size, size] of classes [n] and drawings [n, k]."""
        base, turns = classes % len(self.images), classes // len(self.images)
        rows = (base[:, None] * self.images.shape[1] + drawings).flatten()
        # Whole images at a time: indexing by two tensors, or by a mask, goes pixel by pixel.
        picked = self.images.flatten(0, 1).index_select(0, rows)
        if self.rotations > 1:
            turns = turns.repeat_interleave(drawings.shape[1])
            places = [(turns == turn).nonzero().squeeze(1) for turn in range(self.rotations)]
            groups = [picked.index_select(0, place) for place in places]
            turned = torch.cat([torch.rot90(x, t, (-2, -1)) for t, x in enumerate(groups)])
            picked = turned.index_select(0, torch.cat(places).argsort())
        return picked.view(*drawings.shape, *picked.shape[1:])


@dataclass(frozen=True)
class GivenEpisode:
    """An episode that its authors fixed: uint8 images [n, channels, size, size], labels [n]."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor


@dataclass(frozen=True)
class Minibatches:
    """Inner batches of ``size`` images (or all, where there are fewer) from passes over the support
    set, each in a new order; a batch may end one pass and begin the next, as in Reptile's code."""

    support: Batch
    size: int
    address: tuple[int | str, ...]

    def __call__(self, step: int) -> Batch:
        """The batch of an inner step."""
        y = self.support["y"]
        n = len(y)
        size = min(self.size, n)
        first, last = step * size, (step + 1) * size
        passes = range(first // n, (last - 1) // n + 1)
        orders = [torch.randperm(n, generator=generator(*self.address, "inner", i)) for i in passes]
        skipped = passes[0] * n
        picked = torch.cat(orders)[first - skipped : last - skipped].to(y.device)
        return {k: v[picked] for k, v in self.support.items()}


def nearest_neighbour(episode: Episode) -> float:
    """Query accuracy of the label of the support image with the least Euclidean distance."""
    inner, query = episode.inner, episode.outer
    support = inner.support if isinstance(inner, Minibatches) else episode.batch(0)
    distance = torch.cdist(query["x"].flatten(1), support["x"].flatten(1))
    return float((support["y"][distance.argmin(1)] == query["y"]).double().mean())
