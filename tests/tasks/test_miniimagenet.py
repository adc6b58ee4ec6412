"""miniImageNet's readers, on generated files of every layout, and what they refuse."""

from __future__ import annotations

import csv
import importlib
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from metabench.contract.seeds import Seeds
from metabench.core.errors import DataMissing, MetabenchError
from metabench.core.registry import tasks
from metabench.datasets import fetch, locate, verify

mini = importlib.import_module("metabench.tasks.data.miniimagenet")
PARTS = {"train": "train", "valid": "val", "test": "test"}
FEW = 2


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty place for data, where miniImageNet has two images a class."""
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini, "PER_CLASS", FEW)
    (tmp_path / "data" / "miniimagenet").mkdir(parents=True)
    mini._images.cache_clear()
    yield tmp_path / "data"
    mini._images.cache_clear()


def colour(part, label, number):
    """One colour an image, so that it can be told after resizing and JPEG."""
    return (40 * list(PARTS).index(part) + 20, 2 * label + 30, 100 * number + 50)


def picture(part, label, number, size=(mini.SIZE, mini.SIZE)):
    return Image.new("RGB", size, colour(part, label, number))


def arrays(part):
    """uint8 [classes * 2, 84, 84, 3], class by class."""
    every = [(label, number) for label in range(mini.CLASSES[part]) for number in range(FEW)]
    return np.stack([np.asarray(picture(part, *one)) for one in every])


def check(source, *, exact=True):
    """Every image is where it should be, whatever it was read from."""
    task = tasks.get("miniimagenet")(source=source, queries=1)
    for part, n in mini.CLASSES.items():
        images = task.classes(part).images
        assert images.shape == (n, FEW, 3, 84, 84) and images.dtype == torch.uint8
        told = [[colour(part, label, i) for i in range(FEW)] for label in range(n)]
        seen = images[:, :, :, 40, 40].int()
        assert int((seen - torch.tensor(told)).abs().max()) <= (0 if exact else 3)
    problem = task.build(Seeds.of(0), torch.device("cpu"))
    assert problem.episode("test", 0).outer["x"].shape == (5, 3, 84, 84)
    assert problem.net.feature_size == 800


PLACES = {
    "flat": lambda part, name, file: f"images/{file}",
    "by class": lambda part, name, file: f"images/{name}/{file}",
    "by part and class": lambda part, name, file: f"{PARTS[part]}/{name}/{file}",
}


def write_csv(root, place="flat"):
    folder = root / "miniimagenet"
    for part, short in PARTS.items():
        with (folder / f"{short}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for label, name in reversed([*enumerate(mini.RAVI[part])]):
                for number in range(FEW):
                    called = f"{name}{number + 1:08d}.jpg"
                    rows.writerow([called, name])
                    path = folder / PLACES[place](part, name, called)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture(part, label, number, (20, 12)).save(path)
    return folder


def write_cache(root, valid="val", names=None):
    for part, short in PARTS.items():
        rows = iter(range(mini.CLASSES[part] * FEW))
        classes = {n: [next(rows) for _ in range(FEW)] for n in (names or mini.RAVI)[part]}
        held = {"image_data": arrays(part), "class_dict": classes}
        path = root / "miniimagenet" / f"mini-imagenet-cache-{valid if short == 'val' else short}"
        path.with_suffix(".pkl").write_bytes(pickle.dumps(held, protocol=2))


def write_category_split(root, **more):
    for part, short in PARTS.items():
        first = {"train": 0, "valid": 64, "test": 80}[part]
        n = mini.CLASSES[part]
        labels = [first + label for label in range(n) for _ in range(FEW)]
        order = np.random.default_rng(0).permutation(n * FEW)
        order = order[np.argsort(order % FEW, kind="stable")]  # mixed classes, images in order
        held = {"data": arrays(part)[order], "labels": [labels[i] for i in order], **more}
        name = "train_phase_train" if short == "train" else short
        path = root / "miniimagenet" / f"miniImageNet_category_split_{name}.pickle"
        path.write_bytes(pickle.dumps(held, protocol=2))


def as_datasets(names=True):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    from datasets import Image as Picture

    out = {}
    for part in PARTS:
        every = [(label, number) for label in range(mini.CLASSES[part]) for number in range(FEW)]
        label = ClassLabel(names=mini.RAVI[part]) if names else Value("int64")
        out["validation" if part == "valid" else part] = Dataset.from_dict(
            {"image": [picture(part, *one) for one in every], "label": [one for one, _ in every]},
            features=Features({"image": Picture(), "label": label}),
        )
    return DatasetDict(out)


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_with_csv_splits(root, place):
    write_csv(root, place)
    check("csv", exact=False)


def test_what_was_decoded_is_kept_until_a_file_changes(root, tmp_path, monkeypatch):
    folder = write_csv(root)
    before = mini.images("csv", "valid")
    kept = tmp_path / "cache" / "decoded"
    (only,) = kept.iterdir()
    mini._images.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(mini, "_open", None)  # nothing is opened again
        assert torch.equal(mini.images("csv", "valid"), before)
    mini._images.cache_clear()
    changed = folder / "images" / f"{mini.RAVI['valid'][0]}00000001.jpg"
    Image.new("RGB", (9, 9), (255, 255, 255)).save(changed)
    assert int(mini.images("csv", "valid")[0, 0].min()) > 250
    assert len(list(kept.iterdir())) == 2 and only.is_file()


@pytest.mark.parametrize("valid", ["val", "validation"])
def test_pickles_by_class_name(root, valid):
    write_cache(root, valid)
    check("cache")


def test_pickles_by_label(root):
    write_category_split(root)
    check("category_split")


def test_pickles_of_labels_with_names_are_held_to_the_split(root):
    labels = {name: i for i, name in enumerate([n for part in mini.RAVI.values() for n in part])}
    write_category_split(root, catname2label=labels)
    check("category_split")
    mini._images.cache_clear()
    swapped = {**labels, mini.RAVI["test"][0]: 0, mini.RAVI["train"][0]: 80}
    write_category_split(root, catname2label=swapped)
    with pytest.raises(MetabenchError, match=r"1 classes .* Ravi .*, the first n01930112"):
        mini.images("category_split", "train")


@pytest.mark.parametrize("names", [True, False])
def test_what_datasets_saves(root, names):
    as_datasets(names).save_to_disk(str(root / "miniimagenet-datasets"))
    check("datasets")


def test_parquet_files_as_the_hub_has_them(root):
    for name, held in as_datasets().items():
        (root / "miniimagenet" / "data").mkdir(exist_ok=True)
        held.to_parquet(str(root / "miniimagenet" / "data" / f"{name}-00000-of-00001-ab.parquet"))
    check("parquet")


def test_every_source_gives_the_same_images(root):
    write_cache(root)
    write_category_split(root)
    as_datasets().save_to_disk(str(root / "miniimagenet-datasets"))
    first = mini.images("cache", "test")
    assert torch.equal(first, mini.images("category_split", "test"))
    assert torch.equal(first, mini.images("datasets", "test"))
    assert torch.equal(first, mini.images(None, "test"))  # the first that is there


def test_fetching_goes_through_datasets(root, tmp_path, monkeypatch):
    import datasets

    with pytest.raises(DataMissing, match="metabench data fetch miniimagenet"):
        locate.find("miniimagenet")
    asked, reached = [], []
    monkeypatch.setattr(fetch, "reach", reached.append)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, **_: asked.append(name) or as_datasets()
    )
    folder = fetch.fetch("miniimagenet")
    assert folder == tmp_path / "cache" / "miniimagenet-datasets" == locate.find("miniimagenet")
    fetch.fetch("miniimagenet")
    assert asked == ["GATE-engine/mini_imagenet"]
    assert [r.endswith("/datasets/GATE-engine/mini_imagenet") for r in reached] == [True]
    assert [p.name for p in folder.parent.iterdir()] == ["miniimagenet-datasets"]
    check("auto")

    def unreachable(name, **_):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(MetabenchError, match=r"cannot load GATE-.*Couldn't reach.*; by hand: copy"):
        fetch.fetch("miniimagenet", to=tmp_path / "elsewhere")


def test_verifying_counts_and_says_that_it_only_counts(root):
    write_cache(root)
    verdicts = verify.verify("miniimagenet")
    assert [v.wrong for v in verdicts] == ["", "", ""]
    assert all(v.note.startswith("counted only (1)") for v in verdicts)
    write_csv(root)
    wrong = [v.wrong for v in verify.verify("miniimagenet")]
    assert wrong == ["", "", "", "200 files instead of 60,000"]


# --- what is not miniImageNet ---------------------------------------------------------------------


def test_other_numbers_are_refused(root, monkeypatch):
    write_cache(root)
    monkeypatch.setattr(mini, "PER_CLASS", 600)
    with pytest.raises(
        MetabenchError,
        match="the train part has 64 classes of 2 images; miniImageNet has 64 of 600",
    ):
        mini.images("cache", "train")
    monkeypatch.setattr(mini, "PER_CLASS", FEW)
    write_cache(root, names={"train": mini.RAVI["train"][1:], "valid": [], "test": ["a", "b"]})
    for part, says in {
        "train": "has 63 classes of 2 images",
        "valid": "has 0 classes of 0 images",
        "test": "has 2 classes of 2 images; miniImageNet has 20 of 2",
    }.items():
        with pytest.raises(MetabenchError, match=f"the {part} part {says}"):
            mini.images("cache", part)


def test_another_split_of_the_same_classes_is_refused(root):
    every = sorted(name for part in mini.RAVI.values() for name in part)
    write_cache(root, names={"train": every[:64], "valid": every[64:80], "test": every[80:]})
    with pytest.raises(MetabenchError, match=r"\d+ classes that are not in that part of Ravi and"):
        mini.images("cache", "train")


def test_ravis_split_covers_100_classes_once():
    every = [name for part in mini.RAVI.values() for name in part]
    assert {part: len(names) for part, names in mini.RAVI.items()} == mini.CLASSES
    assert len(set(every)) == 100 and all(map(mini._is_wordnet, every))
    assert all(names == sorted(names) for names in mini.RAVI.values())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: next(f.glob("images/*")).unlink(), "lacks n.*jpg, which .*csv lists"),
        (lambda f: (f / "train.csv").write_text("a,b\n1,2\n"), "no columns filename and label"),
        (lambda f: _edit(f, lambda t: t.encode("utf-16")), r"test\.csv cannot be read"),
        (lambda f: _edit(f, lambda t: f"{t}alone\n".encode()), "a row without filename or label"),
        (lambda f: _edit(f, _twice), "class n07613480 of the test part has 1 different images"),
        (lambda f: _cut(f), "cannot be read as an image"),
    ],
)
def test_a_damaged_folder_is_told(root, damage, says):
    damage(write_csv(root))
    with pytest.raises(MetabenchError, match=says):
        for part in PARTS:
            mini.images("csv", part)


def _edit(folder, change):
    path = folder / "test.csv"
    path.write_bytes(change(path.read_text()))


def _twice(text):
    """The second image of the first class replaced by its first."""
    lines = text.splitlines()
    return "\n".join([*lines[:2], lines[1], *lines[3:]]).encode()


def test_a_byte_order_mark_does_no_harm(root):
    _edit(write_csv(root), lambda text: b"\xef\xbb\xbf" + text.encode())
    mini.images("csv", "test")


def _cut(folder):
    for path in folder.glob("images/*"):
        path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"images": 0}, "has no array 'image_data' of bytes; it has images"),
        ({"image_data": np.zeros((3, 32, 32, 3), np.uint8)}, r"images \[3, 32, 32, 3\], not"),
        ({}, "no 'class_dict' of this layout's form .KeyError"),
        ({"class_dict": [1]}, "no 'class_dict' of this layout's form .AttributeError"),
        ({"class_dict": {"a": 5}}, "no 'class_dict' of this layout's form .TypeError"),
        ({"class_dict": {"a": [0, 1, 3]}}, "names image 3 for class a; it has 3"),
        ({"class_dict": {"a": [0, 1, -1]}}, "names image -1 for class a; it has 3"),
    ],
)
def test_pickles_of_something_else_are_told(root, held, says):
    write_cache(root)
    path = root / "miniimagenet" / "mini-imagenet-cache-test.pkl"
    if "images" not in held:
        held = {"image_data": np.zeros((3, 84, 84, 3), np.uint8), **held}
    path.write_bytes(pickle.dumps(held))
    with pytest.raises(MetabenchError, match=says):
        mini.images("cache", "test")


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"labels": None}, "no 'labels' of this layout's form .TypeError"),
        ({"labels": ["a", "b", "c"]}, "no 'labels' of this layout's form .ValueError"),
        ({"labels": [0, 0, 0, 0]}, "names image 3 for class 0; it has 3"),
        ({"labels": [0, 0, 0], "catname2label": ["a"]}, "no 'catname2label' of this layout's form"),
    ],
)
def test_pickles_by_label_of_something_else_are_told(root, held, says):
    write_category_split(root)
    path = root / "miniimagenet" / "miniImageNet_category_split_test.pickle"
    path.write_bytes(pickle.dumps({"data": np.zeros((3, 84, 84, 3), np.uint8), **held}))
    with pytest.raises(MetabenchError, match=says):
        mini.images("category_split", "test")


def test_one_image_thrice_is_no_class_of_three(root):
    write_cache(root)
    path = root / "miniimagenet" / "mini-imagenet-cache-test.pkl"
    held = pickle.loads(path.read_bytes())
    name, rows = next(iter(held["class_dict"].items()))
    held["class_dict"][name] = [rows[0]] * len(rows)
    path.write_bytes(pickle.dumps(held))
    with pytest.raises(MetabenchError, match=f"class {name} of the test part has 1 different"):
        mini.images("cache", "test")


def test_a_cache_that_cannot_be_written_is_told(root, tmp_path, monkeypatch):
    write_csv(root)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(MetabenchError, match=r"cannot keep the decoded images .*METABENCH_CACHE"):
        mini.images("csv", "test")


def test_columns_of_something_else_are_told(root):
    held = as_datasets().rename_column("image", "picture")
    held.save_to_disk(str(root / "miniimagenet-datasets"))
    assert (
        "train"
        in json.loads((root / "miniimagenet-datasets/dataset_dict.json").read_text())["splits"]
    )
    with pytest.raises(MetabenchError, match="no column image"):
        mini.images("datasets", "test")
