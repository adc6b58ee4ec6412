"""Pickles of arrays, and what is refused."""

from __future__ import annotations

import collections
import importlib
import pickle

import numpy as np
import pytest

from metabench.core.errors import MetabenchError

pickles = importlib.import_module("metabench.tasks.data.pickles")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_in_dicts_come_back(tmp_path, protocol):
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    classes = collections.OrderedDict(b=[0, 2], a=[1])
    held = {b"data": rows, "n": classes, "one": np.int64(3)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(held, protocol=protocol))
    found = pickles.load(tmp_path / "x.pkl")
    assert np.array_equal(found["data"], rows) and found["data"].dtype == np.uint8
    assert found["n"] == classes and found["one"] == 3


def test_text_of_python_2_is_text(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"(dp0\nS'image_data'\np1\nI5\ns.")
    assert pickles.load(tmp_path / "x.pkl") == {"image_data": 5}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", r"x\.pkl: it asks for os\.system, which is no array"),
        (b"cbuiltins\neval\n(S'1'\ntR.", r"asks for builtins\.eval"),
        (b"", "x.pkl cannot be read"),
        (b"not a pickle", "x.pkl cannot be read"),
        (pickle.dumps([1, 2]), "holds a list, not a dict"),
        (b"cnumpy.nosuch\nndarray\n.", "cannot be read .ModuleNotFoundError"),
        (b"cnumpy.testing\nscalar\n.", "cannot be read .AttributeError"),
        (b"cnumpy\nndarray\n(Vabc\ntR.", "cannot be read .TypeError"),
        (b"c_codecs\nencode\n(V1\nVnosuchcodec\ntR.", "cannot be read .LookupError"),
        (b"cnumpy\nndarray\n((I1000000000\nI1000000000\nttR.", "cannot be read .*MemoryError"),
        (b"(dp0\n(lp1\nI1\ns.", "cannot be read .TypeError: unhashable"),
    ],
)
def test_anything_else_is_refused(tmp_path, body, says):
    (tmp_path / "x.pkl").write_bytes(body)
    with pytest.raises(MetabenchError, match=says):
        pickles.load(tmp_path / "x.pkl")
