"""Data sets: where they are on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from metabench.errors import DataMissing


def find(name: str) -> Path:
    """The folder of a data set; raises DataMissing."""
    for root in os.environ.get("METABENCH_DATA", "").split(os.pathsep):
        if root and (Path(root) / name).is_dir():
            return Path(root) / name
    raise DataMissing(name, [os.environ.get("METABENCH_DATA", "")], f"metabench data fetch {name}")
