"""CIFAR-FS, FC100, Caltech-101-FS: splits and sources; the networks of photographs in MAML."""

from __future__ import annotations

import importlib
import pickle

import numpy as np
import pytest
import torch

from metabench.contract.method import Context
from metabench.contract.seeds import Seeds
from metabench.core import settings
from metabench.core.cell import Budget
from metabench.core.errors import DataMissing, MetabenchError, SettingError
from metabench.core.registry import methods, solvers, tasks
from metabench.datasets import locate

cifar = importlib.import_module("metabench.tasks.data.cifar100")
caltech = importlib.import_module("metabench.tasks.caltech101_fs")
CPU = torch.device("cpu")
PARTS = ("train", "valid", "test")


def there(name, layout=None):
    return locate.locate(name, layout).path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty place for data; nothing read before is remembered."""
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    for read in (cifar._read, caltech._read):
        read.cache_clear()
    yield tmp_path
    for read in (cifar._read, caltech._read):
        read.cache_clear()


def write_cifar100(root, per_class=(5, 1), names=cifar.NAMES):
    """What torchvision unpacks, smaller: images in a mixed order, the class in the first byte and
    the number within the class in the second."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": list(names)}, protocol=2))
    first = 0
    for part, n in zip(("train", "test"), per_class, strict=True):
        labels = np.repeat(np.arange(100), n)
        rows = np.zeros((len(labels), 3072), np.uint8)
        rows[:, 0], rows[:, 1] = labels, first + np.tile(np.arange(n), 100)
        order = np.random.default_rng(0).permutation(len(labels))
        held = {b"data": rows[order], b"fine_labels": labels[order].tolist()}
        (folder / part).write_bytes(pickle.dumps(held, protocol=2))
        first += n
    return folder


def test_the_splits_of_cifar100_cover_it_once():
    assert len(cifar.NAMES) == len(set(cifar.NAMES)) == 100
    assert [len(cifar.CIFAR_FS[p]) for p in ("valid", "test")] == [16, 20]
    assert [len(cifar.FC100[p]) for p in ("valid", "test")] == [20, 20]
    for split in (cifar.CIFAR_FS, cifar.FC100):
        held_out = split["valid"] + split["test"]
        assert len(held_out) == len(set(held_out)) and set(held_out) <= set(cifar.NAMES)
    part_of = {name: part for part, names in cifar.FC100.items() for name in names}
    for members in cifar.SUPERCLASSES.values():
        assert len({part_of.get(name, "train") for name in members.split()}) == 1


def test_the_splits_are_those_of_the_real_data():
    folder = there("cifar100", "metabench")
    with np.load(folder / "cifar100_160pc.npz") as file:
        names, held = file["class_names"].tolist(), {k: file[f"{k}_split"] for k in SPLITS}
        superclass = file["superclass_names"][file["superclass"]].tolist()
    assert names == cifar.NAMES
    of = {name: one for one, members in cifar.SUPERCLASSES.items() for name in members.split()}
    assert [of[name] for name in names] == superclass
    for key, split in SPLITS.items():
        for number, part in ((1, "valid"), (2, "test")):
            assert sorted(split[part]) == [n for n, p in zip(names, held[key], strict=True)
                                           if p == number]  # fmt: skip


SPLITS = {"cifar_fs": cifar.CIFAR_FS, "fc100": cifar.FC100}


