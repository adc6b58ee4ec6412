"""What this machine has and lacks, each lack with the commands that repair it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from metabench.core.environment import optional_packages
from metabench.core.environment.findings import Finding, Verdict
from metabench.core.errors import MetabenchError
from metabench.core.registry import REGISTRIES, load_plugin
from metabench.core.text import size_text
from metabench.store.store import Store

LOWEST_PYTHON = (3, 11)
LOW_DISK = 1e9
"""Bytes free under which the store's disk is worth a word."""

_PROBE = """
import json, os, sys
out = {}
try:
    import torch
    out["torch"] = torch.__version__
    out["threads"] = torch.get_num_threads()
    out["cuda"] = torch.version.cuda
    out["gpus"] = [
        [torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]
        for i in range(torch.cuda.device_count())
    ] if torch.cuda.is_available() else []
except BaseException as error:
    out["torch_error"] = f"{type(error).__name__}: {error}"
try:
    import torchvision
    out["torchvision"] = torchvision.__version__
except BaseException as error:
    out["torchvision_error"] = f"{type(error).__name__}: {error}"
import importlib, importlib.util
for name in sys.argv[1:]:
    module = name.replace("-", "_")
    try:
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    except BaseException as error:
        out[f"{name}_error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(out))
"""


def examine(store: Store | None = None, plugins: Iterable[str | Path] = ()) -> list[Finding]:
    """Look at everything; changes nothing."""
    probe = probe_torch()
    return [
        *_versions(probe),
        *_machine(probe),
        *_store(store or Store()),
        *_data(),
        *_optional(probe),
        *_third_parties(plugins),
    ]


def probe_torch(python: str = sys.executable) -> dict[str, Any]:
    """What importing torch, torchvision and the optional packages gives, tried in a process of
    its own: a broken pair can take the process with it."""
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, *map(optional_packages.module, _wanted())],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {key: "import took more than 300 s" for key in ("torch_error", "torchvision_error")}
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        text = f"the process ended with {done.returncode}: {last}"
        return {"torch_error": text, "torchvision_error": text}
    return found


PAIR = (
    "pip uninstall -y torch torchvision",
    "pip install torch torchvision",
)
"""Both together, unpinned, from the ordinary index: each torchvision fits one torch only."""


def _versions(probe: dict[str, Any]) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] >= LOWEST_PYTHON:
        yield Finding("versions", "python", "ok", f"{version}, {sys.executable}")
    else:
        yield Finding(
            "versions", "python", "too old", f"{version}; 3.11 or later is needed", essential=True
        )
    try:
        yield Finding(
            "versions",
            "metabench",
            "ok",
            f"{metadata.version('metabench')}, {Path(__file__).parents[1]}",
        )
        base = optional_packages.base()
    except metadata.PackageNotFoundError:
        yield Finding(
            "versions",
            "metabench",
            "missing",
            f"not installed, only imported from {Path(__file__).parents[1]}",
            ("pip install -e .",),
            essential=True,
        )
        return
    for name, lowest in base.items():
        yield _package(name, lowest, probe)


def _package(name: str, lowest: tuple[int, ...], probe: dict[str, Any]) -> Finding:
    floor = ".".join(map(str, lowest))
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        repair = (
            PAIR[1:]
            if name in ("torch", "torchvision")
            else (optional_packages.pip_install(f"{name}>={floor}" if lowest else name),)
        )
        return Finding("versions", name, "missing", repair=repair, essential=True)
    if optional_packages.version_tuple(version) < lowest:
        return Finding(
            "versions",
            name,
            "too old",
            f"{version}; {floor} or later is needed",
            (optional_packages.pip_install(f"{name}>={floor}", upgrade=True),),
            essential=True,
        )
    error = probe.get(f"{name}_error")
    if error:
        detail = f"{version} cannot be imported: {error}"
        if name == "torchvision" and "torch_error" not in probe:
            detail += f"; it does not fit torch {probe['torch']}"
        return Finding("versions", name, "broken", detail, PAIR, essential=True)
    return _tested("versions", name, version)


def _tested(section: str, name: str, version: str) -> Finding:
    """A package that works, with a note where no test was ever run with its version."""
    numbers = optional_packages.version_tuple(version)
    oldest = optional_packages.bounds().get(name, ())
    newest = optional_packages.newest_tested().get(name)
    told = ""
    if numbers < oldest:
        told = f"oldest tested is {'.'.join(map(str, oldest))}"
    elif newest is not None and numbers > optional_packages.version_tuple(newest):
        told = f"newest tested is {newest}"
    if not told:
        return Finding(section, name, "ok", version)
    return Finding(section, name, "note", f"{version}; never tested with metabench: the {told}")


