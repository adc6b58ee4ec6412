"""The bytes of what a store keeps: equal records and arrays give equal bytes."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metabench.core.cell import canonical
from metabench.store.record import NewerRecord, Record, from_dict

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]


def render(record: Record) -> bytes:
    """JSON for people and programs, with the sha256 of its canonical content."""
    data = json.loads(canonical(record.as_dict()))
    seal = hashlib.sha256(canonical(data).encode()).hexdigest()
    return (json.dumps({**data, "sha256": seal}, indent=1, sort_keys=True) + "\n").encode()


def parse(data: bytes) -> Record:
    """What :func:`render` was given. Raises NewerRecord for what a later version's was given,
    ValueError, with the reason, for anything else."""
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("not a record")
        seal = content.pop("sha256", None)
        found = hashlib.sha256(canonical(content).encode()).hexdigest()
        record = from_dict(content)
    except NewerRecord:
        if seal == found:
            raise
        raise ValueError("is not what was written: its sha256 differs") from None
    except (ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"cannot be read as a record: {first}") from None
    if seal != found:
        raise ValueError("is not what was written: its sha256 differs")
    return record


def npz(arrays: Arrays) -> bytes:
    """The bytes of an .npz file that numpy.load reads; the same arrays give the same bytes."""
    import numpy as np

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue())
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """What :func:`npz` was given."""
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def hash_arrays(arrays: Arrays) -> str:
    """sha256 over names in sorted order, each with its type, shape and bytes (C order)."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        # ascontiguousarray makes a scalar an array of one: the shape is the original's.
        header = canonical([name, array.dtype.str, list(arrays[name].shape)])
        digest.update(header.encode() + b"\n" + array.tobytes())
    return digest.hexdigest()
