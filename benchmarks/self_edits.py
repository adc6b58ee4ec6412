"""Seconds and memory of adapting several LoRA deltas at once on one frozen language model.

    python -m benchmarks.self_edits                          # the tiny model of the tests
    python -m benchmarks.self_edits --model smollm2 --edits 4 --tokens 128 --steps 3

Each edit has a few documents of random tokens, each step is Adam on all of them, and every batch
size ends in the same deltas as one at a time (checked; the largest gap is shown).
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from typing import Any

import torch

from metabench.contract.problem import Params
from metabench.core.registry import solvers
from metabench.tasks.models.language import lora
from metabench.tasks.models.language.causal import TARGETS


def main() -> int:
    """Measure, print one line a batch size; 1 where a batch disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tinylm_260k")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--edits", type=int, default=15, help="deltas in all")
    parser.add_argument("--documents", type=int, default=4, help="of an edit")
    parser.add_argument("--tokens", type=int, default=64, help="of a document")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="also write the numbers to this file")
    given = parser.parse_args()
    device = torch.device(given.device)
    load = importlib.import_module("metabench.tasks.models.language.pretrained").load
    decoder: lora.Decoder = load(given.model, given.dtype, device).decoder
    gen = torch.Generator().manual_seed(0)
    shape = (given.edits, given.documents, given.tokens)
    ids = torch.randint(decoder.vocabulary, shape, generator=gen).to(device)
    starts = [decoder.deltas(given.rank, list(TARGETS), gen) for _ in range(given.edits)]

    def adapted(at_once: int) -> Params:
        parts = []
        for a in range(0, given.edits, at_once):
            text = ids[a : a + at_once]

            def loss(theta: Params, text: torch.Tensor = text) -> torch.Tensor:
                logits = decoder.logits(text, [decoder.adapter(theta, 2.0)])
                return lora.surprise(logits, text).mean((-2, -1))

            start = lora.stacked(starts[a : a + at_once])
            adam = solvers.get("adam")()
            parts.append(lora.adapt(loss, start, steps=given.steps, lr=1e-3, solver=adam))
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    sizes = sorted({1, min(4, given.edits), given.edits})
    rows: list[dict[str, Any]] = []
    expected, agree = adapted(1), True
    for at_once in sizes:
        found = adapted(at_once)
        gap = max(float((found[k] - v).abs().max()) for k, v in expected.items())
        agree = agree and gap <= 1e-3 * max(float(v.abs().max()) for v in expected.values())
        taken = []
        for _ in range(given.repeats):
            _wait(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            begun = time.perf_counter()
            adapted(at_once)
            _wait(device)
            taken.append(time.perf_counter() - begun)
        row = {"at_once": at_once, "seconds": statistics.median(taken), "gap": gap}
        if device.type == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        rows.append(row)
        ratio = rows[0]["seconds"] / row["seconds"]
        peak = f", {row['peak_gb']:.2f} GB" if "peak_gb" in row else ""
        print(
            f"{at_once:4d} at once: {row['seconds']:.3f} s for {given.edits} edits of "
            f"{given.steps} steps, {ratio:.2f} times as fast as one at a time{peak} (gap {gap:.1e})"
        )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"settings": vars(given), "rows": rows}, file, indent=1)
    return 0 if agree else 1


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
