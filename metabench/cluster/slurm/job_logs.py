"""What the log of a job says of its end, where Slurm says little and no worker came to say more."""

from __future__ import annotations

import os
import re
from pathlib import Path

from metabench.core.text import shortened

OUT_OF_MEMORY = re.compile(
    r"oom.?kill|out.of.memory|OutOfMemory|MemoryError|cannot allocate memory|bad_alloc", re.I
)
_TELLING = re.compile(r"error|killed|fatal|no such file|not found|denied|no space", re.I)
TAIL_BYTES = 8192


def last_words(folder: Path, job: str) -> str:
    """The last line of what a job of the submission in ``folder`` wrote as an error that tells why
    it ended, "" where it wrote none."""
    lines = [
        line for path in sorted(folder.glob(f"jobs/*/{job}_*_log.err")) for line in _tail(path)
    ]
    for pattern in (OUT_OF_MEMORY, _TELLING):
        for line in reversed(lines):
            if pattern.search(line):
                return shortened(line)
    return ""


def starved(folder: Path, job: str) -> bool:
    """Whether a job's own log says that memory ran out."""
    return bool(OUT_OF_MEMORY.search(last_words(folder, job)))


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
