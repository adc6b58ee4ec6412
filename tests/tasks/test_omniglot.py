"""Omniglot: characters, splits, sources and the official one-shot runs, on the real data."""

import importlib
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from metabench.contract.seeds import Seeds
from metabench.core.errors import DataMissing, MetabenchError
from metabench.core.registry import tasks
from metabench.datasets import locate

omniglot = importlib.import_module("metabench.tasks.omniglot")
class_images = importlib.import_module("metabench.tasks.families.images.class_images")
lists = omniglot.lists
PARTS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def folder():
    """The folder of the arrays that were made, once, from the official drawings."""
    return locate.locate("omniglot", "metabench").path


@pytest.fixture(scope="module")
def arrays(folder):
    path = folder / "omniglot105.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def unpacked(bits):
    """0/1 [..., 105, 105], 1 = ink."""
    return np.unpackbits(bits, axis=-1, count=105 * 105).reshape(*bits.shape[:-1], 105, 105)


@pytest.fixture(scope="module")
def pictures(arrays, tmp_path_factory):
    """All drawings as torchvision unpacks them: a root with omniglot-py in it."""
    root = tmp_path_factory.mktemp("torchvision")
    names = zip(arrays["alphabet"], arrays["character"], arrays["is_background"], strict=True)
    for i, (alphabet, number, background) in enumerate(names):
        part = "images_background" if background else "images_evaluation"
        where = root / "omniglot-py" / part / str(alphabet) / f"character{number:02d}"
        where.mkdir(parents=True)
        for j, ink in enumerate(unpacked(arrays["images_packed"][i])):
            picture = Image.fromarray(ink == 0)  # one bit a pixel, black on white
            picture.save(where / f"{i + 1:04d}_{j + 1:02d}.png", compress_level=1)
    return root


def build(**settings):
    return tasks.get("omniglot")(**settings).build(Seeds.of(0), torch.device("cpu"))


def test_the_lists_are_those_of_the_data(arrays):
    names = [(name, i + 1) for name, n in lists.ALPHABETS.items() for i in range(n)]
    assert names == [*zip(arrays["alphabet"], arrays["character"].tolist(), strict=True)]
    assert arrays["is_background"].tolist() == [i < lists.BACKGROUND for i in range(1623)]
    for number, part in enumerate(PARTS):
        chosen = omniglot._members("vinyals", part)
        assert chosen.tolist() == np.flatnonzero(arrays["vinyals_split"] == number).tolist()


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ("vinyals", [1028, 172, 423]),
        ("background", [792, 172, 659]),
        ("shuffled", [1100, 100, 423]),
    ],
)
def test_splits_share_no_character_and_leave_none_out(folder, split, sizes):
    members = [omniglot._members(split, part).tolist() for part in PARTS]
    assert [len(m) for m in members] == sizes
    assert sorted(itertools.chain(*members)) == list(range(1623))
    problem = build(split=split)
    assert [len(problem.splits[part]) for part in PARTS] == [4 * n for n in sizes]
    assert [problem.splits[part].images.shape[1:] for part in PARTS] == [(20, 1, 28, 28)] * 3
    plain = build(split=split, rotations=False)
    assert [len(plain.splits[part]) for part in PARTS] == sizes


def test_the_shuffled_split_tests_within_alphabets_that_were_trained_on():
    # Which characters fall where is fixed: results of today and of next year are of one split.
    assert omniglot._members("shuffled", "valid")[:5].tolist() == [15, 20, 22, 38, 41]
    alphabet_of = [name for name, n in lists.ALPHABETS.items() for _ in range(n)]
    of = {p: {alphabet_of[i] for i in omniglot._members("shuffled", p).tolist()} for p in PARTS}
    assert of["test"] <= of["train"]


def test_the_background_split_tests_on_alphabets_that_nobody_trained_on():
    names = [name for name, n in lists.ALPHABETS.items() for _ in range(n)]
    of = {p: {names[i] for i in omniglot._members("background", p).tolist()} for p in PARTS}
    assert [len(of[part]) for part in PARTS] == [25, 5, 20]
    assert not (of["train"] & of["valid"] or of["train"] & of["test"] or of["valid"] & of["test"])


def test_rotated_classes_are_the_same_drawings_turned(folder):
    classes = build().splits["test"]
    n = len(classes.images)
    picked = classes.pick(torch.arange(4) * n + 5, torch.arange(3).expand(4, 3))
    for turn in range(4):
        assert torch.equal(picked[turn], torch.rot90(classes.images[5, :3], turn, (-2, -1)))


