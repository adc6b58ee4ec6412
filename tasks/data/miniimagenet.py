"""miniImageNet from whatever lies on the machine: images with CSV splits, pickles, or `datasets`.

Vinyals et al. 2016; the split of Ravi, Larochelle: Optimization as a Model for Few-Shot Learning,
ICLR 2017. Whatever does not hold 64 / 16 / 20 classes of 600 images, or names other classes than
that split's, is refused.

Layouts: "csv": train.csv, val.csv and test.csv of Ravi and Larochelle (filename, label), and the
images under images/, by class or not, or under train/, val/ and test/. "cache": the pickles
mini-imagenet-cache-{train,val,test}.pkl of Ren et al. 2018 ("image_data", "class_dict");
learn2learn writes "validation". "category_split": the pickles
miniImageNet_category_split_{train_phase_train,val,test}.pickle of Gidaris and Komodakis 2018
("data", "labels"). "datasets": what the package saves with save_to_disk; "parquet": the files that
the hub has; columns image and label, splits train, validation and test. Some of these name no
classes: there only the numbers can be checked.

Images of another size than 84x84 are resized by Pillow's Lanczos filter, as in the code of Finn et
al. 2017, once: what was decoded is kept in the cache folder. Classes are in the order of their
names or labels, the images of a class in the order of the source: episodes of two sources differ.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metabench.core.errors import MetabenchError
from metabench.datasets import cache, catalogue, locate

from .formats import pickles, pictures

CLASSES = {"train": 64, "valid": 16, "test": 20}
PER_CLASS, SIZE = 600, 84

RAVI = {
    part: names.split()
    for part, names in {
        "train": """
        n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867
        n02091831 n02101006 n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079
        n02165456 n02457408 n02606052 n02687172 n02747177 n02795169 n02823428 n02966193 n03017168
        n03047690 n03062245 n03207743 n03220513 n03337140 n03347037 n03400231 n03476684 n03527444
        n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472 n04243546
        n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003
        n04596742 n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560
        n13133613""",
        "valid": """
        n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370
        n03417042 n03535780 n03584254 n03770439 n03773504 n03980874 n09256479""",
        "test": """
        n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484
        n02871525 n03127925 n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357
        n04522168 n07613480""",
    }.items()
}
"""WordNet names of the classes of each part."""


class Part(NamedTuple):
    """One part of the data set before its images are read."""

    members: dict[str, list[Any]]
    """Name or label of a class to what ``read`` takes."""
    read: Callable[[Any], np.ndarray]
    """uint8 [84, 84, 3] of one member."""
    stamp: str = ""
    """Where decoding takes long: changes whenever the files do. "": nothing is kept."""


def images(source: str | None, part: str) -> Tensor:
    """uint8 [classes, 600, 3, 84, 84] of "train", "valid" or "test"; None: the first layout there.

    Raises DataMissing with the command that repairs it, and MetabenchError where the files are not
    miniImageNet in that split or cannot be read.
    """
    found = locate.locate("miniimagenet", source)
    return torch.from_numpy(_images(found.layout.name, found.path.resolve(), part))


@lru_cache(maxsize=4)
def _images(layout: str, folder: Path, part: str) -> np.ndarray:
    held = READERS[layout](folder, part)
    check(folder, part, held.members)
    shape = (len(held.members), PER_CLASS, 3, SIZE, SIZE)
    if not held.stamp:
        return _fill(np.empty(shape, np.uint8), held)
    kept = cache.folder() / "decoded" / f"miniimagenet-{part}-{held.stamp[:16]}.npy"
    if not kept.is_file():
        _keep(kept, shape, held)
    images: np.ndarray = np.load(kept, mmap_mode="c")  # writable in memory: torch wants it so
    return images


def check(folder: Path, part: str, members: Mapping[str, Sequence[Any]]) -> None:
    """Raise MetabenchError unless the classes of a part are as many, as large and, where they have
    WordNet names, the same as those of Ravi and Larochelle's split."""
    sizes = {len(each) for each in members.values()}
    if len(members) != CLASSES[part] or sizes != {PER_CLASS}:
        of = " to ".join(str(n) for n in sorted({min(sizes), max(sizes)})) if sizes else "0"
        raise MetabenchError(
            f"{folder}: the {part} part has {len(members)} classes of {of} images; miniImageNet "
            f"has {CLASSES[part]} of {PER_CLASS}"
        )
    for name, each in members.items():
        if len(set(each)) != PER_CLASS:
            raise MetabenchError(
                f"{folder}: class {name} of the {part} part has {len(set(each))} different images; "
                f"miniImageNet has {PER_CLASS}"
            )
    if not any(_is_wordnet(name) for name in members):
        return
    if strangers := sorted(set(members) - set(RAVI[part])):
        raise MetabenchError(
            f"{folder}: the {part} part has {len(strangers)} classes that are not in that part of "
            f"Ravi and Larochelle's split, the first {strangers[0]}: not this miniImageNet"
        )