@pytest.mark.parametrize(("name", "sizes"), [("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])])
def test_cifar100_as_torchvision_unpacks_it(name, sizes, root, monkeypatch):
    write_cifar100(root)
    monkeypatch.setitem(cifar.IMAGES, "torchvision", 6)
    task = tasks.get(name)(queries=5, source="torchvision")
    split = SPLITS[name]
    trained = set(range(100)) - {cifar.NAMES.index(n) for p in split.values() for n in p}
    labels = {
        "train": sorted(trained),
        **{p: sorted(map(cifar.NAMES.index, names)) for p, names in split.items()},
    }
    for part, n in zip(PARTS, sizes, strict=True):
        images = task.classes(part).images
        assert images.shape == (n, 6, 3, 32, 32)
        assert images[:, :, 0, 0, 0].tolist() == [[label] * 6 for label in labels[part]]
        assert images[:, :, 0, 0, 1].sort(dim=1).values.tolist() == [[*range(6)]] * n
    assert task.build(Seeds.of(0), CPU).episode("test", 0).outer["x"].shape == (25, 3, 32, 32)


def test_other_numbers_and_other_classes_are_refused(root, monkeypatch):
    folder = write_cifar100(root)
    task = tasks.get("cifar_fs")()
    with pytest.raises(MetabenchError, match=r"holds uint8 \[100, 6, 3, 32, 32\], CIFAR-100 is"):
        task.classes("train")
    held = pickle.loads((folder / "test").read_bytes())
    held[b"fine_labels"][0] = (held[b"fine_labels"][0] + 1) % 100
    (folder / "test").write_bytes(pickle.dumps(held))
    with pytest.raises(MetabenchError, match="its classes have 5 to 7 images"):
        task.classes("train")
    names = ["dog", *cifar.NAMES[1:]]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    with pytest.raises(MetabenchError, match=r"its classes are dog, aquarium_fish, .* verify cif"):
        task.classes("train")


def test_the_smaller_cifar100_is_taken_only_where_it_is_named(root):
    with pytest.raises(DataMissing, match="metabench data fetch cifar100"):
        tasks.get("fc100")().classes("train")
    (root / "cifar100").mkdir()
    (root / "cifar100" / "cifar100_160pc.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataMissing):
        tasks.get("fc100")().classes("train")
    with pytest.raises(MetabenchError, match=r"160pc\.npz cannot be read .* data verify cifar100"):
        tasks.get("fc100")(source="metabench").classes("train")


def test_images_a_class_follow_the_source():
    own = {"shots": 100, "queries": 61}
    settings.build(tasks.get("cifar_fs"), own, "cifar_fs")
    with pytest.raises(SettingError, match="need 161 images a class; there are 160"):
        settings.build(tasks.get("cifar_fs"), {**own, "source": "metabench"}, "cifar_fs")
    with pytest.raises(SettingError, match="need 31 images a class; there are 30"):
        settings.build(tasks.get("caltech101_fs"), {"shots": 1, "queries": 30}, "caltech101_fs")


def test_real_cifar100_joins_both_parts():
    folder = there("cifar100", "metabench")
    images = tasks.get("cifar_fs")(source="metabench").classes("test").images
    assert images.shape == (20, 160, 3, 32, 32) and images.dtype == torch.uint8
    label = cifar.NAMES.index("worm")
    with np.load(folder / "cifar100_160pc.npz") as file:
        assert np.array_equal(images[-1, 0].permute(1, 2, 0), file["train_images"][label, 0])
        assert np.array_equal(images[-1, -1].permute(1, 2, 0), file["test_images"][label, -1])


def test_real_caltech101():
    folder = there("caltech101_fs")
    task = tasks.get("caltech101_fs")()
    parts = [task.classes(part).images for part in PARTS]
    assert [p.shape for p in parts] == [(n, 30, 3, 64, 64) for n in (64, 16, 20)]
    with np.load(folder / "caltech101_fs64.npz") as file:
        first = int(np.flatnonzero(file["split"] == 2)[0])
        assert np.array_equal(parts[2][0, 3].permute(1, 2, 0), file["images"][first, 3])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((100, 29, 64, 64, 3), np.uint8)}, r"\[100, 29, 64, 64, 3\]"),
        ({"split": np.zeros(100, int)}, r"parts of \[100, 0, 0\] classes"),
        ({"split": None}, "cannot be read .*split"),
    ],
)
def test_a_foreign_caltech101_is_refused(arrays, says, root):
    whole = {
        "images": np.zeros((100, 30, 64, 64, 3), np.uint8),
        "split": np.repeat([0, 1, 2], [64, 16, 20]),
        **arrays,
    }
    (root / "caltech101_fs").mkdir()
    path = root / "caltech101_fs" / "caltech101_fs64.npz"
    np.savez(path, **{k: v for k, v in whole.items() if v is not None})
    with pytest.raises(MetabenchError, match=f"{says}.* metabench data verify caltech101_fs"):
        tasks.get("caltech101_fs")().classes("train")


# --- networks ------------------------------------------------------------------------------------


@pytest.fixture
def random_images(monkeypatch):
    """CIFAR-FS with 4 random images of 8 classes in each part."""

    def drawn(source, split, part):
        gen = torch.Generator().manual_seed(len(part))
        return torch.randint(0, 256, (8, 4, 3, 32, 32), generator=gen, dtype=torch.uint8)

    monkeypatch.setattr(cifar, "images", drawn)


def build(**own):
    base = {"ways": 3, "queries": 3, "meta_batch": 3, "filters": 4, "dtype": "float64"}
    return tasks.get("cifar_fs")(**{**base, **own}).build(Seeds.of(0), CPU)


@pytest.mark.parametrize(
    ("own", "features"),
    [
        ({}, 4 * 2 * 2),
        ({"downsample": "stride"}, 4),
        ({"downsample": "stride", "formulation": "representation"}, 4 * 2 * 2),
        ({"formulation": "representation"}, 4 * 2 * 2),
        ({"network": "resnet12"}, 40),
    ],
)
def test_what_the_head_sees(random_images, own, features):
    problem = build(**own)
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    assert theta["head.weight"].shape == (3, features)
    assert problem.logits(lam, theta, episode.outer).shape == (9, 3)


@pytest.mark.parametrize(
    ("formulation", "name", "own"),
    [
        ("init", "maml", {"inner_steps": 2, "inner_lr": 0.05}),
        ("init", "maml", {"inner_steps": 2, "inner_lr": 0.05, "order": "first"}),
        ("init", "maml", {"inner_steps": 2, "inner_lr": 0.05, "anil": True}),
        ("representation", "bilevel", {"inner_steps": 3}),
    ],
)
def test_resnet12_looped_threaded_and_batched_episodes_agree(random_images, formulation, name, own):
    problem = build(network="resnet12", formulation=formulation, filters=2)
    method = settings.build(methods.get(name), own, name)
    lam = problem.init_outer()
    episodes = [problem.episode("train", i) for i in range(3)]
    runs = []
    for how in ({}, {"workers": 2}, {"engine": "vmap"}):
        ctx = Context(
            problem, solvers.get("sgd")(), Seeds.of(0), problem.task.offers, budget=Budget(5), **how
        )
        runs.append(
            ctx.over_episodes(lambda e, ctx=ctx: method.hypergradient(ctx, lam, None, e), episodes)
        )
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert max(float(v.abs().max()) for v in one.grad.values()) > 1e-3
            for key, value in one.grad.items():
                torch.testing.assert_close(value, two.grad[key], rtol=1e-10, atol=1e-10)
