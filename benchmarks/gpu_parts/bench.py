"""What a part of benchmarks/gpu.py is given: the device, the time it has, and where figures go."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import torch

MB = 1e6


@dataclass
class Tried:
    """Whether what was tried raised."""

    failed: bool = False


@dataclass
class Bench:
    """One part at work in a process of its own.

    ``miniature``: sizes at which a part takes seconds of a CPU, to see that everything runs.
    ``until``: the monotonic time by which the part should have ended; it is killed soon after.
    ``rest``: what an earlier process of the part has left to do (:meth:`leave`), None in the first.
    """

    device: torch.device
    miniature: bool
    until: float
    store: Path
    answers: TextIO
    rest: Any = None

    def say(self, **line: Any) -> None:
        """One line of JSON, at once; numbers that are none become null."""
        self.answers.write(json.dumps(finite(line)) + "\n")
        self.answers.flush()

    def row(self, name: str, ok: bool | None = None, note: str = "", **figures: Any) -> None:
        """Figures under a name. ``ok``: whether a check has passed, None where nothing is checked;
        ``note``: what a reader of the number must know."""
        self.say(row=name, ok=ok, note=note, figures=figures)

    def leave(self, rest: Any) -> None:
        """What a fresh process is to do once this one has ended, however it ends; None: nothing.
        The last call counts. Plain JSON values."""
        self.say(rest=rest)

    @contextmanager
    def part_of(self, name: str) -> Iterator[Tried]:
        """Inside, an error is a row that failed, with its reason, and not the end of the part."""
        tried = Tried()
        try:
            yield tried
        except Exception as error:
            tried.failed = True
            traceback.print_exc()
            text = " ".join(str(error).split())[:300]
            self.row(name, ok=False, note=f"{type(error).__name__}: {text}")
        finally:
            if self.cuda:
                with suppress(Exception):  # a device that has failed: what is next will say so
                    torch.cuda.empty_cache()

    def captures(self, rows: Sequence[tuple[str, Callable[[], None]]], **kept: Any) -> None:
        """Rows by name, each capturing a graph: the last that a part does. A capture that fails can
        leave torch unable to go on, so that after an error, as after a death, the rows that are
        left are a fresh process's; its ``rest`` has ``row``, the number of the next one, and what
        is ``kept``."""
        for i in range((self.rest or {"row": 0})["row"], len(rows)):
            name, work = rows[i]
            self.leave({"row": i + 1, **kept} if i + 1 < len(rows) else None)
            with self.part_of(name) as tried:
                work()
            if tried.failed:
                return
        self.leave(None)

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds left to the part."""
        return self.until - time.monotonic()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def timed(
        self,
        work: Callable[[], object],
        *,
        warm_ups: int = 2,
        repeats: int = 20,
        share: float = 0.2,
    ) -> dict[str, float | int | None]:  # fmt: skip
        """Median seconds of ``work`` and the most memory that it takes beyond what was there, of as
        many repeats as ``share`` of the time left allows, one at least."""
        for _ in range(warm_ups):
            work()
        self.wait()
        before = 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        end, taken = time.monotonic() + share * max(0.0, self.left), []
        while not taken or (len(taken) < repeats and time.monotonic() < end):
            begun = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - begun)
        held = torch.cuda.max_memory_allocated(self.device) if self.cuda else None
        return {
            "ms": 1e3 * median(taken),
            "fastest_ms": 1e3 * min(taken),
            "repeats": len(taken),
            "peak_mb": None if held is None else held / MB,
            "own_peak_mb": None if held is None else (held - before) / MB,
        }


def finite(value: Any) -> Any:
    """With None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference, over the largest entry that is wanted; compared in float64 on the
    CPU."""
    gap = top = 0.0
    for name, want in wanted.items():
        a, b = found[name].detach().cpu().double(), want.detach().cpu().double()
        gap, top = max(gap, float((a - b).abs().max())), max(top, float(b.abs().max()))
    return gap / top if top else gap


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    out: dict[str, Any] = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        known = torch.cuda.get_device_properties(device)
        out |= {
            "name": known.name,
            "memory_gb": known.total_memory / 1e9,
            "capability": f"{known.major}.{known.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return out
