"""MNIST, Fashion-MNIST and CIFAR-10 in every layout: real files, and small ones like them."""

import dataclasses
import gzip
import importlib
import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from metabench.contract.seeds import Seeds
from metabench.core.errors import DataMissing, MetabenchError, SettingError, UnknownName
from metabench.core.registry import tasks
from metabench.datasets import catalogue, verify

images = importlib.import_module("metabench.tasks.data.images")
GEN = np.random.default_rng(0)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder of our own, and nothing else to look in."""
    for name in ("METABENCH_DATA", "METABENCH_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def small(monkeypatch, name, layout):
    """Expect 20 and 10 images of this layout, and make them: uint8 [n, c, h, w], labels [n]."""
    *_, shape = images.SIZES[name, layout]
    monkeypatch.setitem(images.SIZES, (name, layout), (20, 10, shape))
    return {
        split: (
            GEN.integers(0, 256, (n, *shape), dtype=np.uint8),
            GEN.integers(0, 10, n, dtype=np.uint8),
        )
        for split, n in (("train", 20), ("test", 10))
    }


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, made, pack=lambda raw: raw, end=""):
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        x, y = made[split]
        (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(idx(x[:, 0])))
        (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(idx(y)))


def write_batches(folder, made):
    folder.mkdir(parents=True)
    x, y = made["train"]
    parts = {f"data_batch_{i + 1}": (x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4]) for i in range(5)}
    for name, (a, b) in {**parts, "test_batch": made["test"]}.items():
        held = {b"data": a.reshape(len(a), -1), b"labels": b.tolist()}
        (folder / name).write_bytes(pickle.dumps(held, protocol=2))


def same(found, made):
    for split, (x, y) in made.items():
        a, b = found[split]
        assert a.dtype == torch.float32 and b.dtype == torch.int64
        assert torch.equal((a * 255).round().to(torch.uint8), torch.from_numpy(x))
        assert b.tolist() == y.tolist()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_as_torchvision_keeps_them(name, root, monkeypatch):
    made = small(monkeypatch, name, "torchvision")
    folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    write_idx(root / folder / "raw", made)
    same(images.load(name), made)


def test_torchvision_reads_the_same(root, monkeypatch):
    vision = pytest.importorskip("torchvision.datasets")
    made = small(monkeypatch, "mnist", "torchvision")
    write_idx(root / "MNIST" / "raw", made)
    for split, train in (("train", True), ("test", False)):
        theirs = vision.MNIST(root, train=train)
        x, y = images.load("mnist", "torchvision")[split]
        assert torch.equal((x[:, 0] * 255).round().to(torch.uint8), theirs.data)
        assert torch.equal(y, theirs.targets)


def test_idx_files_as_debian_packs_them(root, monkeypatch):
    made = small(monkeypatch, "fashion_mnist", "debian")
    write_idx(root / "fashion-mnist", made, gzip.compress, ".gz")
    same(images.load("fashion_mnist"), made)


def test_batches_of_cifar10(root, monkeypatch):
    made = small(monkeypatch, "cifar10", "torchvision")
    write_batches(root / "cifar-10-batches-py", made)
    same(images.load("cifar10"), made)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_arrays(name, root, monkeypatch):
    made = small(monkeypatch, name, "metabench")
    layout = next(x for x in catalogue.dataset(name).layouts if x.name == "metabench")
    (root / layout.folder).mkdir()
    arrays = {}
    for split, (x, y) in made.items():
        arrays[f"{split}_images"] = x[:, 0] if name == "mnist" else x.transpose(0, 2, 3, 1)
        arrays[f"{split}_labels"] = y
    np.savez(root / layout.folder / layout.files[0].path, **arrays)
    same(images.load(name), made)


def test_a_batch_that_would_run_something_is_refused(root, monkeypatch):
    write_batches(root / "cifar-10-batches-py", small(monkeypatch, "cifar10", "torchvision"))
    evil = root / "cifar-10-batches-py" / "data_batch_3"
    evil.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(MetabenchError, match=r"asks for os\.system"):
        images.load("cifar10")
    evil.unlink()
    with pytest.raises(
        MetabenchError, match="data_batch_3 is missing; repair: metabench data fetch"
    ):
        images.load("cifar10")


def test_other_numbers_than_the_real_ones_are_refused(root, monkeypatch):
    made = small(monkeypatch, "mnist", "torchvision")
    monkeypatch.setitem(images.SIZES, ("mnist", "torchvision"), (60000, 10000, (1, 28, 28)))
    write_idx(root / "MNIST" / "raw", made)
    with pytest.raises(
        MetabenchError, match=r"holds train images uint8 \[20, 1, .*uint8 \[60000, 1"
    ):
        images.load("mnist")


@pytest.mark.parametrize("raw", [b"", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x0d\x01\0\0\0\x01a"])
def test_what_is_no_idx_file_is_refused(raw, root, monkeypatch):
    write_idx(root / "MNIST" / "raw", small(monkeypatch, "mnist", "torchvision"))
    (root / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(raw)
    with pytest.raises(MetabenchError, match="is no IDX file of unsigned bytes"):
        images.load("mnist")


def write_arrays(root, made):
    """MNIST as the layout "metabench" has it; its path."""
    path = root / "mnist" / "mnist.npz"
    path.parent.mkdir()
    x, y = ({split: part[i] for split, part in made.items()} for i in (0, 1))
    np.savez(
        path,
        train_images=x["train"][:, 0],
        train_labels=y["train"],
        test_images=x["test"][:, 0],
        test_labels=y["test"],
    )
    return path


def damaged(path, how):
    """A file of a data folder after something went wrong with it."""
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a web page":
        path.write_text("<html>not found</html>")
    elif how == "another":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    elif how == "objects":
        with path.open("wb") as file:
            np.savez(file, train_images=np.array([{}]), train_labels=np.zeros(20))
    elif how == "scrambled":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 64]))


@pytest.mark.parametrize("how", ["cut", "empty", "a web page", "another", "objects", "scrambled"])
def test_damaged_arrays_are_told(how, root, monkeypatch):
    made = small(monkeypatch, "mnist", "metabench")
    damaged(write_arrays(root, made), how)
    with pytest.raises(MetabenchError, match=r"\.npz cannot be read .*data verify mnist"):
        images.load("mnist")


def test_a_second_file_of_arrays_does_no_harm(root, monkeypatch):
    made = small(monkeypatch, "mnist", "metabench")
    write_arrays(root, made)
    np.savez(root / "mnist" / "another.npz", a=np.zeros(3))
    same(images.load("mnist"), made)


def test_images_of_another_type_are_refused(root, monkeypatch):
    """Numbers in 0..1 would be divided by 255 once more."""
    made = small(monkeypatch, "mnist", "metabench")
    write_arrays(root, {split: (x / 255, y) for split, (x, y) in made.items()})
    with pytest.raises(MetabenchError, match=r"holds train images float64 .*mnist has uint8"):
        images.load("mnist")


def test_damaged_packed_files_are_told(root, monkeypatch):
    write_idx(
        root / "fashion-mnist",
        small(monkeypatch, "fashion_mnist", "debian"),
        lambda raw: gzip.compress(raw)[:-20],
        ".gz",
    )
    with pytest.raises(MetabenchError, match=r"ubyte\.gz cannot be read .*verify fashion_mnist"):
        images.load("fashion_mnist")


def test_a_batch_of_other_keys_is_told(root, monkeypatch):
    write_batches(root / "cifar-10-batches-py", small(monkeypatch, "cifar10", "torchvision"))
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(
        MetabenchError, match=r"batch_3 cannot be read \('data'\); .*verify cifar10"
    ):
        images.load("cifar10")


def test_missing_data_and_unknown_names(root):
    for name in ("mnist", "cifar10"):
        with pytest.raises(DataMissing, match=f"metabench data fetch {name}"):
            images.load(name)
    with pytest.raises(UnknownName, match="near: mnist"):
        images.load("mnits")


REAL = {  # data set -> first training labels, and the mean of all training pixels
    ("mnist", "metabench"): ([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], 0.1307),
    ("mnist", "torchvision"): ([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], 0.1307),
    ("fashion_mnist", "torchvision"): ([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], 0.2860),
    ("fashion_mnist", "debian"): ([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], 0.2860),
    ("cifar10", "torchvision"): ([6, 9, 9, 4, 1, 1, 2, 7, 8, 3], 0.4734),
    ("cifar10", "metabench"): (None, 0.4734),
}


@pytest.mark.parametrize(("name", "layout"), REAL)
def test_the_real_data(name, layout):
    found = images.load(name, layout)
    labels, mean = REAL[name, layout]
    n_train, n_test, shape = images.SIZES[name, layout]
    for split, n in (("train", n_train), ("test", n_test)):
        x, y = found[split]
        assert x.shape == (n, *shape) and y.shape == (n,)
        assert float(x.min()) == 0.0 and float(x.max()) == 1.0
        assert set(y.unique().tolist()) == set(range(10))
    x, y = found["train"]
    assert float(x.mean(dtype=torch.float64)) == pytest.approx(mean, abs=2e-3)
    if labels is not None:
        assert y[:10].tolist() == labels
    assert images.load(name, layout)["train"][0] is x  # one copy, shared
    assert not [v.path for v in verify.verify(name) if v.wrong]


@pytest.mark.parametrize("name", ["augmentation", "loss_learning", "weight_decay"])
def test_parts_and_squares_that_are_too_large_are_refused(name):
    """What a user sets against what the images are: said with the value and the nearest right."""
    kind = tasks.get(name)
    small = {"n_train": 10, "n_valid": 10, "n_test": 10, "shrink": 29}
    task = kind(**small, **({"batch": 5} if name == "augmentation" else {}))
    some = {k: (torch.rand(40, 1, 28, 28), torch.arange(40) % 10) for k in ("train", "test")}
    problem = getattr(sys.modules[kind.__module__], f"{kind.__name__}Problem")
    with pytest.raises(SettingError, match=r"shrink is 29; .* 28 x 28 pixels: take at most 28"):
        problem(task, Seeds.of(0), torch.device("cpu"), some)
    task = dataclasses.replace(task, shrink=1, n_train=50)
    with pytest.raises(SettingError, match=rf"{name}: n_train . n_valid (is|=) 60.* 40 "):
        problem(task, Seeds.of(0), torch.device("cpu"), some)
