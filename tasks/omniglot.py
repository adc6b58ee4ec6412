"""Omniglot: characters of 50 alphabets, 20 drawings each, as few-shot episodes.

Lake, Salakhutdinov, Tenenbaum, Science 2015. 28x28 (Pillow's Lanczos filter), and characters turned
by 90 degrees as further classes, as in Finn et al. 2017 (after Santoro et al. 2016).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metabench.core.errors import MetabenchError
from metabench.core.registry import task
from metabench.datasets import locate

from .data import omniglot_lists as lists
from .data.formats import arrays as _arrays
from .data.formats import pictures
from .families.episodes.few_shot import FewShot
from .families.images.class_images import Classes, GivenEpisode

CHARACTERS, DRAWERS, SIZE = 1623, 20, 28
_LOOK = "look with: metabench data verify omniglot"


@task("omniglot")
@dataclass(frozen=True)
class Omniglot(FewShot):
    """Omniglot, 28x28, 1,623 characters and their rotations, N-way K-shot."""

    split: Literal["vinyals", "background", "shuffled"] = "vinyals"
    """Characters to train, validate and test on: "vinyals" 1,028 / 172 / 423, whole alphabets each
    (Vinyals et al. 2016); "shuffled" 1,100 / 100 / 423 without regard to alphabets, as in the code
    of Finn et al. 2017 (there in the order of the disk's folders, here of their names);
    "background" 792 / 172 / 659, Lake's background and evaluation sets, where the five validation
    alphabets of Vinyals are cut from the background set. The latter at ``ways`` 20, ``shots`` 1
    adds the evaluation "one_shot_runs": Lake's 20 runs of 20 characters within one alphabet. With
    "vinyals" they would not be a test: it trains on 78 of the runs' 200 characters."""
    rotations: bool = True
    """Characters turned by 90, 180 and 270 degrees are classes too, in the character's split."""
    source: Literal["auto", "metabench", "torchvision", "learn2learn"] = "auto"
    """Where the images are read from; "auto" takes the first that is there. The episodes are the
    same, bit for bit."""

    data: ClassVar[tuple[str, ...]] = ("omniglot",)
    images_per_class: ClassVar[int] = DRAWERS

    def classes(self, split: str) -> Classes:
        """uint8 [characters, 20, 1, 28, 28], 255 = full ink, times four with rotations."""
        chosen = _members(self.split, split)
        return Classes(self._images()[chosen][:, :, None], 4 if self.rotations else 1)

    @property
    def evaluations(self) -> tuple[str, ...]:
        """The test split, and the one-shot runs where they are a test."""
        runs = self.split == "background" and (self.ways, self.shots) == (20, 1)
        return ("test", "one_shot_runs") if runs else ("test",)

    def given(self) -> dict[str, list[GivenEpisode]]:
        """The one-shot runs: 20 training items, and the test items of the same characters."""
        if "one_shot_runs" not in self.evaluations:
            return {}
        images, labels = self._images(), torch.arange(20)
        runs = [
            (images[characters, trained][:, None], images[characters, tested][:, None])
            for characters, trained, tested in one_shot_runs()
        ]
        return {"one_shot_runs": [GivenEpisode(one, labels, other, labels) for one, other in runs]}

    def _images(self) -> Tensor:
        found = locate.locate("omniglot", None if self.source == "auto" else self.source)
        return _read(found.path.resolve(), arrays=found.layout.name == "metabench")


def one_shot_runs() -> Iterator[tuple[Tensor, int, int]]:
    """Of each of the 20 runs: indices of the characters [20], of the drawer of the training items,
    and of the drawer of the test items."""
    first = _first_characters()
    for alphabet, one, other, numbers in lists.RUNS:
        characters = torch.tensor([first[alphabet] + int(n) - 1 for n in numbers.split()])
        for trained, tested in (one, other):
            yield characters, trained - 1, tested - 1


def _first_characters() -> dict[str, int]:
    """Index of the first character of each alphabet."""
    before = accumulate(lists.ALPHABETS.values(), initial=0)
    return dict(zip(lists.ALPHABETS, before, strict=False))


def _members(split: str, part: str) -> Tensor:
    """Indices of the characters of one part of a split."""
    index = torch.arange(CHARACTERS)
    if split == "shuffled":
        order = list(range(CHARACTERS))
        random.Random(1).shuffle(order)
        first, last = {"train": (0, 1100), "valid": (1100, 1200), "test": (1200, None)}[part]
        return torch.tensor(sorted(order[first:last]))
    test = index >= (lists.BACKGROUND if split == "background" else lists.VINYALS_TEST_FROM - 1)
    valid = torch.zeros(CHARACTERS, dtype=torch.bool)
    starts = _first_characters()
    for alphabet in lists.VINYALS_VALID:
        valid[starts[alphabet] : starts[alphabet] + lists.ALPHABETS[alphabet]] = True
    return index[{"train": ~(test | valid), "valid": valid, "test": test}[part]]


@lru_cache(maxsize=2)
def _read(folder: Path, *, arrays: bool) -> Tensor:
    """All drawings, uint8 [1623, 20, 28, 28], 255 = full ink.

    Raises MetabenchError where the file is damaged or another.
    """
    if not arrays:
        return torch.from_numpy(read_pictures(folder))
    path = folder / "omniglot28.npz"
    with _arrays.readable(path, "omniglot"):
        (images,) = _arrays.read(path, "images")
    if images.shape != (CHARACTERS, DRAWERS, SIZE, SIZE) or images.dtype != np.uint8:
        found = f"{images.dtype} {list(images.shape)}"
        raise MetabenchError(f"{path} holds {found}, not Omniglot's drawings; {_LOOK}")
    return torch.from_numpy(images)


def read_pictures(folder: Path) -> np.ndarray:
    """The same from torchvision's folder of PNG files.

    Characters and drawers are numbered by the names of the files. Raises MetabenchError where
    drawings are missing or lie in another alphabet's folder than they should.
    """
    alphabet_of = [name for name, n in lists.ALPHABETS.items() for _ in range(n)]
    images = np.zeros((CHARACTERS, DRAWERS, SIZE, SIZE), np.uint8)
    there = np.zeros((CHARACTERS, DRAWERS), bool)
    for part in ("images_background", "images_evaluation"):
        for path in (folder / part).glob("*/character*/*.png"):
            numbers = re.fullmatch(r"(\d{4})_(\d{2})", path.stem)
            if numbers is None:
                continue
            character, drawer = int(numbers[1]) - 1, int(numbers[2]) - 1
            alphabet = path.parent.parent.name
            if not (0 <= character < CHARACTERS and 0 <= drawer < DRAWERS) or (
                alphabet_of[character] != alphabet
            ):
                raise MetabenchError(f"{path} is no drawing of Omniglot's {alphabet}")
            images[character, drawer] = shrink(path)
            there[character, drawer] = True
    if not there.all():
        raise MetabenchError(
            f"{folder} holds {there.sum():,} of Omniglot's {there.size:,} drawings; "
            "repair: remove it, then metabench data fetch omniglot"
        )
    return images


def shrink(path: Path) -> np.ndarray:
    """A drawing (black on white, 105x105) as uint8 [28, 28], 255 = full ink.

    Raises MetabenchError.
    """
    small = pictures.read(path, "L").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return 255 - np.asarray(small)
