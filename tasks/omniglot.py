"""Omniglot: characters of 50 alphabets, 20 drawings each, as few-shot episodes.

Lake, Salakhutdinov, Tenenbaum, Science 2015. 28x28, and characters turned by 90 degrees as further
classes, as in Finn et al. 2017 (after Santoro et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch

from metabench import data
from metabench.registry import tasks

from ._fewshot import Classes, FewShot


@tasks.register("omniglot")
@dataclass(frozen=True)
class Omniglot(FewShot):
    """Omniglot, 28x28, 1,623 characters and their rotations, N-way K-shot."""

    split: Literal["vinyals"] = "vinyals"
    rotations: bool = True

    data: ClassVar[tuple[str, ...]] = ("omniglot",)

    def classes(self, split: str) -> Classes:
        """1,028 / 172 / 423 characters (Vinyals et al. 2016), times four with rotations."""
        images, parts = _images()
        chosen = parts == ("train", "valid", "test").index(split)
        return Classes(torch.from_numpy(images[chosen])[:, :, None], 4 if self.rotations else 1)


@lru_cache(maxsize=1)
def _images() -> tuple[np.ndarray, np.ndarray]:
    with np.load(data.find("omniglot") / "omniglot28.npz") as file:
        return file["images"], file["vinyals_split"]
