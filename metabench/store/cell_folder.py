"""The folder of a cell: files are believed when their sha256 is right, and replaced all at once.

A record names the sha256 of its companions and of itself. One rename puts a new one into the place
of the old one; its companions wait beside it until then, under temporary names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from metabench.store import files
from metabench.store import lease as leases
from metabench.store.encoding import parse
from metabench.store.files import BadFile, Unreadable
from metabench.store.record import NewerRecord, Record

RECORD, CURVE, LAM, CHECKPOINT = "record.json", "curve.json.gz", "lam.npz", "checkpoint.pt"
PICTURES = "pictures.npz"
LEASE = "claim.json"  # stores written by earlier versions have this name: it stays
KNOWN = frozenset({RECORD, CURVE, LAM, PICTURES, CHECKPOINT, LEASE})

_TEMPORARY = re.compile(r"\..+\.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is on its way to another."""
    return _TEMPORARY.fullmatch(name) is not None


def read(folder: Path) -> tuple[Record | None, list[BadFile]]:
    """The record in a cell's folder, where it and its files can be trusted, and what cannot be."""
    path = folder / RECORD
    while True:
        before = files.stamp(path)
        try:
            data = files.read(path)
            record, bad = (None, []) if data is None else _verified(path, data)
            if not bad or (files.read(path) == data and files.stamp(path) == before):
                break
        except Unreadable as error:
            record, bad = None, [error.bad]
            break
        # The record was replaced while its files were read: look again.
    try:
        found = {b.path: b for b in map(_out_of_place, files.entries(folder)) if b is not None}
    except Unreadable as error:
        return record, [*(b for b in bad if not b.closed), error.bad]
    return record, list((found | {b.path: b for b in bad}).values())


def _out_of_place(entry: Path) -> BadFile | None:
    """What is wrong with an entry of a cell's folder, whatever its record says."""
    if entry.name == LEASE:
        return leases.damage(entry)
    if entry.name in KNOWN or is_temporary(entry.name):
        return files.odd(entry)
    return BadFile(entry, "does not belong in the folder of a cell")


def _verified(path: Path, data: bytes) -> tuple[Record | None, list[BadFile]]:
    try:
        record = parse(data)
    except NewerRecord as error:
        return None, [BadFile(path, str(error), closed=True, newer=True)]
    except ValueError as error:
        return None, [BadFile(path, str(error))]
    if record.key != path.parent.name:
        return None, [BadFile(path, f"belongs to another cell, {record.key[:16]}")]
    bad = []
    for name, digest in record.files.items():
        try:
            held = companion(path.parent, name, digest)
        except Unreadable as error:
            bad.append(error.bad)
            if not error.bad.closed:
                bad.append(BadFile(path, f"names {name}, which {error.bad.what}"))
            continue
        if held is None:
            bad.append(BadFile(path, f"names {name}, which is missing"))
        elif hashlib.sha256(held).hexdigest() != digest:
            bad.append(BadFile(path.parent / name, "is not what was written: its sha256 differs"))
            bad.append(BadFile(path, f"names {name}, which is damaged"))
    unique = {b.path: b for b in bad}
    return (None if bad else record), list(unique.values())


def replace_record(folder: Path, digests: Mapping[str, str], drafts: Mapping[str, Path]) -> None:
    """Put a record in the place of another. One rename replaces it together with its files: until
    it has happened the old ones are in their places, and the new ones wait for it beside them."""
    for name, digest in digests.items():
        os.replace(drafts[name], folder / _waiting(name, digest))
    os.replace(drafts[RECORD], folder / RECORD)
    settle(folder, digests)
    for name in {CURVE, LAM, PICTURES} - digests.keys():
        files.remove(folder / name)
    files.sync(folder)


def settle(folder: Path, digests: Mapping[str, str]) -> None:
    """Put the files of the record that is there into their places, where they still wait."""
    for name, digest in digests.items():
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / _waiting(name, digest), folder / name)


def _waiting(name: str, digest: str) -> str:
    return f".{name}.{digest[:16]}.tmp"


def companion(folder: Path, name: str, digest: str) -> bytes | None:
    """The file that a record names; where it is missing or another, what has its name.

    Raises Unreadable.
    """
    # In this order: once it has left the first place it is in the second.
    waiting = files.read(folder / _waiting(name, digest))
    if waiting is not None and hashlib.sha256(waiting).hexdigest() == digest:
        return waiting
    return files.read(folder / name)