def _is_wordnet(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()


def _csv(folder: Path, part: str) -> Part:
    name = {"valid": "val"}.get(part, part)
    members: dict[str, list[Path]] = {}
    stamp = hashlib.sha256()
    for row in _rows_of(folder / f"{name}.csv"):
        path = _find(folder, name, row["label"], row["filename"])
        stamp.update(_said(path))
        members.setdefault(row["label"], []).append(path)
    return Part(dict(sorted(members.items())), _open, stamp.hexdigest())


def _rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with columns filename and label. Raises MetabenchError."""
    try:
        # Some editors put a byte order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            known = rows.fieldnames or ()
            held = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MetabenchError(f"{path} cannot be read ({error})") from error
    if not {"filename", "label"} <= set(known):
        raise MetabenchError(f"{path} has no columns filename and label")
    for row in held:
        if not (row["filename"] and row["label"]):
            raise MetabenchError(f"{path} has a row without filename or label: {row}")
    return held


def _find(folder: Path, part: str, label: str, name: str) -> Path:
    places = [folder / "images", folder / "images" / label, folder / part / label, folder / part]
    for place in places:
        if (place / name).is_file():
            return place / name
    near = ", ".join(str(place.relative_to(folder)) for place in places)
    raise MetabenchError(f"{folder} lacks {name}, which {part}.csv lists; looked in {near}")


def _open(path: Path) -> np.ndarray:
    return _square(pictures.read(path, "RGB"))


def _square(rgb: Image.Image) -> np.ndarray:
    if rgb.size != (SIZE, SIZE):
        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def _cache(folder: Path, part: str) -> Part:
    pattern = f"mini-imagenet-cache-{'val*' if part == 'valid' else part}.pkl"
    path = sorted(folder.glob(pattern))[0]
    held = pickles.load(path)
    pictures = _array(path, held, "image_data")
    with _as_it_should_be(path, "class_dict"):
        classes = {_text(name): list(map(int, rows)) for name, rows in held["class_dict"].items()}
    return Part(dict(sorted(_within(path, classes, len(pictures)).items())), pictures.__getitem__)


def _category_split(folder: Path, part: str) -> Part:
    name = {"train": "train_phase_train", "valid": "val"}.get(part, part)
    path = folder / f"miniImageNet_category_split_{name}.pickle"
    held = pickles.load(path)
    pictures = _array(path, held, "data")
    with _as_it_should_be(path, "catname2label"):
        names = {int(label): _text(name) for name, label in held.get("catname2label", {}).items()}
    with _as_it_should_be(path, "labels"):
        classes = _by_label(held["labels"], names)
    return Part(_within(path, classes, len(pictures)), pictures.__getitem__)


@contextlib.contextmanager
def _as_it_should_be(path: Path, key: str) -> Iterator[None]:
    """Turn what goes wrong with an entry that has another form into MetabenchError."""
    try:
        yield
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise MetabenchError(
            f"{path} has no {key!r} of this layout's form ({type(error).__name__}: {error})"
        ) from error


def _within(path: Path, classes: dict[str, list[int]], n: int) -> dict[str, list[int]]:
    """The classes, once all of their rows are found to be among n images."""
    for name, rows in classes.items():
        if beyond := [row for row in rows if not 0 <= row < n]:
            raise MetabenchError(f"{path} names image {beyond[0]} for class {name}; it has {n}")
    return classes


def _array(path: Path, held: dict[str, Any], key: str) -> np.ndarray:
    found = held.get(key)
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8:
        raise MetabenchError(f"{path} has no array {key!r} of bytes; it has {', '.join(held)}")
    if found.shape[1:] != (SIZE, SIZE, 3):
        raise MetabenchError(f"{path} holds images {list(found.shape)}, not [n, 84, 84, 3]")
    return found


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _by_label(labels: Sequence[int], names: Mapping[int, str]) -> dict[str, list[int]]:
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(int(label), []).append(row)
    return {names.get(label, str(label)): members[label] for label in sorted(members)}


def _datasets(folder: Path, part: str) -> Part:
    from datasets import load_from_disk

    name = "validation" if part == "valid" else part
    return _rows(load_from_disk(str(folder))[name], sorted((folder / name).glob("*.arrow")))


def _parquet(folder: Path, part: str) -> Part:
    from datasets import load_dataset

    name = "validation" if part == "valid" else part
    files = sorted(catalogue.matching(folder, f"**/{name}-*.parquet"))
    held = load_dataset(
        "parquet",
        data_files=[str(path) for path in files],
        split="train",  # what the builder calls all of them
        cache_dir=str(cache.folder() / "datasets"),
        trust_remote_code=False,
    )
    return _rows(held, files)


def _rows(held: Any, files: list[Path]) -> Part:
    """A split of the package ``datasets`` with columns image and label."""
    if lacks := {"image", "label"} - set(held.column_names):
        raise MetabenchError(f"{files[0].parent}: no column {sorted(lacks)[0]}")
    names = dict(enumerate(getattr(held.features["label"], "names", None) or ()))
    stamp = hashlib.sha256()
    for path in files:
        stamp.update(_said(path))
    members = _by_label(held["label"], names)

    def read(row: int) -> np.ndarray:
        with pictures.readable(f"{files[0].parent}: image {row}"):
            return _square(pictures.converted(held[row]["image"], "RGB"))

    return Part(members, read, stamp.hexdigest())


def _said(path: Path) -> bytes:
    """What tells whether a file is still the same."""
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode()


def _keep(path: Path, shape: tuple[int, ...], held: Part) -> None:
    """Decode into a file that appears under its name when it is whole. Raises MetabenchError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            part = Path(scratch) / "images.npy"
            whole = np.lib.format.open_memmap(part, "w+", np.dtype(np.uint8), shape)
            _fill(whole, held)
            whole.flush()
            os.replace(part, path)
    except OSError as error:
        raise MetabenchError(
            f"cannot keep the decoded images in {path.parent}: {error.strerror or error}; set "
            "METABENCH_CACHE to a folder that can be written"
        ) from error


def _fill(out: np.ndarray, held: Part) -> np.ndarray:
    """The images of every class into ``out`` [classes, images, 3, 84, 84]."""
    for into, rows in zip(out, held.members.values(), strict=True):
        for at, row in enumerate(rows):
            into[at] = held.read(row).transpose(2, 0, 1)
    return out


READERS: dict[str, Callable[[Path, str], Part]] = {
    "csv": _csv,
    "cache": _cache,
    "category_split": _category_split,
    "datasets": _datasets,
    "parquet": _parquet,
}
