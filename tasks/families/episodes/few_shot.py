"""Few-shot classification, written once: episodes from class-major images, four formulations.

Finn, Abbeel, Levine, ICML 2017 (lam = initial weights); Franceschi et al., ICML 2018 (lam = conv
body, theta = a linear head per episode, from zeros); Rajeswaran, Finn, Kakade, Levine, NeurIPS
2019 (lam = the centre of a Gaussian prior on all weights, which start there too); Zintgraf,
Shiarlis, Kurin, Hofmann, Whiteson, ICML 2019 (theta = a few context parameters, from zeros, that
scale and shift the maps of one block; lam = all weights). A data set is a small file that
subclasses :class:`FewShot` and gives its images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metabench.contract.seeds import Seeds
from metabench.core.errors import SettingError

from .few_shot_problem import FewShotProblem
from .few_shot_settings import FewShotSettings


@dataclass(frozen=True)
class FewShot(FewShotSettings):
    """A few-shot task: :meth:`classes` are its images."""

    def build(self, seeds: Seeds, device: torch.device) -> FewShotProblem:
        """Load the images of every split. Raises SettingError where a split has too few classes."""
        splits = {split: self.classes(split) for split in ("train", "valid", "test")}
        for split, classes in splits.items():
            ways = self.ways_of(split)
            if len(classes) < ways:
                given = "train_ways" if ways != self.ways else "ways"
                raise SettingError(
                    f"{given} = {ways}, but the {split} split has {len(classes)} classes"
                )
        return FewShotProblem(self, splits, seeds, device)
