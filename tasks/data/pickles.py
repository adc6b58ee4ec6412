"""Pickles of arrays, read without letting them call anything else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from metabench.core.errors import MetabenchError

_NUMPY = ("_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar")
_PLAIN = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "list"),
    ("__builtin__", "list"),
}


def load(path: Path) -> dict[str, Any]:
    """A pickled dict, keys as text; strings of Python 2 too.

    Raises MetabenchError where the file is no pickle, holds something else than a dict, or asks
    for anything but containers and numpy's arrays.
    """
    try:
        with path.open("rb") as file:
            held = ArraysOnly(file, encoding="latin1").load()
    except MetabenchError as error:
        raise MetabenchError(f"{path}: {error}") from None
    except Exception as error:  # damaged bytes are instructions too: whatever they call may fail
        raise MetabenchError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(held, dict):
        raise MetabenchError(f"{path} holds a {type(held).__name__}, not a dict of arrays")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in held.items()}


class ArraysOnly(pickle.Unpickler):
    """Reads containers and numpy's arrays and refuses whatever else a pickle could call."""

    def find_class(self, module: str, name: str) -> object:
        """Numpy's own way of rebuilding arrays, under its old and its new address."""
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise MetabenchError(f"it asks for {module}.{name}, which is no array")
