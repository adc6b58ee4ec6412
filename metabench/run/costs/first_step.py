"""What the first outer step of a run takes of memory, measured afterwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from metabench.contract.method import Context
from metabench.contract.parallel.process_group import ProcessGroup
from metabench.core.costs import Meter
from metabench.hypergradients.tensor_memory import Footprint
from metabench.run import determinism
from metabench.run.attempts.checkpoint import detached


def peak_bytes(ctx: Context, method: Any, threads: int, *, again: bool) -> int:
    """Bytes of tensors that the first outer step holds at most: taken again, one episode after
    another, and forgotten.

    A thread of its own has none of the buffers that threads keep from step to step, so that they
    count whatever ran before. A problem keeps what its first step made, so that after a resumption
    (``again``) the step is taken once more beforehand.
    """
    alone = replace(ctx, engine="loop", workers=1, group=ProcessGroup())
    ctx = replace(alone, meter=Meter(), notes=dict(ctx.notes), step=0)
    determinism.seed_globals(ctx.seeds.method, ctx.device)
    state = detached(method.init(ctx))

    def step() -> int:
        determinism.seed_globals(ctx.seeds.method + 1, ctx.device)
        with Footprint() as held:
            method.step(ctx, state)
        return int(held.peak)

    for _ in range(2 if again else 1):
        with ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(threads,)
        ) as thread:
            peak = thread.submit(step).result()
    return peak
