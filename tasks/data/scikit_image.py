"""The photographs that the package scikit-image holds, grey and of one size.

van der Walt et al.: scikit-image, PeerJ 2, 2014. Only files inside the package: nothing is fetched.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metabench.core.errors import MetabenchError

from .formats import pictures

PACKAGE = "skimage"

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
"""What is left out: drawings, text, a second view of the motorcycle, and medical slides."""


@lru_cache(maxsize=4)
def load(size: int) -> Tensor:
    """The photographs in 0..1, float64 [12, size, size]: grey, each squeezed to a square.

    What comes back is shared between callers: never change it in place. Raises MetabenchError where
    the package is not installed, or lacks one of them.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MetabenchError(f"{PACKAGE} is not installed: its photographs are the data")
    folder = Path(found.submodule_search_locations[0]) / "data"
    grey = [pictures.read(folder / name, "L") for name in PHOTOGRAPHS]
    small = [np.asarray(g.resize((size, size), Image.Resampling.BILINEAR)) for g in grey]
    return torch.from_numpy(np.stack(small)).double() / 255
