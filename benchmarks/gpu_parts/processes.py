"""A part of benchmarks/gpu.py at work: processes of its own, ended at its limit."""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu_parts.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 5.0
"""Seconds in which a process that is killed should be gone: a driver may keep it longer."""


@dataclass(frozen=True)
class Part:
    """A module of benchmarks/gpu_parts with its limit in seconds; ``needs``: what must be
    importable; ``wants``: without which a row is a hole; ``takes_rest``: whether it has what
    earlier parts have left of the total too."""

    name: str
    seconds: float
    about: str
    needs: tuple[str, ...] = ("torch", "pydantic", "scipy")
    wants: tuple[str, ...] = ()
    takes_rest: bool = False


@dataclass
class Ended:
    """How a process ended: "done", "failed" or "killed". ``rest``: what it has left to do."""

    status: str = "done"
    reason: str = ""
    rows: int = 0
    failed_checks: int = 0
    rest: Any = None


def run_part(
    part: Part, limit: float, options: argparse.Namespace, journal: Journal, log: TextIO
) -> dict[str, Any]:
    """Run it to its end or its limit; how it ended. What a process has left to do, because it
    died or because it cannot go on after an error, is done by a fresh one."""
    log.write(f"\n--- {part.name}\n")
    log.flush()
    begun, every, rest = time.monotonic(), list[Ended](), None
    while True:
        left = begun + limit - time.monotonic()
        ended = Process(part, left, limit, options, journal, log, rest).run()
        every.append(ended)
        rest = ended.rest
        if rest is None or ended.status == "killed" or begun + limit - time.monotonic() < 1:
            break
        journal.write({"part": part.name, "fresh_process": rest})
    worst = next((e for status in ("killed", "failed") for e in every if e.status == status),
                 every[-1])  # fmt: skip
    reason = worst.reason
    if worst is not every[-1]:
        reason += "; a fresh process did the rest"
    return {
        "status": worst.status, "reason": reason, "rows": sum(e.rows for e in every),
        "failed_checks": sum(e.failed_checks for e in every),
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


@dataclass
class Process:
    """One process of a part, with ``seconds`` of the part's ``limit``."""

    part: Part
    seconds: float
    limit: float
    options: argparse.Namespace
    journal: Journal
    log: TextIO
    rest: Any
    ended: Ended = field(default_factory=Ended)

    def run(self) -> Ended:
        """To its end, or until its time is up."""
        end = time.monotonic() + self.seconds
        # What it is told is less than what it has: it should end by itself.
        own = self.seconds - min(10.0, 0.1 * self.seconds)
        command = [
            sys.executable, "-P", "-m", self.options.worker, self.part.name,
            self.options.device or "cuda", f"{own:.1f}", str(self.options.store),
            json.dumps(self.rest), *(["miniature"] if self.options.miniature else []),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True,
            start_new_session=True,  # with whatever it starts, to be killed together
            env=environment(),
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for text in process.stdout:
                lines.put(text)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while (text := lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
                self.hear(text)
            # It has closed its output and may yet hang, in what CUDA takes down.
            code = process.wait(timeout=max(1.0, end - time.monotonic()))
        except (queue.Empty, subprocess.TimeoutExpired):
            gone = killed(process)
            self.ended.status = "killed"
            self.ended.reason = f"not ended within {self.limit:g} s" + ("" if gone else
                                ", nor when killed: it may still hold the device")  # fmt: skip
        else:
            if code:
                self.ended.status = "failed"
                self.ended.reason = (
                    f"signal {-code}" if code < 0 else f"exit status {code}: {last_words(self.log)}"
                )
        reader.join(timeout=PATIENCE)
        if process.stdout is not None and not reader.is_alive():
            process.stdout.close()
        return self.ended

    def hear(self, text: str) -> None:
        """A line that it has written; one that was cut off is none."""
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            return
        if "rest" in line:
            self.ended.rest = line["rest"]
            return
        self.ended.rows += "row" in line
        self.ended.failed_checks += line.get("ok") is False
        self.journal.write({"part": self.part.name, **line})


def environment() -> dict[str, str]:
    """Of a process that is to import what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def killed(process: subprocess.Popen[str]) -> bool:
    """End it with all that it has started; whether it is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    return True


def last_words(log: TextIO) -> str:
    """The last line that a process wrote to the log."""
    lines = Path(log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing said"
