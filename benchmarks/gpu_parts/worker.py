"""A part of benchmarks/gpu.py in a process of its own: figures on stdout, all else on stderr.

python -m benchmarks.gpu_parts.worker PART DEVICE SECONDS STORE REST [miniature]

REST: null, or what an earlier process of the part has left to do, in JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the part; its own errors are the driver's to report."""
    name, device, seconds, store, rest, *size = arguments
    until = time.monotonic() + float(seconds)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    warnings.simplefilter("ignore")

    import torch

    from benchmarks.gpu_parts.bench import Bench, machine

    where = torch.device(device)
    if where.type == "cuda":
        # Before the first matrix product: torch takes its workspace from it once.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.zeros((), device=where)
    else:
        torch.set_num_threads(1)
    bench = Bench(where, "miniature" in size, until, Path(store), answers, json.loads(rest))
    bench.say(machine=machine(where))
    importlib.import_module(f"benchmarks.gpu_parts.{name}").run(bench)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
