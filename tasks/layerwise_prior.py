"""The prior of a network's weights, a precision a layer: learned with or without validation images.

The problem of Immer et al.: Stochastic Marginal Likelihood Gradients using Neural Tangent Kernels,
ICML 2023, arXiv 2306.03968, at the size of a small MLP on MNIST (theirs: Fixup residual networks on
CIFAR). See :mod:`metabench.tasks.families.images.bayesian_images`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from metabench.contract.seeds import Seeds
from metabench.core.registry import task

from .families.images.bayesian_images import BayesianImages, BayesianImagesProblem


@task("layerwise_prior")
@dataclass(frozen=True)
class LayerwisePrior(BayesianImages):
    """The prior precisions of a small image classifier: one, one a layer, or one a weight."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss", "trained_on", "validated_on")

    def build(self, seeds: Seeds, device: torch.device) -> BayesianImagesProblem:
        """Cut the parts. Raises DataMissing, SettingError."""
        return BayesianImagesProblem(self, seeds, device, self.images())
