"""Part "omniglot": MAML on few-shot Omniglot at the paper's budget, as the suite runs it.

The cell is that of ``metabench run omniglot --budget paper --only maml/5w1s --seeds 0``, 60,000
steps of 32 tasks, with the same key; on a GPU its steps are replayed from a captured graph. What
does not fit in the time is a checkpoint in the store, from which the next run goes on. Where no
graph can be captured a fresh process begins anew, by vmap.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu_parts.bench import Bench
from metabench.run.events import Measured, Progress, Started
from metabench.run.runner import run_cell
from metabench.store.store import Store
from metabench.suites import loading

EVERY = 20.0
"""Seconds between two rows on how far it is."""
LEFT_OVER = 3.0
"""Seconds kept for the last checkpoint and the record."""


def run(bench: Bench) -> None:
    """Go on from where the store's checkpoint stands, for as long as there is time."""
    budget = "smoke" if bench.miniature else "paper"
    items = loading.load("omniglot").cells(budget, seeds=[0])
    (cell,) = (x.cell for x in items if (x.row, x.column) == ("maml", "5w1s"))
    engine = (bench.rest or {"engine": "graph" if bench.cuda else "auto"})["engine"]
    if engine == "graph":  # until its first step is taken
        bench.leave({"engine": "vmap"})
    record = run_cell(
        cell, Store(bench.store), device=str(bench.device), engine=engine, listener=Watch(bench),
        checkpoint_seconds=5.0 if bench.miniature else 30.0,
        time_limit=max(0.01, bench.left - LEFT_OVER),
    )  # fmt: skip
    cost = record.cost
    figures: dict[str, Any] = {
        "steps": record.steps,
        "of": cell.budget["outer_steps"],
        "training_seconds": cost.get("seconds"),
        "evaluation_seconds": cost.get("evaluation_seconds"),
        "ms_a_step": 1e3 * cost["seconds"] / record.steps if record.steps else None,
        "peak_device_mb": cost.get("peak_device_memory_bytes", float("nan")) / 1e6,
        "attempts": record.attempts,
    }
    if record.status == "done":
        accuracy = record.metrics["test"]["accuracy"]
        figures |= {"test_accuracy": accuracy.mean, "test_half_width": accuracy.ci95}
    goes_on = "; the store has a checkpoint, the next run goes on" * (record.status == "timeout")
    bench.row(
        f"engine {engine}: {record.status}", ok=record.status in ("done", "timeout"),
        note=f"{record.reason}{goes_on}", key=record.key[:16], **figures,
    )  # fmt: skip
    if record.status != "failed":
        bench.leave(None)


class Watch:
    """Tells now and then how far the run is, and how long the whole will take; and, once a step is
    taken, that nothing is left to a fresh process."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.step, self.since, self.told = bench, 0, 0.0, 0.0
        self.moves = False

    def __call__(self, event: Any) -> None:
        """As a listener."""
        now = time.monotonic()
        if isinstance(event, Started):
            self.step, self.since, self.told = event.step, now, now
        elif isinstance(event, Measured):
            kept = {k: v for k, v in event.row.items() if k == "step" or k.startswith("valid/")}
            self.bench.say(progress=kept)
        elif isinstance(event, Progress) and event.step > self.step and not self.moves:
            self.moves = True
            self.bench.leave(None)
        elif isinstance(event, Progress) and now - self.told >= EVERY:
            self.told = now
            ms = 1e3 * (now - self.since) / max(1, event.step - self.step)
            self.bench.say(progress={
                "step": event.step, "phase": event.phase, "ms_a_step_with_evaluations": ms,
                "whole_run_minutes": ms * (event.horizon or 0) / 6e4,
            })  # fmt: skip
