"""Environments of their own for tests that install something, without any index."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path


def environment(home: Path) -> Path:
    """The interpreter of a new environment in ``home`` that sees all that is installed here; what
    is installed into it is seen by nobody else."""
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    here = [p for p in [*site.getsitepackages(), *sys.path] if p.endswith("site-packages")]
    packages = subprocess.run(
        [str(python), "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    lines = [f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(here)]
    Path(packages, "here.pth").write_text("".join(lines), encoding="utf-8")
    return python
