"""Pickles of arrays, and what is refused."""

from __future__ import annotations

import collections
import importlib
import pickle

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabench.core.errors import MetabenchError

pickles = importlib.import_module("metabench.tasks.data.formats.pickles")


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
        (b"cnumpy.nosuch\nndarray\n.", "asks for numpy.nosuch.ndarray"),
        (b"cnumpy.testing\nscalar\n.", "asks for numpy.testing.scalar"),
        (b"c_codecs\nencode\n(V1\nVzlib\ntR.", "in the encoding 'zlib', not in latin1"),
        (b"cnumpy\nndarray\n((I3\nttR.", r"it calls numpy\.ndarray"),
        # A class may be made in three ways more.
        (b"(I3\nicnumpy\nndarray\n.", "cannot be read|asks for"),
        (b"(cnumpy\nndarray\nI3\no.", r"it calls numpy\.ndarray"),
        (b"cnumpy\nndarray\n(I3\nt\x81.", r"it calls numpy\.ndarray"),
        (b"(dp0\n(lp1\nI1\ns.", "cannot be read .TypeError: unhashable"),
    ],
)
def test_anything_else_is_refused(tmp_path, body, says):
    (tmp_path / "x.pkl").write_bytes(body)
    with pytest.raises(MetabenchError, match=says):
        pickles.load(tmp_path / "x.pkl")


EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
ADDRESSES = b"S'" + b"A" * 8 + b"'"


def dtype(code: str, state: bytes = b"") -> bytes:
    """The instructions that make a dtype, and give it a state."""
    return b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR" % code.encode() + (state + b"b" if state else b"")


HIDDEN = b"(I3\nS'|'\n%s%s%sI8\nI1\nI27\nt"
FIELDS = HIDDEN % (b"N", b"(S'a'\nt", b"(dS'a'\n(" + dtype("O8") + b"I0\nts")
PART = HIDDEN % (b"(" + dtype("O8") + b"(I1\ntt", b"N", b"N")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        # Each of these would be an array whose bytes numpy takes for the addresses of objects.
        (b"cnumpy\nndarray\n((I1\nt" + dtype("u8") + ADDRESSES + b"\ntR.", "calls numpy.ndarray"),
        (EMPTY + b"(I1\n(I1\nt" + dtype("O8") + b"I0\n" + ADDRESSES + b"\ntb.", "array of 'O8'"),
        (b"cnumpy\nndarray\n((I1\nt" + dtype("O8") + ADDRESSES + b"\ntR.", "array of 'O8'"),
        (EMPTY + b"(I1\n(I1\nt" + dtype("V8") + b"I0\n" + ADDRESSES + b"\ntb.", "array of 'V8'"),
        (dtype("u8", FIELDS) + b".", "array of 'O8'"),
        (dtype("u8", HIDDEN % (b"N", b"(S'a'\nt", b"N")) + b".", "to one of fields"),
        (dtype("u8", PART) + b".", "array of 'O8'"),
        (dtype("u8", HIDDEN % (b"(I1\nI1\nt", b"N", b"N")) + b".", "to one of fields"),
        (dtype("u8", b"(I3\nS'|'\nNNNI4\nI1\nI0\nt") + b".", "to one of fields"),
        (dtype("M8[s]") + b".", "not of numbers or text"),
        (b"cnumpy\ndtype\n(cnumpy\nndarray\ntR.", "not of numbers or text"),
        # Longer or shorter than its bytes; memory of something else.
        (EMPTY + b"(I1\n(I2\nt" + dtype("u8") + b"I0\n" + ADDRESSES + b"\ntb.", "over 8 bytes"),
        (EMPTY + b"(I1\n(I-1\nI-1\nt" + dtype("u8") + b"I0\n" + ADDRESSES + b"\ntb.", "8 bytes"),
        (EMPTY + b"(I1\n(I1\nt" + dtype("u8") + b"I0\n(lp1\ntb.", "over a list"),
        (EMPTY + b"(I1\n(I1\ntS'u8'\nI0\n" + ADDRESSES + b"\ntb.", "an array of str"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
            "something else",
        ),
        # A state for a class, or for what has none.
        (b"cnumpy\ndtype\n(N(dS'type'\nI1\nstb.", "cannot be read .TypeError"),
        (b"cbuiltins\nlist\n(N(dS'append'\nI1\nstb.", "cannot be read"),
        (EMPTY + b".", "cannot be read .AttributeError"),
    ],
)
def test_an_array_over_chosen_bytes_as_objects_is_refused(tmp_path, body, says):
    (tmp_path / "x.pkl").write_bytes(body)
    with pytest.raises(MetabenchError, match=says):
        pickles.load(tmp_path / "x.pkl")


ARRAYS = st.sampled_from(
    ["?", "u1", "<i8", ">i4", "<f4", ">f8", "<f2", "<c8", "S3", "<U2"]
).flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@given(array=ARRAYS, protocol=st.integers(0, 5), axes=st.booleans(), data=st.data())
@settings(max_examples=80)
def test_every_array_of_numbers_and_text_comes_back(tmp_path_factory, array, protocol, axes, data):
    if axes:
        array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    path = tmp_path_factory.mktemp("pickles") / "x.pkl"
    path.write_bytes(pickle.dumps({"data": array, "again": [array], "in": (array,)}, protocol))
    found = pickles.load(path)
    for back in (found["data"], found["again"][0], found["in"][0]):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes() and back.flags.writeable


def test_a_batch_as_python_2_wrote_it_comes_back(tmp_path):
    """CIFAR's files: protocol 2 by Python 2, whose strings are bytes."""
    data = bytes(range(256)) * 24
    body = b"".join(
        [
            b"\x80\x02}(U\x0bbatch_labelU\x15testing batch 1 of 1.U\x06labels]K\x03aU\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + len(data).to_bytes(4, "little") + data + b"tbU\tfilenames]U\x05a.pngau.",
        ]
    )
    (tmp_path / "x").write_bytes(body)
    found = pickles.load(tmp_path / "x")
    assert found["data"].tobytes() == data and found["data"].shape == (2, 3072)
    assert (found["labels"], found["filenames"]) == ([3], ["a.png"])


def test_a_list_that_holds_itself_is_read(tmp_path):
    held: list[object] = [np.arange(3)]
    held.append((held,))
    (tmp_path / "x").write_bytes(pickle.dumps({"a": held}))
    found = pickles.load(tmp_path / "x")["a"]
    assert found[0].tolist() == [0, 1, 2] and found[1][0] is found
