"""Episodes of few-shot classification, drawn from class-major images, and their losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core.errors import UnknownName
from metabench.problems.network import norms_of

from ...models.networks import ConvNet
from ..images.class_images import Classes, GivenEpisode, Minibatches, nearest_neighbour
from .few_shot_settings import FewShotSettings
from .learned_start import prior_loss

UNIT_EPS = 1e-10
"""Of a squared length: shorter features than its root, 1e-5, are not brought to 1."""


class FewShotProblem(Problem):
    """Episodes of a few-shot task.

    Batches: ``x`` float [n, channels, size, size] in [0, 1], ``y`` long [n] in [0, ways), class by
    class; in a prepared episode ``features`` [n, f] stands for ``x``. With ``train_ways`` an outer
    batch has ``classes`` too, arange(ways) of its episode: vmap keeps shapes only. lam and theta
    are named as the parameters of ``module``.
    """

    def __init__(
        self, task: FewShotSettings, splits: dict[str, Classes], seeds: Seeds, device: torch.device
    ) -> None:
        self.task, self.splits, self.seeds, self.device = task, splits, seeds, device
        self.dtype: torch.dtype = getattr(torch, task.dtype)
        self.episodes_per_step = task.meta_batch
        self.base_classes = len(splits["train"])
        channels, size = splits["train"].images.shape[2], splits["train"].images.shape[-1]
        self.net = task.network_for(channels, size).to(device)
        self.batched_on_cpu = isinstance(self.net, ConvNet) and self.net.stacks_well(
            task.ways_of("train") * sum(task.images_of("train"))
        )
        self.adapted_at_once = 1
        if isinstance(self.net, ConvNet):
            images = task.test_inner_batch or task.ways_of("test") * task.images_of("test")[0]
            self.adapted_at_once = self.net.adapted_at_once(images)
        if isinstance(self.net, ConvNet) and task.formulation == "init":
            self.descends_at_once = self.net.descends_at_once(
                task.ways_of("train") * sum(task.images_of("train"))
            )
        self.capturable = True
        self.given = task.given()
        self.evaluations = ("test", *self.given)
        self.module = self.net
        self.head = ("head.weight", "head.bias")
        self.starts_at_lam = task.formulation == "prior"
        self.whole = task.formulation in ("init", "prior")
        """Whether theta is all weights."""
        self.batch_norms = norms_of(self.net) if self.whole else ()
        self.modulated = f"norm{task.context_block}"

    def init_outer(self) -> Params:
        """Every weight, or those of the body; with a context also ``film.weight`` [2 c, context]
        and ``film.bias`` [2 c] for the c maps of a block."""
        weights = self.net.init_params(generator(self.seeds.init, "weights"))
        weights = {k: v.to(self.device, self.dtype) for k, v in weights.items()}
        if self.task.formulation == "context":
            n = 2 * len(weights[f"{self.modulated}.weight"])
            film = torch.empty(n, self.task.context, dtype=torch.float32)
            self.net.draw(film, generator(self.seeds.init, "film"))
            film = film.to(self.device, self.dtype)
            return {**weights, "film.weight": film, "film.bias": film.new_zeros(n)}
        if self.whole:
            return weights
        return {k: v for k, v in weights.items() if k not in self.head}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """lam itself; or zeros, a head of weight [ways, features] and bias [ways] or a ``context``
        [context]."""
        if self.whole:
            return {k: lam[k] for k in self.net.names}
        some = next(iter(lam.values()))
        if self.task.formulation == "context":
            return {"context": some.new_zeros(self.task.context)}
        ways = len(episode.outer["classes"]) if "classes" in episode.outer else self.task.ways
        return {
            "head.weight": some.new_zeros(ways, self.net.feature_size),
            "head.bias": some.new_zeros(ways),
        }

    def embed(self, lam: Params, batch: Batch) -> Tensor:
        """What the body makes of images [n, f]; of length 1 with ``unit_features``."""
        z = self.net.features(lam, batch["x"])
        if not self.task.unit_features:
            return z
        # Differentiable twice at z = 0 as well, where a norm is not.
        return z * (z.square().sum(1, keepdim=True) + UNIT_EPS).rsqrt()

    def weights(self, lam: Params, theta: Params) -> Params:
        """All weights of the network. A context scales the maps of a block by 1 + gamma and shifts
        them by beta, (gamma, beta) = film.weight context + film.bias, after batch norm: which is
        another scale and shift of that norm."""
        if self.whole:
            return theta
        if self.task.formulation != "context":
            return {**lam, **theta}
        scale, shift = (f"{self.modulated}.{part}" for part in ("weight", "bias"))
        film = F.linear(theta["context"], lam["film.weight"], lam["film.bias"])
        gamma, beta = film.chunk(2)
        changed = {scale: (1 + gamma) * lam[scale], shift: (1 + gamma) * lam[shift] + beta}
        return {**lam, **changed}

    def logits(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """[n, ways]."""
        weights = self.weights(lam, theta)
        if "features" in batch or self.task.unit_features:
            z = batch["features"] if "features" in batch else self.embed(lam, batch)
            return F.linear(z, weights["head.weight"], weights["head.bias"])
        return self.net.apply_params(weights, batch["x"])

    def fit(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        if "features" in batch or self.task.unit_features:
            return F.cross_entropy(self.logits(lam, theta, batch), batch["y"])
        return self.net.loss(self.weights(lam, theta), batch["x"], batch["y"])

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on the support set; with a prior also mu/2 |theta - lam|^2."""
        fit = self.fit(lam, theta, batch)
        if self.task.formulation != "prior":
            return fit
        return fit + prior_loss(self.task.prior_precision, lam, theta)

    def inner_gradient(
        self, lam: Params, theta: Params, batch: Batch
    ) -> tuple[Tensor, Params] | None:
        """By the network, where all its weights move and the loss is of nothing else."""
        alone = self.task.formulation == "init" and "features" not in batch
        if not (alone and isinstance(self.net, ConvNet)):
            return None
        return self.net.gradient(theta, batch["x"], batch["y"])

    def descended(
        self, lam: Params, inner: Sequence[Batch], outer: Batch, rate: float, second_order: bool
    ) -> tuple[Tensor, Params]:
        """By the network, which is one that offers it wherever ``descends_at_once`` is not 0."""
        assert isinstance(self.net, ConvNet)
        steps = [(b["x"], b["y"]) for b in inner]
        return self.net.descended(lam, steps, (outer["x"], outer["y"]), rate, second_order)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy on the query set."""
        return self.fit(lam, theta, batch)

    def prepare(self, lam: Params, episode: Episode, only: Sequence[str] | None = None) -> Episode:
        """Features for images where inner steps move the head alone: they stay what they are."""
        ready = self.prepare_inner(lam, episode, only)
        if ready is episode:
            return episode
        return replace(ready, outer=self.featured(lam, episode.outer))

    def prepare_inner(
        self, lam: Params, episode: Episode, only: Sequence[str] | None = None
    ) -> Episode:
        """The same of the support set alone."""
        whole = self.whole or self.task.formulation == "context"
        moves_body = whole and (only is None or set(only) - {*self.head})
        if moves_body or callable(episode.inner):
            return episode
        return replace(episode, inner=self.featured(lam, episode.inner))

    def featured(self, lam: Params, batch: Batch) -> Batch:
        """A batch with features in the place of images."""
        kept = {k: v for k, v in batch.items() if k != "x"}
        return {"features": self.embed(lam, batch), **kept}

    def count(self, split: str) -> int | None:
        """As many as were given; sampled ones never end."""
        return len(self.given[split]) if split in self.given else None

    def episode(self, split: str, index: int) -> Episode:
        """``ways`` (or ``train_ways``) classes, each with the images that the task's
        :meth:`FewShotSettings.images_of` says.

        Raises UnknownName for a split that is not there, IndexError past the end of one.
        """
        return self.episodes(split, [index])[0]

    def episodes(self, split: str, indices: Sequence[int]) -> list[Episode]:
        """:meth:`episode` of each, drawn one by one, and made of images all at once."""
        if split in self.given:
            return [self.given_episode(self.given[split][i], i) for i in indices]
        if split not in self.splits:
            raise UnknownName("split", split, [*self.splits, *self.given])
        task, source = self.task, self.splits[split]
        shots, queries = task.images_of(split)
        ways, stream = task.ways_of(split), self.stream(split)
        chosen, keys = [], []
        for index in indices:
            gen = generator(stream, split, index)
            chosen.append(torch.randperm(len(source), generator=gen)[:ways])
            shape = ways, source.images.shape[1]
            keys.append(torch.rand(shape, generator=gen, dtype=torch.float32))
        order = torch.cat(keys).argsort(dim=1)[:, : shots + queries]
        images = source.pick(torch.cat(chosen), order).to(self.device)
        images = images.unflatten(0, (len(indices), ways))
        labels = torch.arange(ways, device=self.device)
        # Taken apart as bytes: copies of floats would be four times as large.
        parts = [
            (self.scaled(part.flatten(1, 2)), labels.repeat_interleave(part.shape[2]))
            for part in (images[:, :, :shots], images[:, :, shots:])
        ]
        size = task.inner_batch if split == "train" else task.test_inner_batch
        found = []
        for place, index in enumerate(indices):
            support, query = ({"x": part[place], "y": y} for part, y in parts)
            if task.train_ways is not None:
                query["classes"] = labels
            if size is None:
                found.append(Episode(support, query, index))
                continue
            address = (stream, index) if split == "train" else (stream, split, index)
            found.append(Episode(Minibatches(support, size, address), query, index))
        return found

    def stream(self, split: str) -> int:
        """The seed that episodes of a split are drawn by."""
        return self.seeds.batches if split == "train" else self.seeds.evaluation

    def given_episode(self, fixed: GivenEpisode, index: int) -> Episode:
        """One that the data set's authors fixed."""
        return Episode(
            self.batch(fixed.support, fixed.support_labels),
            self.batch(fixed.query, fixed.query_labels),
            index,
        )

    def base_batch(self, step: int, size: int) -> Batch:
        """Images drawn with replacement from all training classes, rotated ones too."""
        gen, source = generator(self.seeds.batches, "base", step), self.splits["train"]
        classes = torch.randint(len(source), (size,), generator=gen)
        drawings = torch.randint(source.images.shape[1], (size, 1), generator=gen)
        return self.batch(source.pick(classes, drawings).flatten(0, 1), classes)

    def batch(self, images: Tensor, labels: Tensor) -> Batch:
        """uint8 images [n, channels, size, size] and labels [n] as a batch."""
        return {"x": self.scaled(images), "y": labels.to(self.device)}

    def scaled(self, images: Tensor) -> Tensor:
        """Images with ink or light in [0, 1], on the device."""
        return images.to(self.device).to(self.dtype).div_(255)

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """accuracy and loss on the query set; nearest_neighbour: accuracy of the closest pixels."""
        with torch.no_grad():
            logits = self.logits(lam, theta, episode.outer)
            y = episode.outer["y"]
            return {
                "accuracy": float((logits.argmax(1) == y).double().mean()),
                "loss": float(F.cross_entropy(logits, y)),
                "nearest_neighbour": nearest_neighbour(episode),
            }
