"""Downloading one file: mirrors, going on with a partial one, a checksum, an atomic end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

from metabench.core.errors import MetabenchError

Progress = Callable[[str, int, int | None], None]
"""Called with the address, bytes so far, and bytes in all where the server says."""

_BLOCK = 1 << 16
CONNECT_SECONDS = 4
"""For each of a server's addresses: a network that answers nothing is found out soon."""
READ_SECONDS = 30
"""A server may think before it answers."""


class _Connection(HTTPConnection):
    def connect(self) -> None:
        self.timeout = CONNECT_SECONDS
        super().connect()
        self.sock.settimeout(READ_SECONDS)


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Plain(HTTPHandler):
    def http_open(self, req: Request) -> Any:
        return self.do_open(_Connection, req)


class _Secure(HTTPSHandler):
    def https_open(self, req: Request) -> Any:
        return self.do_open(_SecureConnection, req)


_open = build_opener(_Plain, _Secure).open


def reach(url: str) -> None:
    """Raise MetabenchError where no server answers at an address, whatever it would answer."""
    try:
        _open(Request(url, method="HEAD")).close()
    except HTTPError:
        return
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MetabenchError(f"cannot reach {url}: {reason}") from None


def download(
    urls: Sequence[str], path: Path, checksum: str, progress: Progress | None = None
) -> None:
    """Bring one file from the first mirror that gives it whole.

    ``checksum`` reads "md5:..." or "sha256:...". What has come stays in ``NAME.part``; the
    next call goes on from it. Raises MetabenchError naming every address and what it answered.
    """
    part = path.with_name(path.name + ".part")
    kind, _, expected = checksum.partition(":")
    answers = []
    for url in urls:
        goes_on = part.is_file()
        try:
            _bring(url, part, progress)
            if goes_on and digest(part, kind) != expected:
                part.unlink()  # what was there came from something else
                _bring(url, part, progress)
        except (OSError, HTTPException) as error:  # URLError is an OSError
            answers.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        got = digest(part, kind)
        if got == expected:
            os.replace(part, path)
            return
        part.unlink()
        answers.append(f"{url}: {kind} {got} instead of {expected}")
    raise MetabenchError(f"could not fetch {path.name}: {'; '.join(answers)}")


def digest(path: Path, kind: str) -> str:
    """The checksum of a file in hexadecimal; ``kind``: "md5", "sha256"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _bring(url: str, part: Path, progress: Progress | None) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    if progress is not None:
        progress(url, have, None)
    try:
        answer = _open(request)
    except HTTPError as error:
        if error.code == 416:  # nothing after what is there: it is whole
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        have = have if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        while block := answer.read(_BLOCK):
            file.write(block)
            have += len(block)
            if progress is not None:
                progress(url, have, total)
    if total is not None and have != total:
        raise OSError(f"ended after {have} of {total} bytes")
