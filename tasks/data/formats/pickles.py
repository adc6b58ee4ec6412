"""Pickles of arrays, read without letting them call anything, numpy's own functions included."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from metabench.core.errors import MetabenchError
from metabench.core.text import type_of

_TYPE = re.compile(r"[?]|b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}")
"""Numbers, bytes and text: an array of objects would be an array of addresses."""


def load(path: Path) -> dict[str, Any]:
    """A pickled dict, keys as text; strings of Python 2 too. Its numpy scalars become Python's.

    Raises MetabenchError where the file is no pickle, holds something else than a dict, or asks
    for anything but containers and numpy's arrays of numbers and text.
    """
    try:
        with path.open("rb") as file:
            held = _rebuilt(ArraysOnly(file, encoding="latin1").load(), {})
    except MetabenchError as error:
        raise MetabenchError(f"{path}: {error}") from None
    except Exception as error:  # damaged bytes are instructions too: whatever they call may fail
        raise MetabenchError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(held, dict):
        raise MetabenchError(f"{path} holds {type_of(held)}, not a dict of arrays")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in held.items()}


class ArraysOnly(pickle.Unpickler):
    """Reads containers and numpy's arrays and refuses whatever else a pickle could call."""

    def find_class(self, module: str, name: str) -> type:
        """A stand-in for what is asked for, under numpy's old and its new addresses: a pickle that
        held numpy's own could give its memory any bytes as addresses."""
        known = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise MetabenchError(f"it asks for {module}.{name}, which is no array")
        return known


class _StandIn:
    """A state, without a method for it, would be free to replace attributes of the class."""

    def __setstate__(self, state: Any) -> None:
        raise MetabenchError(f"it gives a state to {type(self).__name__.strip('_').lower()}")


class _NDArray(_StandIn):
    """numpy.ndarray, which may only be named."""

    def __new__(cls, *_: Any) -> NoReturn:
        raise MetabenchError("it calls numpy.ndarray, whose arrays may be of any memory")


class _DType(_StandIn):
    """numpy.dtype of numbers, bytes or text."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _TYPE.fullmatch(code):
            raise MetabenchError(f"it asks for an array of {code!r}, not of numbers or text")
        self.type = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, part, names, fields, size, *_ = state
        if (part, names, fields) != (None, None, None) or size not in (-1, self.type.itemsize):
            raise MetabenchError(f"it changes an array of {self.type.str!r} to one of fields")
        self.type = self.type.newbyteorder(order)


class _Array(_StandIn):
    """numpy's _reconstruct: an empty array that a state fills."""

    array: np.ndarray

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _NDArray:
            raise MetabenchError("it rebuilds something else than numpy.ndarray as an array")

    def __setstate__(self, state: Any) -> None:
        _, shape, of, fortran, data = state
        self.array = _array(data, of, shape, "F" if fortran else "C")


class _Buffer(_StandIn):
    """numpy's _frombuffer, of protocol 5."""

    def __init__(self, data: Any, of: Any, shape: Any, order: str, axes: Any = None) -> None:
        self.array = _array(data, of, shape, "F" if order == "F" else "C")
        if axes is not None:
            self.array = self.array.transpose(axes)


class _Scalar(_StandIn):
    """numpy's scalar."""

    def __new__(cls, of: Any, data: Any) -> Any:
        return _array(data, of, (), "C").item()


class _Encoded(_StandIn):
    """Bytes as protocols 0 to 2 write them."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        if encoding != "latin1":
            raise MetabenchError(f"it has bytes in the encoding {encoding!r}, not in latin1")
        return text.encode("latin1")


class _DefaultDict(_StandIn):
    """A dict: the factory is not kept."""

    def __new__(cls, factory: Any = None) -> Any:
        return {}


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _Encoded,
    ("collections", "OrderedDict"): dict,
    ("collections", "defaultdict"): _DefaultDict,
    ("builtins", "list"): list,
    ("__builtin__", "list"): list,
}


def _array(data: Any, of: Any, shape: Any, order: Any) -> np.ndarray:
    """An array over its own copy of ``data``: bytes, or the text that Python 2's strings become."""
    if not isinstance(of, _DType):
        raise MetabenchError(f"it has an array of {type(of).__name__}, not of numbers or text")
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes | bytearray):
        raise MetabenchError(f"it has an array over {type_of(data)}, not over bytes")
    needs = math.prod(shape) * of.type.itemsize
    if min(shape, default=0) < 0 or len(data) != needs:
        raise MetabenchError(
            f"it has an array of shape {shape} and type {of.type.str} over {len(data):,} bytes"
        )
    return np.ndarray(shape, of.type, bytearray(data), order=order)


def _rebuilt(held: Any, seen: dict[int, Any]) -> Any:
    """What was read with arrays in place of their stand-ins; ``seen``: by address, as a container
    may hold itself."""
    if id(held) in seen:
        return seen[id(held)]
    if isinstance(held, _Array | _Buffer):
        return held.array
    if isinstance(held, tuple):
        seen[id(held)] = out = tuple(_rebuilt(v, seen) for v in held)
        return out
    if isinstance(held, list):
        seen[id(held)] = held
        held[:] = [_rebuilt(v, seen) for v in held]
    elif isinstance(held, dict):
        seen[id(held)] = held
        for key, value in held.items():
            held[key] = _rebuilt(value, seen)
    return held
