"""Pictures of every mode that a class folder may hold, and damaged ones."""

import importlib

import numpy as np
import pytest
from PIL import Image

from metabench.core.errors import MetabenchError

pictures = importlib.import_module("metabench.tasks.data.formats.pictures")
omniglot = importlib.import_module("metabench.tasks.omniglot")
mini = importlib.import_module("metabench.tasks.data.miniimagenet")
GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_grey_of_16_bits_is_the_same_grey_as_of_8(tmp_path, kind):
    for bits, values in ((8, GREY), (16, GREY.astype(np.uint16) * 257)):
        Image.fromarray(values).save(tmp_path / f"{bits}.{kind}")
    for mode in ("L", "RGB"):
        small, large = (
            np.asarray(pictures.read(tmp_path / f"{bits}.{kind}", mode)) for bits in (8, 16)
        )
        assert small.min() == 0 and small.max() == 252
        np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("values", [GREY.astype(np.int32) * 99, GREY.astype(np.float32) / 255])
def test_numbers_of_no_known_range_are_refused_by_name(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(MetabenchError, match=r"x\.tif cannot be read as an image \(.*32-bit"):
        pictures.read(tmp_path / "x.tif", "L")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "tail", "header"])
@pytest.mark.parametrize("read", [omniglot.shrink, mini._open])
def test_a_damaged_picture_names_its_file(tmp_path, damage, read):
    path = tmp_path / "0001_01.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (105, 105), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"<html>not found</html>",
            "cut": whole[:2000],
            "tail": whole[:60] + b"\0" * 500,
            "header": whole[:16] + b"\xff" * 8 + whole[24:],  # of sizes beyond all memory
        }[damage]
    )
    with pytest.raises(MetabenchError, match=r"0001_01\.png cannot be read as an image \("):
        read(path)