def _machine(probe: dict[str, Any]) -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "machine",
        "cores",
        "ok",
        f"{usable} usable of {os.cpu_count()}; torch takes "
        f"{probe.get('threads', '?')} threads by default",
    )
    total, free = memory()
    text = f"{size_text(total)}" + (f", {size_text(free)} free" if free is not None else "")
    yield Finding("machine", "memory", "ok", text)
    gpus = probe.get("gpus", [])
    for at, (name, size) in enumerate(gpus):
        yield Finding("machine", f"cuda:{at}", "ok", f"{name}, {size_text(size)}")
    if not gpus:
        built = (
            f"torch is built for CUDA {probe['cuda']}"
            if probe.get("cuda")
            else ("torch is built without CUDA")
        )
        yield Finding("machine", "GPU", "note", f"none found ({built}): runs use the CPU")


def memory() -> tuple[int, int | None]:
    """Bytes of memory in all, and available now where the system says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return total, None
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    return total, int(known["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in known else None


def _store(store: Store) -> Iterator[Finding]:
    there = store.root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        yield Finding(
            "store",
            "folder",
            "broken",
            f"{store.root}: cannot be written" + ("" if there.is_dir() else f", {there} is a file"),
            ("export METABENCH_STORE=FOLDER  # one that can be written",),
            True,
        )
        if not there.is_dir():
            return
    free = shutil.disk_usage(there).free
    verdict: Verdict = "ok" if free > LOW_DISK else "note"
    yield Finding("store", "disk", verdict, f"{size_text(free)} free for {store.root}")
    records = store.records()
    done = sum(record.status == "done" for record in records)
    yield Finding("store", "records", "ok", f"{len(records)}, {done} of them done")
    again = "metabench run quickstart --budget smoke  # any run moves bad files to quarantine"
    for bad in store.problems():
        repair = bad.repair if bad.closed else again
        yield Finding("store", bad.path.name, "broken", str(bad), repair=(repair,))


def _data() -> Iterator[Finding]:
    from metabench.datasets import locate

    looked = ", ".join(map(str, locate.roots()))
    for status in locate.status():
        name = status.dataset.name
        if status.found is None:
            detail = f"looked in {looked}"
            yield Finding("data", name, "missing", detail, (status.repair,))
        else:
            detail = f"{status.found.path}, {status.found.layout.name}, {size_text(status.bytes)}"
            yield Finding("data", name, "ok", detail)


def _wanted() -> dict[str, str]:
    """Optional packages: name to the extra, or what else, that asks for it."""
    wanted: dict[str, str] = {}
    for extra, requirements in optional_packages.extras().items():
        if extra in ("dev", "bench"):
            continue
        for requirement in requirements:
            name = optional_packages.required(requirement)
            if name not in optional_packages.base():
                wanted.setdefault(name, extra)
    wanted["learn2learn"] = "the reference row maml_learn2learn"
    return wanted


def _optional(probe: dict[str, Any]) -> Iterator[Finding]:
    for name, purpose in _wanted().items():
        try:
            version = metadata.version(name)
            error = probe.get(f"{optional_packages.module(name)}_error")
            if error:
                yield Finding(
                    "optional packages",
                    name,
                    "broken",
                    f"{version} cannot be imported: {error}",
                    optional_packages.recipe(name),
                )
            else:
                yield _tested("optional packages", name, version)
        except metadata.PackageNotFoundError:
            what = purpose if " " in purpose else f"extra {purpose}"
            yield Finding(
                "optional packages", name, "missing", f"for {what}", optional_packages.recipe(name)
            )


def _third_parties(plugins: Iterable[str | Path]) -> Iterator[Finding]:
    listed = [p for p in os.environ.get("METABENCH_PLUGINS", "").split(os.pathsep) if p]
    for path in dict.fromkeys([*listed, *map(str, plugins)]):
        try:
            load_plugin(path)
        except MetabenchError as error:
            yield Finding("plug-ins", str(path), "broken", str(error), essential=True)
        else:
            yield Finding("plug-ins", str(path), "ok")
    for kind, registry in REGISTRIES.items():
        clashes = registry.clashes()
        for name, who in clashes.items():
            meant = "the built-in is meant" if who[0] == "metabench" else "neither can be used"
            detail = f"declared by {' and '.join(who)}: {meant}"
            yield Finding("entry points", f"{kind} {name}", "broken", detail, essential=True)
        for entry in registry.entries():
            if entry.name in clashes or entry.origin in ("built-in", "plug-in"):
                continue
            try:
                registry.get(entry.name)
            except MetabenchError as error:
                where = f"{kind} {entry.name}"
                yield Finding("entry points", where, "broken", str(error), essential=True)
            else:
                yield Finding("entry points", f"{kind} {entry.name}", "ok", f"from {entry.origin}")
