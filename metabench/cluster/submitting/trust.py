"""Who else could replace the code that jobs run with my rights."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Collection, Iterator
from pathlib import Path


def intruders(folder: Path, trusted: Collection[str] = ()) -> list[str]:
    """Who besides root, me and the users and groups in ``trusted`` could replace ``folder``, in
    words: who owns it or a folder above it, or may write there without the sticky bit. Nothing is
    said of what lies in a folder that its owner alone may enter.
    """
    out: list[str] = []
    mine = _user(os.getuid())
    for place in (folder, *folder.parents):
        info = place.stat()
        owner, group = _user(info.st_uid), _group(info.st_gid, mine)
        writes = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not info.st_mode & (stat.S_IXGRP | stat.S_IXOTH):
            out.clear()
        if info.st_uid not in (0, os.getuid()) and owner not in trusted:
            out.append(f"{place} belongs to {owner}")
        elif not writes or info.st_mode & stat.S_ISVTX:
            continue
        elif writes & stat.S_IWOTH:
            out.append(f"everybody can write in {place}: chmod o-w {place}")
        elif group not in {mine, *trusted}:
            out.append(f"the group {group} can write in {place}: chmod g-w {place}")
    return out


def _user(number: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)


def _group(number: int, mine: str) -> str:
    """Of a group; that of a user alone has the user's name."""
    with contextlib.suppress(KeyError):
        found = grp.getgrgid(number)
        if found.gr_name != mine or not set(found.gr_mem) - {mine}:
            return found.gr_name
    return str(number)


@contextlib.contextmanager
def closed_to_others() -> Iterator[None]:
    """Inside, what this process makes can be written by its user alone."""
    before = os.umask(0o022)
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)
