"""What a machine without a network lacks for benchmarks/gpu.py: carried there, and looked for."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_parts.processes import ROOT, Part, environment

CARRIED = ("pydantic>=2.9", "requests>=2.31", "tqdm>=4.66", "cloudpickle", "gym_notices")
"""What runs and the peer need and a machine with PyTorch's usual company may not have; what these
need comes along. ``datasets`` and ``submitit``, which metabench depends on too, are imported by
nothing here."""
BUILT = (
    ("gym==0.26.2",),
    (
        "--use-pep517",
        "--config-settings=--build-option=build_ext",
        "learn2learn==0.2.0",
    ),  # by Cython, not as it was
)
"""The peer, of which the package index has the source alone: built by the Python that is named."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
DATA = "omniglot.tar.gz"

INSTALL = """Where they are to be used, in the repository's root:
  python3 -m pip install -q --no-index --no-deps --upgrade --target SITE {folder}/*.whl
  mkdir -p DATA && tar -xzf {folder}/{data} -C DATA
  export METABENCH_DATA=DATA PYTHONPATH=SITE:.
  python3 -P -m benchmarks.gpu --dry-run
  python3 -P -m benchmarks.gpu --out OUT"""
"""With -P metabench is the one of the wheel, whose tasks and methods are inside it."""


def omniglot() -> Path | None:
    """The folder of Omniglot's images, where METABENCH_DATA has one."""
    root = os.environ.get("METABENCH_DATA")
    folder = Path(root) / "omniglot" if root is not None else None
    return folder if folder is not None and folder.is_dir() else None


def missing(part: Part, device: str) -> list[str]:
    """What is not there that the part needs, in words."""
    out = [f"{name} is not installed" for name in part.needs if not importlib.util.find_spec(name)]
    if not out and device.startswith("cuda") and not finds_cuda():
        out.append("torch finds no CUDA device")
    if part.name == "omniglot" and omniglot() is None:
        out.append("METABENCH_DATA names no folder with omniglot/, which --wheels packs")
    return out


@functools.cache
def finds_cuda() -> bool:
    """Whether torch does, asked in a process of its own: this one keeps off the device."""
    probe = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


IMPORTS = """
import importlib, json, sys
out = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        out[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(out))
"""


def failing(names: Sequence[str]) -> dict[str, str]:
    """Those of the modules that cannot be imported, and why; tried in a process of its own, which
    imports what a part would."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORTS, *names], cwd=ROOT, env=environment(), check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        return dict.fromkeys(names, f"the process that tried it died: {last}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def dry_run(parts: Sequence[Part], seconds: dict[str, float], device: str) -> None:
    """Print what would be run, and what is in the way, with every import tried."""
    modules = {part.name: f"benchmarks.gpu_parts.{part.name}" for part in parts}
    broken = failing([*modules.values(), *{name for part in parts for name in part.wants}])
    for part in parts:
        lacks = missing(part, device)
        if not lacks and modules[part.name] in broken:
            lacks = [broken[modules[part.name]]]
        holes = [f"no row of {n}: {broken[n]}" for n in part.wants if n in broken]
        print(f"{part.name:<10} {seconds.get(part.name, part.seconds):4.0f} s  on {device}"
              + "".join(f"; {why}" for why in (*lacks, *holes)))  # fmt: skip


def collect(folder: Path, version: str, builder: str | None) -> int:
    """Download wheels for that version of Python, build the peer's, and pack Omniglot's images;
    print how to install them."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    where = [x for name in PLATFORMS for x in ("--platform", name)]
    subprocess.run(
        [*pip, "download", "--only-binary=:all:", "--implementation", "cp", "--python-version",
         version, *where, "-d", str(folder), *CARRIED], check=True,
    )  # fmt: skip
    left_over = ROOT / "build"
    if left_over.exists():
        raise SystemExit(f"remove {left_over} first: a wheel would hold modules that lie there")
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    shutil.rmtree(left_over, ignore_errors=True)
    built = True
    if builder is None and version == ".".join(map(str, sys.version_info[:2])):
        builder = sys.executable
    if builder is None:
        print(f"learn2learn is left out: --builder PYTHON{version} builds its wheel", flush=True)
    else:
        for name in BUILT:
            done = subprocess.run(
                [builder, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), *name], check=False
            )
            built = built and done.returncode == 0
    images = omniglot()
    if images is None:
        print("Omniglot is left out: METABENCH_DATA names no folder with omniglot/. Part omniglot "
              "needs it; part episodes takes glyphs instead", flush=True)  # fmt: skip
    else:
        with tarfile.open(folder / DATA, "w:gz", dereference=True) as packed:
            packed.add(images, arcname="omniglot")
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(f"{size:.1f} MB. {INSTALL.format(folder=folder, data=DATA)}")
    return 0 if built else 1
