"""MNIST, Fashion-MNIST and CIFAR-10 as tensors, from whatever layout lies on the machine.

LeCun et al. 1998; Xiao et al. 2017; Krizhevsky 2009. Nothing is normalised or augmented.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.task import Task
from metabench.core.errors import MetabenchError, SettingError
from metabench.datasets import catalogue, locate

from .formats import arrays, pickles
from .left_over import lacks_kept

Images = dict[str, tuple[Tensor, Tensor]]
"""Split to images, float32 [n, channels, height, width] in 0..1, and labels, int64 [n]."""

SIZES = {
    ("mnist", "metabench"): (60000, 10000, (1, 28, 28)),
    ("mnist", "torchvision"): (60000, 10000, (1, 28, 28)),
    ("fashion_mnist", "torchvision"): (60000, 10000, (1, 28, 28)),
    ("fashion_mnist", "debian"): (60000, 10000, (1, 28, 28)),
    ("cifar10", "torchvision"): (50000, 10000, (3, 32, 32)),
    ("cifar10", "metabench"): (8000, 2000, (3, 32, 32)),
}
"""Data set and layout to training images, test images, and the shape of one."""

CLASSES = 10


@dataclass(frozen=True)
class OfImages(Task):
    """Settings of every task that can be had on any of the three."""

    dataset: Literal["mnist", "fashion_mnist", "cifar10"] = "mnist"
    source: Literal["auto", "metabench", "torchvision", "debian"] = "auto"
    """The layout to read. CIFAR-10 comes in two sizes and must be told: "torchvision" has all
    50,000 training images, "metabench" 8,000 of them."""

    def __post_init__(self) -> None:
        if self.dataset == "cifar10" and self.source == "auto":
            raise ValueError(
                "CIFAR-10 comes in two sizes: set source to torchvision (50,000 training images) "
                "or metabench (8,000)"
            )

    @property
    def data(self) -> tuple[str, ...]:
        """The one that is set."""
        return (self.dataset,)

    @property
    def taken(self) -> int:
        """Images of "train" that the parts take."""
        sizes: Any = self
        return int(sizes.n_train + sizes.n_valid)

    @property
    def lacks_selection(self) -> str | None:
        """Images of "train" are kept for it, where so many are left over."""
        sizes: Any = self
        there = training_images(self.dataset, self.source)
        return lacks_kept(sizes.n_valid, there - self.taken)

    def images(self) -> Images:
        """The splits "train" and "test". Raises DataMissing."""
        return load(self.dataset, None if self.source == "auto" else self.source)


def training_images(dataset: str, source: str) -> int:
    """How many a data set has in a layout; "auto": in those of all 60,000 images."""
    layouts = {layout: n for (name, layout), (n, *_) in SIZES.items() if name == dataset}
    return max(layouts.values()) if source == "auto" else layouts.get(source, 0)


def enough(task: str, dataset: str, what: str, wanted: int, there: int) -> None:
    """Raise SettingError where ``task`` wants more images (its setting ``what``) than there are."""
    if wanted > there:
        raise SettingError(
            f"task {task}: {what} is {wanted}; {dataset} has {there} images to take them from"
        )


def shrunk(images: Tensor, side: int) -> Tensor:
    """Means over squares of so many pixels a side, of images [n, channels, height, width].

    Raises SettingError where a square is larger than an image.
    """
    if side > min(images.shape[-2:]):
        height, width = images.shape[-2:]
        raise SettingError(
            f"shrink is {side}; an image has {height} x {width} pixels: take at most "
            f"{min(height, width)}"
        )
    return F.avg_pool2d(images, side) if side > 1 else images


def resized(images: Tensor, size: int) -> Tensor:
    """Images [n, channels, height, width] of ``size`` pixels a side, bilinear with antialiasing, as
    torchvision's ``Resize`` does it."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def load(name: str, layout: str | None = None) -> Images:
    """The splits "train" and "test" of "mnist", "fashion_mnist" or "cifar10".

    Float32 [n, channels, height, width] in 0..1 and int64 [n], in the layout's order. ``layout``
    None takes the best that is there: for CIFAR-10 all 60,000 images (layout "torchvision") before
    one in six ("metabench"). What comes back is shared between callers: never change it in place.
    Raises DataMissing with the command that repairs it, UnknownName, and MetabenchError where
    a file holds something else than it should.
    """
    found = locate.locate(name, layout)
    shared = _load(name, found.layout.name, found.path.resolve())
    return dict(shared)


@lru_cache(maxsize=2)
def _load(name: str, layout: str, folder: Path) -> Images:
    with arrays.readable(folder, name):
        parts = _read(name, layout, folder)
    return _checked(name, layout, folder, parts)


def _read(name: str, layout: str, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """uint8 images [n, channels, height, width] and labels [n] of each split."""
    if layout == "metabench":
        (named,) = next(x.files for x in catalogue.dataset(name).layouts if x.name == layout)
        out = {}
        for split in ("train", "test"):
            with arrays.readable(folder / named.path, name):
                x, y = arrays.read(folder / named.path, f"{split}_images", f"{split}_labels")
            out[split] = (x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2), y)
        return out
    if (folder / "test_batch").is_file():
        train = [_batch(folder / f"data_batch_{i}") for i in range(1, 6)]
        joined = np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train])
        return {"train": joined, "test": _batch(folder / "test_batch")}
    return {
        split: (
            _idx(name, folder / f"{prefix}-images-idx3-ubyte")[:, None],
            _idx(name, folder / f"{prefix}-labels-idx1-ubyte"),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One of CIFAR-10's pickled batches: uint8 [n, 3, 32, 32] and [n]."""
    if not path.is_file():
        raise MetabenchError(f"{path} is missing; repair: metabench data fetch cifar10")
    held = pickles.load(path)
    with arrays.readable(path, "cifar10"):
        return np.asarray(held["data"]).reshape(-1, 3, 32, 32), np.asarray(held["labels"], np.uint8)


def _idx(name: str, path: Path) -> np.ndarray:
    """A file of unsigned bytes in the IDX format, packed with gzip or not."""
    path = path if path.is_file() else path.with_name(f"{path.name}.gz")
    with arrays.readable(path, name):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dims = raw[3] if raw[:3] == b"\0\0\x08" else 0
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", dims, 4)) if dims else ()
    start = 4 + 4 * dims
    if not dims or len(raw) - start != int(np.prod(shape)):
        raise MetabenchError(f"{path} is no IDX file of unsigned bytes")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _checked(
    name: str, layout: str, folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Images:
    """As tensors, once their numbers, shapes and labels are found right."""
    train, test, shape = SIZES[name, layout]
    out: Images = {}
    for split, n in (("train", train), ("test", test)):
        images, labels = parts[split]
        right = images.shape == (n, *shape) and labels.shape == (n,) and labels.max() < CLASSES
        if not right or images.dtype != np.uint8:
            raise MetabenchError(
                f"{folder} holds {split} images {images.dtype} {list(images.shape)} and labels "
                f"{list(labels.shape)} up to {labels.max(initial=0)}; {name} has uint8 [{n}, "
                f"{', '.join(map(str, shape))}] and [{n}] up to {CLASSES - 1}"
            )
        out[split] = (
            torch.tensor(images).float().div_(255),
            torch.from_numpy(labels.astype(np.int64)),
        )
    return out
