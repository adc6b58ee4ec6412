"""The side of a benchmark that is timed: answers orders in a process of its own; see turns.py.

Reads a case and its arrays from files, then answers lines on stdin: "gate" writes the float64 and
float32 gradients, "step" does one timed step. Answers are JSON lines on the process's own stdout;
what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path


def resident(field="VmRSS"):
    """Bytes resident now ("VmRSS") or at most so far ("VmHWM"); None where there is no /proc."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines[field].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def forget_peak():
    """Start VmHWM anew; False where the system does not let us."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
            refs.write("5")
        return True
    except OSError:
        return False


def answer_orders(implementations, unpack):
    """``implementations``: name to a class of (case, dtype) with ``gradient()``, a list of tensors,
    and ``step()``. ``unpack(case, arrays)`` puts the arrays where they are looked for; "gate" gets
    the case that ``unpack`` left under "gate_case", where there is one."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    name, folder = sys.argv[1], Path(sys.argv[2])

    import numpy as np
    import torch

    case = json.loads((folder / "case.json").read_text())
    torch.set_num_threads(1 if name == "metabench" else case["threads"])
    with np.load(folder / "inputs.npz") as inputs:
        unpack(case, {k: inputs[k] for k in inputs.files})
    make = implementations[name]
    made = None

    for line in sys.stdin:
        order = line.strip()
        if order == "gate":
            gated = case.get("gate_case", case)
            found = {}
            for dtype in (torch.float64, torch.float32):
                if name == "reference" and dtype == torch.float32:
                    continue
                for i, g in enumerate(make(gated, dtype).gradient()):
                    found[f"{str(dtype).removeprefix('torch.')}.{i}"] = g.detach().numpy()
            np.savez(folder / f"gradient.{name}.npz", **found)
            answer = {"gate": True}
        elif order == "step":
            first_time = made is None
            if made is None:
                made = make(case, torch.float32)
                forget_peak()
                before = resident()
            wall, cpu = time.perf_counter(), time.process_time()
            made.step()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            peak = resident("VmHWM")
            if before is not None and peak is not None:
                answer["peak_bytes"] = peak - before
            answer["warm_up"] = first_time
        else:
            raise SystemExit(f"no order {order!r}")
        answers.write(json.dumps(answer) + "\n")
