"""The table of what the laptop budget took, from the records under results/ alone."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Collection, Iterable
from typing import Any

from benchmarks.from_results.budget_tables import FAMILIES, family, markdown, number, shown, write
from benchmarks.harness.records import committed
from metabench.api import spending
from metabench.core.catalogue import suite_names
from metabench.store.record import Record
from metabench.suites import loading as suites


def measured(given: argparse.Namespace, command: str) -> int:
    """``laptop``: every suite that has records."""
    rows, families, seen = [], dict[str, dict[str, Record]](), dict[str, str]()
    there = set[str]()
    for name in suite_names():
        found = committed(given.results / name / "laptop")
        own = {k: r for k, r in found.items() if k not in seen}
        there |= {name} if found else set()
        if not own:
            continue
        seen |= dict.fromkeys(own, name)
        families.setdefault(family(name), {}).update(own)
        rows.append({"family": family(name), "suite": name, **spent(own.values())})
    order = [*FAMILIES]
    rows.sort(key=lambda row: order.index(row["family"]))
    totals = [{"family": f, **spent(families[f].values())} for f in order if f in families]
    write(given.out / "laptop.json", {"command": command, "families": totals, "suites": rows})
    heads = ["cells", "median s", "longest s", "core-hours", "steps/s", "peak MB", "tensors MB"]
    families_table = markdown(
        ["family", *heads], [[row["family"], *figures(row)] for row in totals]
    )
    shown(families_table, "laptop", given.out)
    lines = [
        f"`{command}`",
        "",
        "# Laptop budget: what was measured",
        "",
        "From the committed records of every suite that has some; cells that two suites share "
        "stand with the first. Seconds are of training and evaluation of one cell; core-hours "
        "count the cores that it held (its threads, or its workers). *steps/s*: outer steps a "
        "second of training, median. *peak MB*: largest resident memory of a process, PyTorch "
        "itself (some hundred MB) and what its earlier cells left included. *tensors MB*: most "
        "bytes of tensors of one outer step, where a suite counts them. Most suites ran two cells "
        "at a time beside other work: these seconds say what to expect, not how fast anything is.",
        "",
        families_table,
        "",
        markdown(
            ["family", "suite", *heads],
            [[row["family"], row["suite"], *figures(row)] for row in rows],
        ),
        "",
        "Machines: " + "; ".join(machines(families)) + ".",
        "",
        "No records of: " + ", ".join(unmeasured(there)) + ".",
    ]
    (given.out / "laptop.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


def spent(records: Iterable[Record]) -> dict[str, Any]:
    """What finished cells took together; None where nothing says."""
    done = [r for r in records if r.status == "done"]
    both = [spending.seconds(r) for r in done]
    cores = [
        s * max(r.environment.get("threads") or 1, r.environment.get("workers") or 1)
        for s, r in zip(both, done, strict=True)
    ]
    rates = [r.steps / s for r in done if r.steps and (s := r.cost.get("seconds", 0.0)) > 0]
    peaks = [r.cost[x] for r in done if (x := "peak_memory_bytes") in r.cost]
    tensors = [r.cost[x] for r in done if (x := "peak_tensor_bytes") in r.cost]
    return {
        "cells": len(done),
        "median_seconds": statistics.median(both) if both else None,
        "longest_seconds": max(both, default=None),
        "core_seconds": sum(cores),
        "steps_a_second": statistics.median(rates) if rates else None,
        "peak_memory_bytes": max(peaks, default=None),
        "peak_tensor_bytes": max(tensors, default=None),
    }


def figures(row: dict[str, Any]) -> list[str]:
    """The numbers of a line."""
    return [
        str(row["cells"]),
        number(row["median_seconds"]),
        number(row["longest_seconds"]),
        number(row["core_seconds"] / 3600),
        number(row["steps_a_second"]),
        number(row["peak_memory_bytes"], 1e-6),
        number(row["peak_tensor_bytes"], 1e-6),
    ]


def machines(families: dict[str, dict[str, Record]]) -> list[str]:
    """Each different one that the records name."""
    out = {}
    for record in (r for records in families.values() for r in records.values()):
        machine = record.environment.get("machine", {})
        told = f"{machine.get('usable_cores', '?')} cores of {machine.get('processor', '?')}"
        memory = machine.get("memory_bytes")
        told += f", {memory / 1e9:.0f} GB" if memory else ""
        out[f"{told}, {record.environment.get('device', '?')}"] = None
    return list(out)


def unmeasured(there: Collection[str]) -> list[str]:
    """The suites that no records are of; one that shows others' cells anew has theirs."""
    keys = {n: {x.cell.key for x in suites.load(n).cells("laptop")} for n in suite_names()}
    had = set().union(*(keys[n] for n in there))
    return [n for n in suite_names() if not keys[n] <= had]
