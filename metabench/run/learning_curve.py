"""The learning curve of a run, row by row, and lam in numbers that a record can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from metabench.contract.problem import Params, Problem, count_numbers
from metabench.run.evaluation import Metrics
from metabench.store.encoding import hash_arrays
from metabench.store.record import Curve

SMALL = 64
"""Numbers of lam up to which every entry is kept in curve and record."""
MANY = 20
"""Names of lam above which a large one is summed up as a whole."""


def row(
    step: int,
    logs: Mapping[str, Sequence[float]],
    found: Mapping[str, Metrics],
    counts: Mapping[str, int],
) -> dict[str, float | None]:
    """The columns of a row: what the method logged (name to sum and number), what was found on each
    split, and the counts."""
    return {
        "step": step,
        **{f"train/{name}": total / n for name, (total, n) in logs.items()},
        **{f"{split}/{name}": x.mean for split, all_ in found.items() for name, x in all_.items()},
        **{f"cost/{name}": n for name, n in counts.items()},
    }


def appended(curve: Curve, row: Mapping[str, float | None]) -> Curve:
    """The curve with one more row; columns stay of equal length, with None where a row has no such
    value."""
    length = len(curve.get("step", []))
    out: Curve = {}
    for name in sorted(curve.keys() | row.keys()):
        value = row.get(name)
        last = value if value is not None and math.isfinite(value) else None
        out[name] = [*curve.get(name, [None] * length), last]
    return out


def lam_columns(lam: Params, problem: Problem) -> dict[str, float]:
    """lam as columns of a curve: every entry of a small one, else mean, std, min and max."""
    if count_numbers(lam) <= SMALL:
        out: dict[str, float] = {}
        for name, value in lam.items():
            flat = value.detach().double().flatten().tolist()
            if value.dim() == 0:
                out[f"lam/{name}"] = flat[0]
            else:
                out |= {f"lam/{name}[{i}]": v for i, v in enumerate(flat)}
        return out
    named = [h.name for h in problem.hypers if h.name in lam]
    if not named and len(lam) <= MANY:
        named = list(lam)
    parts = {name: lam[name] for name in named} or {
        "all": torch.cat([v.detach().flatten() for v in lam.values()])
    }
    return {
        f"lam/{name}.{what}": number
        for name, value in parts.items()
        for what, number in summary(value).items()
    }


def summary(value: torch.Tensor) -> dict[str, float]:
    """Mean, population standard deviation, least and largest entry."""
    if not value.numel():
        return {}
    x = value.detach().double().cpu()
    return {
        "mean": float(x.mean()),
        "std": float(x.std(correction=0)),
        "min": float(x.min()),
        "max": float(x.max()),
    }


def arrays(lam: Params) -> dict[str, np.ndarray[Any, Any]]:
    """lam as numpy arrays; bfloat16, which numpy lacks, as float32 (exact)."""
    plain = {k: v.detach().cpu() for k, v in lam.items()}
    return {k: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for k, v in plain.items()}


def describe(lam: Params) -> dict[str, Any]:
    """What a record says of lam: numbers, sha256, shapes, summaries, and values where few."""
    out: dict[str, Any] = {
        "numbers": count_numbers(lam),
        "sha256": hash_arrays(arrays(lam)),
        "shapes": {k: list(v.shape) for k, v in lam.items()},
        "summary": {k: summary(v) for k, v in lam.items()},
    }
    if out["numbers"] <= SMALL:
        out["values"] = {k: v.detach().double().cpu().tolist() for k, v in lam.items()}
    return out
