"""What this machine has to compute with, found without torch."""

from __future__ import annotations

import os
import shutil
import subprocess

from metabench.core.errors import SettingError

THREADS = "METABENCH_THREADS"
"""Intra-op threads of a run on the CPU where it has no episodes to spread: 1 unless this says
otherwise, because sums split over threads differ in their last bits."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def asked_threads() -> int:
    """What METABENCH_THREADS says, 1 where it says nothing; raises SettingError."""
    given = os.environ.get(THREADS) or "1"
    if not (given.isascii() and given.isdecimal() and int(given) >= 1):
        raise SettingError(f"{THREADS} cannot be {given!r}: give a whole number of at least 1")
    return int(given)


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    found = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    gpus = [line for line in found.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(gpus))]


def default_jobs() -> int:
    """Cells at a time where nobody says: one a GPU, or where there is none one a usable core.

    Cells side by side use cores better than the episodes of one cell do.
    """
    return len(gpus()) or cores()
