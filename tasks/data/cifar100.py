"""CIFAR-100 class by class, and the class splits of CIFAR-FS and FC100.

Krizhevsky 2009. Splits: CIFAR-FS, Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with
differentiable closed-form solvers, ICLR 2019; FC100, Oreshkin, Rodriguez, Lacoste: TADAM, NeurIPS
2018, by superclass. Both as the repository tristandeleu/pytorch-meta lists them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metabench.core.errors import MetabenchError
from metabench.datasets import locate

from .formats import arrays, pickles

Source = Literal["torchvision", "metabench"]

IMAGES: dict[Source, int] = {"torchvision": 600, "metabench": 160}
"""Images of a class by layout: all, or a part drawn once."""

SIZE = 32

SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
NAMES = sorted(name for members in SUPERCLASSES.values() for name in members.split())
"""The classes in the order of their labels, which is alphabetical."""

CIFAR_FS = {
    part: names.split()
    for part, names in {
        "valid": "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree "
        "motorcycle otter sea shark television tractor",
        "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose "
        "snail sweet_pepper table telephone wardrobe whale woman worm",
    }.items()
}
FC100 = {
    part: [name for one in superclasses for name in SUPERCLASSES[one].split()]
    for part, superclasses in {
        "valid": (
            "large_carnivores",
            "large_omnivores_and_herbivores",
            "non-insect_invertebrates",
            "small_mammals",
        ),
        "test": ("aquatic_mammals", "insects", "medium_mammals", "people"),
    }.items()
}
"""Part to names; whatever is in neither is for training."""


def images(source: Source, split: dict[str, list[str]], part: str) -> Tensor:
    """uint8 [classes, images, 3, 32, 32] of "train", "valid" or "test" of a split.

    Raises DataMissing with the command that repairs it, and MetabenchError where a file is damaged
    or another.
    """
    held_out = [name for names in split.values() for name in names]
    chosen = split[part] if part in split else [name for name in NAMES if name not in held_out]
    index = torch.tensor(sorted(NAMES.index(name) for name in chosen))
    return _read(locate.locate("cifar100", source).path.resolve(), source)[index]


@lru_cache(maxsize=2)
def _read(folder: Path, source: Source) -> Tensor:
    """uint8 [100, images of a class, 3, 32, 32], training images before test images."""
    with arrays.readable(folder, "cifar100"):
        found = _joined(folder) if source == "metabench" else _batches(folder)
    expected = (len(NAMES), IMAGES[source], 3, SIZE, SIZE)
    if found.shape != expected or found.dtype != np.uint8:
        raise MetabenchError(
            f"{folder} holds {found.dtype} {list(found.shape)}, CIFAR-100 is uint8 {list(expected)}"
            "; look with: metabench data verify cifar100"
        )
    return torch.from_numpy(np.ascontiguousarray(found))


def _joined(folder: Path) -> np.ndarray:
    path = folder / "cifar100_160pc.npz"
    with arrays.readable(path, "cifar100"):
        names, train, test = arrays.read(path, "class_names", "train_images", "test_images")
    if names.tolist() != NAMES:
        raise ValueError("its classes are not those of CIFAR-100")
    return np.concatenate([train, test], axis=1).transpose(0, 1, 4, 2, 3)


def _batches(folder: Path) -> np.ndarray:
    """The pickles of the authors: rows of 3,072 values and a fine label for each."""
    if (names := pickles.load(folder / "meta")["fine_label_names"]) != NAMES:
        raise ValueError(f"its classes are {', '.join(map(str, names[:3]))} ..., not CIFAR-100's")
    parts = [pickles.load(folder / part) for part in ("train", "test")]
    rows = np.concatenate([part["data"] for part in parts])
    labels = np.concatenate([np.asarray(part["fine_labels"]) for part in parts])
    counts = np.bincount(labels, minlength=len(NAMES))
    if len(rows) != len(labels) or counts.min() != counts.max():
        raise ValueError(f"its classes have {counts.min()} to {counts.max()} images")
    order = np.argsort(labels, kind="stable")
    return rows[order].reshape(len(NAMES), -1, 3, SIZE, SIZE)