@pytest.mark.parametrize(
    "source", [pytest.param("torchvision", marks=pytest.mark.slow), "learn2learn", "auto"]
)
def test_every_source_gives_the_same_episodes(folder, pictures, tmp_path, monkeypatch, source):
    settings = {"split": "background", "ways": 20}
    ours = build(**settings, source="metabench")
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    if source == "learn2learn":  # it keeps its data in the user's home
        monkeypatch.setenv("METABENCH_DATA", "")
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "data").symlink_to(pictures)
    else:
        monkeypatch.setenv("METABENCH_DATA", str(pictures))
    with pytest.raises(DataMissing):
        locate.locate("omniglot", "metabench")
    theirs = build(**settings, source=source)
    for part in PARTS:
        assert torch.equal(ours.splits[part].images, theirs.splits[part].images)
    for split, index in (("train", 7), ("valid", 0), ("test", 3), ("one_shot_runs", 11)):
        one, other = ours.episode(split, index), theirs.episode(split, index)
        for a, b in ((one.batch(0), other.batch(0)), (one.outer, other.outer)):
            assert torch.equal(a["x"], b["x"])
            assert torch.equal(a["y"], b["y"])


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1", (105, 105), 1).save(path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 cut"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: np.savez(path, other=np.zeros(3)), "cannot be read .*images"),
        (lambda path: np.savez(path, images=np.zeros(3)), r"holds float64 \[3\]"),
    ],
)
def test_a_damaged_or_foreign_array_file_is_told(tmp_path, monkeypatch, damage, says):
    (tmp_path / "omniglot").mkdir()
    damage(tmp_path / "omniglot" / "omniglot28.npz")
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    task = tasks.get("omniglot")()
    with pytest.raises(MetabenchError, match=f"{says}.*look with: metabench data verify omniglot"):
        task.build(Seeds.of(0), torch.device("cpu"))


def test_a_folder_with_drawings_missing_is_refused(tmp_path):
    picture(tmp_path / "images_background" / "Arcadian" / "character01" / "0001_01.png")
    picture(tmp_path / "images_background" / "Arcadian" / "character01" / "._0001_01.png")
    with pytest.raises(MetabenchError, match=r"holds 1 of Omniglot's 32,460 drawings.*data fetch"):
        omniglot.read_pictures(tmp_path)


@pytest.mark.parametrize("name", ["0027_01", "0001_21", "1624_01"])
def test_a_drawing_in_the_wrong_place_is_refused(tmp_path, name):
    picture(tmp_path / "images_background" / "Arcadian" / "character01" / f"{name}.png")
    with pytest.raises(MetabenchError, match=rf"{name}\.png is no drawing of Omniglot's Arcadian"):
        omniglot.read_pictures(tmp_path)


def test_the_runs_are_the_official_ones(folder, arrays):
    path = folder / "one_shot_runs.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    packed = arrays["images_packed"]
    with np.load(path) as file:
        train, test, answers = file["train_packed"], file["test_packed"], file["answers"]
    for run, (characters, trained, tested) in enumerate(omniglot.one_shot_runs()):
        official = {
            (train[run, answer].tobytes(), test[run, item].tobytes())
            for item, answer in enumerate(answers[run])
        }
        ours = {(packed[c, trained].tobytes(), packed[c, tested].tobytes()) for c in characters}
        assert ours == official
    assert run == 19


def test_the_runs_are_an_evaluation_of_their_own(folder):
    problem = build(split="background", ways=20)
    assert problem.evaluations == ("test", "one_shot_runs")
    assert problem.count("one_shot_runs") == 20
    assert problem.count("test") is None
    scores = []
    for i in range(20):
        episode = problem.episode("one_shot_runs", i)
        for batch in (episode.batch(0), episode.outer):
            assert batch["x"].shape == (20, 1, 28, 28)
            assert batch["y"].tolist() == list(range(20))
        scores.append(class_images.nearest_neighbour(episode))
    # Koch, Zemel, Salakhutdinov 2015 have 21.7 % for pixels at full size; guessing has 5 %.
    assert np.mean(scores) == pytest.approx(0.217, abs=0.05)
    with pytest.raises(IndexError):
        problem.episode("one_shot_runs", 20)


@pytest.mark.parametrize(
    "settings", [{"ways": 20}, {"split": "background"}, {"split": "background", "shots": 5}]
)
def test_the_runs_are_left_out_where_they_would_be_no_test(folder, settings):
    assert build(**settings).evaluations == ("test",)


def test_vinyals_trains_on_characters_of_the_runs():
    """What the setting's docstring says, and the reason for the last test."""
    trained = set(omniglot._members("vinyals", "train").tolist())
    runs = {c for characters, _, _ in omniglot.one_shot_runs() for c in characters.tolist()}
    assert (len(trained & runs), len(runs)) == (78, 200)


def test_the_pixel_nearest_neighbour_floor(folder):
    """45.6 % was measured apart from this code, its protocol unknown in detail."""
    problem = build()
    scores = [class_images.nearest_neighbour(problem.episode("test", i)) for i in range(600)]
    half = 1.96 * np.std(scores) / len(scores) ** 0.5
    assert half < 0.012
    assert np.mean(scores) == pytest.approx(0.456, abs=half + 0.02)


def test_missing_data_names_the_mending_command(tmp_path, monkeypatch):
    for name in ("METABENCH_DATA", "METABENCH_CACHE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(DataMissing, match="metabench data fetch omniglot"):
        build()
