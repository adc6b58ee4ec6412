"""What a run ran on: versions, git state, machine, threads; and the settings that fix its bits."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from metabench.core.environment import optional_packages
from metabench.core.environment.hardware import asked_threads, cores
from metabench.core.environment.provenance import git

SLURM = {
    "SLURM_JOB_ID": "job",
    "SLURM_ARRAY_JOB_ID": "array",
    "SLURM_ARRAY_TASK_ID": "index",
    "SLURM_RESTART_COUNT": "restarts",
    "SLURMD_NODENAME": "node",
    "SLURM_JOB_PARTITION": "partition",
}
"""Variables of a Slurm job that a record keeps, and under which name."""


@functools.cache
def facts() -> dict[str, Any]:
    """What does not change while the process lives; shared, so not to be modified."""
    return {"versions": versions(), "git": git(), "machine": machine()}


def versions() -> dict[str, str]:
    """Of Python, metabench, and the packages that can change numbers."""
    # torch's own is of a class of torch: who is sent a record would have to import it.
    out = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("metabench", "numpy", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out


def packages(*parts: Any) -> dict[str, str]:
    """Versions of what tasks and methods bring: their ``packages`` and their own distribution."""
    out: dict[str, str] = {}
    for part in parts:
        names = list(part.packages)
        home = type(part).__module__.partition(".")[0]
        if home != "metabench":
            names += _distributions(home)
        for name in names:
            with contextlib.suppress(metadata.PackageNotFoundError):
                out[name] = metadata.version(optional_packages.package(name))
    return out


@functools.cache
def _distributions(package: str) -> list[str]:
    """The installed distributions of a package. Every file of all that is installed is looked at,
    which takes longer than a short run."""
    return metadata.packages_distributions().get(package, [])


def machine() -> dict[str, Any]:
    """Host, processor, cores, memory in bytes, operating system, GPUs."""
    out: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if hasattr(os, "sched_getaffinity"):
        out["affinity"] = sorted(os.sched_getaffinity(0))
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        out["visible_gpus"] = os.environ["CUDA_VISIBLE_DEVICES"]
    job = {word: os.environ[name] for name, word in SLURM.items() if name in os.environ}
    if job:
        out["slurm"] = job
    if torch.cuda.is_available():
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        out["cuda"] = torch.version.cuda
    return out


def intra_op_threads(spread: bool) -> int:
    """Threads inside one operation: 1 where episodes are spread over Python threads."""
    return 1 if spread else asked_threads()


class Setting(NamedTuple):
    """A setting of the process or the thread that results depend on."""

    read: Callable[[], Any]
    put: Callable[[Any], Any]
    value: Any
    """Inside a cell: torch's own default, but on a GPU for the deterministic algorithms."""


def _flag(of: Any, name: str, value: Any) -> Setting:
    return Setting(lambda: getattr(of, name), lambda to: setattr(of, name, to), value)


def _autocast(kind: str) -> Setting:
    return Setting(
        lambda: torch.is_autocast_enabled(kind),
        lambda to: torch.set_autocast_enabled(kind, to),
        False,
    )


def _default_device() -> torch.device | None:
    """As set_default_device has set it for this thread, which torch does not tell from a caller's
    ``with torch.device(...)``."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context.device if context is not None else None


def _float32_precision(*, fresh: bool = False) -> tuple[str | None, ...]:
    """Of matrix products in float32: as the old function says it (None where only the new ones
    have set it, when it raises), as the new ones do; ``fresh``: as torch starts."""
    if fresh:
        return "highest", *["none" for _ in _precisions()[:1]]
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:
        old = None
    places = _precisions()
    return old, *[of.fp32_precision for of in (places if old is None else places[:1])]


def _put_float32_precision(to: tuple[str | None, ...]) -> None:
    torch.set_float32_matmul_precision(to[0] or "highest")
    for of, precision in zip(_precisions(), to[1:], strict=False):
        of.fp32_precision = precision


def _precisions() -> list[Any]:
    """What the new functions of torch 2.9 set: of everything, then of matrix products."""
    every: Any = torch.backends
    if not hasattr(every, "fp32_precision"):
        return []
    return [every, every.cuda.matmul, every.mkldnn.matmul]


@functools.cache
def _settings(cuda: bool) -> tuple[Setting, ...]:
    """All of them; a library may change any when it is imported."""
    return (
        Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        Setting(_default_device, torch.set_default_device, None),
        Setting(torch.is_grad_enabled, torch.set_grad_enabled, True),
        Setting(_float32_precision, _put_float32_precision, _float32_precision(fresh=True)),
        Setting(
            # torch does not say: half the smallest normal number is a denormal.
            lambda: sys.float_info.min / 2.0 == 0.0,
            torch.set_flush_denormal,
            False,
        ),
        Setting(
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda to: torch.use_deterministic_algorithms(to[0], warn_only=to[1]),
            (cuda, cuda),
        ),
        _flag(torch.backends.cudnn, "enabled", True),
        _flag(torch.backends.cudnn, "benchmark", False),
        _flag(torch.backends.cudnn, "deterministic", False),
        _flag(torch.backends.cudnn, "allow_tf32", True),
        _autocast("cpu"),
        _autocast("cuda"),
    )


def _put(settings: tuple[Setting, ...], values: Iterable[Any]) -> None:
    for setting, value in zip(settings, values, strict=True):
        if setting.read() != value:
            setting.put(value)


def settle(device: torch.device) -> None:
    """Give every setting that results depend on its value for a cell on this device."""
    settings = _settings(device.type == "cuda")
    _put(settings, [setting.value for setting in settings])


@contextlib.contextmanager
def fixed(device: torch.device) -> Iterator[None]:
    """Inside, results depend on nothing but the cell: settings are torch's own whatever a caller or
    a plug-in made of them, algorithms are deterministic, and operations use one thread unless asked
    otherwise. Leaves the process as it was, its generators too."""
    cuda = device.type == "cuda"
    settings = _settings(cuda)
    threads = torch.get_num_threads()
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    with contextlib.ExitStack() as inside:
        inside.enter_context(warnings.catch_warnings())
        if torch.is_inference_mode_enabled():
            inside.enter_context(torch.inference_mode(False))
        if cuda:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            warnings.filterwarnings("ignore", message=".*deterministic")
        before = [setting.read() for setting in settings]
        torch.set_num_threads(1)
        settle(device)
        # The caller may be inside of torch.device(...).
        if torch.empty(0, dtype=torch.uint8).device.type != "cpu":
            inside.enter_context(torch.device("cpu"))
        try:
            yield
        finally:
            _put(settings, before)
            torch.set_num_threads(threads)
            torch.set_rng_state(generators[0])
            np.random.set_state(generators[1])
            random.setstate(generators[2])


def seed_globals(seed: int, device: torch.device) -> None:
    """Seed the generators that no task or method should use, in case one does; and settle what
    either has changed since the cell began, a library that it imports late for example."""
    settle(device)
    # torch.manual_seed would, without CUDA, remember every call with its stack for later.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class PeakMemory:
    """The largest resident memory of this process since the object was made, in bytes.

    Where the kernel cannot reset its mark, since the process began. On a GPU also the device's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at_start = _resident("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._reset = True
        except OSError:
            self._reset = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, float]:
        """``peak_memory_bytes``, and ``peak_device_memory_bytes`` on a GPU."""
        peak = _resident("VmHWM") if self._reset else None
        if peak is None:
            import resource  # not on every system

            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        out: dict[str, float] = {"peak_memory_bytes": peak}
        if self.device.type == "cuda":
            out["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return out


def _resident(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
