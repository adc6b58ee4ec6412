"""The embedded glyph task: deterministic, split by script, neither trivial nor impossible."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metabench.contract.seeds import Seeds
from metabench.core.registry import tasks

glyphs = importlib.import_module("metabench.tasks.glyphs")
class_images = importlib.import_module("metabench.tasks.families.images.class_images")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty one: what is tested is drawn by the code that stands here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METABENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        glyphs._images.cache_clear()
        yield
    glyphs._images.cache_clear()


def build(**settings):
    return tasks.get("glyphs")(**settings).build(Seeds.of(0), CPU)


def test_there_are_enough_classes_for_twenty_ways():
    sizes = {part: len(classes) for part, classes in build().splits.items()}
    assert sizes["train"] > 300
    assert sizes["valid"] > 30
    assert sizes["test"] > 80


def test_no_script_is_in_two_parts():
    every = [script for scripts in glyphs.SCRIPTS.values() for script in scripts]
    assert len(every) == len(set(every))


def test_the_same_seed_draws_the_same_images_and_another_seed_others():
    first = glyphs._drawn("valid", 0)
    assert torch.equal(first, glyphs._drawn("valid", 0))
    assert not torch.equal(first, glyphs._drawn("valid", 1))


def test_the_next_process_reads_what_the_first_has_drawn(monkeypatch):
    first = glyphs._images(0)
    glyphs._images.cache_clear()
    assert torch.equal(first["valid"], glyphs._drawn("valid", 0))
    monkeypatch.setattr(glyphs, "_drawn", None)
    again = glyphs._images(0)
    assert all(torch.equal(first[split], again[split]) for split in glyphs.SCRIPTS)


@pytest.mark.parametrize("changed", ["code", "font", "package", "seed"])
def test_what_was_drawn_otherwise_is_not_taken(changed, tmp_path, monkeypatch):
    before = glyphs._made_from(0)
    assert glyphs._made_from(0) == before
    if changed == "code":
        (tmp_path / "glyphs.py").write_bytes(Path(glyphs.__file__).read_bytes() + b"\n")
        monkeypatch.setattr(glyphs, "__file__", str(tmp_path / "glyphs.py"))
    elif changed == "font":
        first, *rest = glyphs._fonts()
        data = bytearray(first.read_bytes())
        data[-1] ^= 1
        (tmp_path / first.name).write_bytes(data)
        monkeypatch.setattr(glyphs, "_fonts", lambda: [tmp_path / first.name, *rest])
    elif changed == "package":
        monkeypatch.setattr(glyphs, "version", lambda name: f"another {name}")
    assert glyphs._made_from(int(changed == "seed")) != before


def test_no_placeholder_and_no_empty_drawing():
    for part in glyphs.SCRIPTS:
        ink = glyphs._images(0)[part].flatten(2).float().mean(2)
        assert float(ink.min()) > 0.2, "a drawing without ink"
    assert not any("LastResort" in path.name for path in glyphs._fonts())


def test_drawings_of_one_character_differ():
    images = glyphs._images(0)["test"].flatten(2)
    for character in images:
        assert len({bytes(drawing.numpy().tobytes()) for drawing in character}) == 20


def test_no_two_classes_look_alike():
    looks = [glyphs._thicker(f[:1]).flatten() for fs in glyphs._characters().values() for f in fs]
    looks = torch.nn.functional.normalize(torch.stack(looks))
    alike = looks @ looks.T - torch.eye(len(looks))
    assert float(alike.max()) <= glyphs._ALIKE + 1e-5


@pytest.mark.parametrize(("shots", "low", "high"), [(1, 0.28, 0.45), (5, 0.42, 0.60)])
def test_pixels_alone_are_above_chance_and_far_from_perfect(shots, low, high):
    problem = build(shots=shots)
    scores = [class_images.nearest_neighbour(problem.episode("test", i)) for i in range(200)]
    assert low < sum(scores) / len(scores) < high
