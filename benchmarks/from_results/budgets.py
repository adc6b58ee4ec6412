"""What the laptop budget took, by family, and what the paper budget would take on a GPU.

    python -m benchmarks.from_results.budgets laptop             # from the records under results/
    python -m benchmarks.from_results.budgets paper              # count what is not counted yet
    python -m benchmarks.from_results.budgets paper seal-knowledge --again   # one suite anew
    python -m benchmarks.from_results.budgets paper --minutes 2  # go on another time
    python -m benchmarks.from_results.budgets paper --minutes 0 --card "H100 80 GB" --bf16 989 \
        --bandwidth 3350

Both write a table and its numbers to results/budgets/. ``laptop`` reads the committed records and
measures nothing. ``paper`` is an ESTIMATE: it builds each different cell, counts one outer step and
one episode of each evaluation (benchmarks/harness/counting.py; language models: language.py
beside it), multiplies, and divides by what a card is said to do. Counts are kept in paper.json,
cell by cell: a second call goes on, and another card is a matter of seconds. See docs/budgets.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.harness.records import committed
from metabench.api import spending
from metabench.core.capabilities import why_not
from metabench.core.catalogue import suite_names
from metabench.core.cell import Cell, canonical, instances
from metabench.store.record import Record
from metabench.suites import loading as suites

ROOT = Path(__file__).parents[2] / "results"
DOCS = ROOT.parent / "docs" / "budgets.md"

FAMILIES = {
    "few-shot images": ("omniglot", "few-shot-", "maml-", "quickstart", "sinusoid"),
    "implicit representations": ("inr",),
    "loss learning": ("loss-learning",),
    "retraining": ("spg-",),
    "augmentation": ("augmentation",),
    "pre-training": ("pretrain-",),
    "self-edits": ("seal-",),
    "mathematics": ("pbgd-", "ift-", "stn-", "sgld-", "closed-form", "hypergradient-fidelity"),
    "games": ("games", "ridge-rider"),
    "orthogonal updates": ("muon-",),
    "control": ("tagi-",),
    "convex problems": ("hoag-", "hypernet-", "maid-", "prospect-", "single-loop"),
    "marginal likelihood": ("marglik-",),
    "optimiser constants": ("cehpo-",),
    "retrieval": ("autorag-",),
    "dataset distillation": ("distillation",),
    "every task": ("crossing",),
}
"""Family to how the names of its suites begin."""

UNCOUNTED = {"crossing": "a few steps of every task at its smallest: nothing beside the others"}
"""Suites that the estimate leaves out, and why."""

Table = list[list[str]]


def family(suite: str) -> str:
    """Of a suite; raises KeyError for one that is in none."""
    for name, beginnings in FAMILIES.items():
        if suite.startswith(beginnings):
            return name
    raise KeyError(f"suite {suite!r} is in no family: add it to FAMILIES")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one of the two tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.from_results.budgets", description=__doc__.partition("\n")[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    laptop = verbs.add_parser("laptop", help="what was measured")
    laptop.add_argument("--results", type=Path, default=ROOT, help="where suites' results lie")
    paper = verbs.add_parser("paper", help="an estimate from counted costs")
    paper.add_argument("suites", nargs="*", metavar="SUITE", help="count these alone")
    paper.add_argument("--minutes", type=float, help="begin no other cell after so long")
    paper.add_argument("--again", action="store_true", help="count anew what is counted")
    paper.add_argument("--card", default="A100 80 GB")
    for name, default, what in (
        ("fp32", 19.5, "peak of the card in float32, TFLOP/s"),
        ("bf16", 312.0, "the same in bfloat16"),
        ("fp64", 9.7, "the same in float64"),
        ("bandwidth", 2039.0, "of its memory, GB/s"),
        ("utilisation", 0.3, "part of the peak that is reached"),
        ("bandwidth-use", 0.6, "part of the bandwidth that is reached"),
        ("op-us", 10.0, "microseconds that an operation takes at least"),
    ):
        paper.add_argument(f"--{name}", type=float, default=default, help=what)
    for verb in (laptop, paper):
        verb.add_argument("--out", type=Path, default=ROOT / "budgets")
    given = parser.parse_args(arguments)
    said = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.from_results.budgets", *said])
    given.out.mkdir(parents=True, exist_ok=True)
    return (measured if given.verb == "laptop" else estimated)(given, command)


# What was measured


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


# What is estimated


@dataclass(frozen=True)
class Card:
    """What a GPU is said to do, and how much of it a run is taken to reach."""

    name: str
    peaks: dict[str, float]
    """FLOP/s by type of numbers."""
    bandwidth: float
    """Bytes/s."""
    utilisation: float
    bandwidth_use: float
    op_seconds: float

    def seconds(self, cost: dict[str, float], dtype: str) -> dict[str, float]:
        """What each bound says of a cost; the largest holds."""
        return {
            "FLOPs": cost["flops"] / (self.peaks[dtype] * self.utilisation),
            "memory traffic": cost["traffic"] / (self.bandwidth * self.bandwidth_use),
            "launches": cost["ops"] * self.op_seconds,
        }


@dataclass(frozen=True)
class Same:
    """A row's columns whose cells cost the same."""

    suite: str
    row: str
    columns: tuple[str, ...]
    seeds: int
    cell: Cell

    @property
    def id(self) -> str:
        """Its name in the file of counts."""
        return f"{self.suite}/{self.row}/{self.columns[0]}"


NO_COST = ("noise", "prompt")
"""Words among the settings that do not change what a cell costs."""


def cost_key(cell: Cell) -> str:
    """Equal for cells that cost the same: step sizes and rates, all that is a fraction, do not
    matter; memory_budget_gb does."""
    data = {k: v for k, v in asdict(cell).items() if k != "seed"}
    for group, values in data.items():
        if isinstance(values, dict):
            data[group] = {
                k: v
                for k, v in values.items()
                if k == "memory_budget_gb" or not (isinstance(v, float) or k in NO_COST)
            }
    return canonical(data)


def unmeasured(there: Collection[str]) -> list[str]:
    """The suites that no records are of; one that shows others' cells anew has theirs."""
    keys = {n: {x.cell.key for x in suites.load(n).cells("laptop")} for n in suite_names()}
    had = set().union(*(keys[n] for n in there))
    return [n for n in suite_names() if not keys[n] <= had]


def planned() -> list[Same]:
    """Every different cost of the paper budget; what theory excludes or a suite skips is left out,
    and so are the cells that an earlier suite has already."""
    out, seen = [], set[str]()
    for name in suite_names():
        if name in UNCOUNTED:
            continue
        suite = suites.load(name)
        seeds = suite.budget("paper").seeds
        groups: dict[tuple[str, str], list[suites.SuiteCell]] = {}
        for item in suite.cells("paper", seeds=seeds[:1]):
            if item.skip or item.cell.key in seen or why_not(*instances(item.cell)[:3]):
                continue
            groups.setdefault((item.row, cost_key(item.cell)), []).append(item)
        for (row, _), items in groups.items():
            columns = tuple(item.column for item in items)
            out.append(Same(name, row, columns, len(seeds), items[0].cell))
        seen |= {item.cell.key for items in groups.values() for item in items}
    return out


def estimated(given: argparse.Namespace, command: str) -> int:
    """``paper``: count what is not counted, then price all of it."""
    for name in given.suites:
        suites.load(name)
    path = given.out / "paper.json"
    known: dict[str, Any] = {}
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))["counts"]
    plan = planned()
    begun = time.monotonic()
    counts = {s.id: known[s.id] for s in plan if known.get(s.id, {}).get("key") == s.cell.key}
    for same in plan:
        if given.suites and same.suite not in given.suites:
            continue
        if same.id in counts and "error" not in counts[same.id] and not given.again:
            continue
        if given.minutes is not None and time.monotonic() - begun >= 60 * given.minutes:
            break
        counts[same.id] = {"key": same.cell.key, **count(same.cell)}
        print(f"{same.id}: {counts[same.id].get('error', 'counted')}", flush=True)
        write(path, {"command": command, "counts": counts})
    card = Card(
        given.card,
        {"float32": given.fp32 * 1e12, "bfloat16": given.bf16 * 1e12, "float64": given.fp64 * 1e12},
        given.bandwidth * 1e9,
        given.utilisation,
        given.bandwidth_use,
        given.op_us * 1e-6,
    )
    rows = [price(same, counts[same.id], card) for same in plan if same.id in counts]
    left = [same for same in plan if same.id not in counts]
    content = {"command": command, "card": asdict(card), "rows": rows}
    write(path, {**content, "not_counted": [same.id for same in left], "counts": counts})
    text = estimate(command, card, rows, left)
    (given.out / "paper.md").write_text(text, encoding="utf-8")
    different = f"Counted so far: {len(rows)} of {len(plan)} different costs."
    shown(f"{by_family(rows)}\n\n{different}", "paper", given.out)
    print(text)
    return 0


def count(cell: Cell) -> dict[str, Any]:
    """The counts of a cell as JSON data, or the reason why there are none."""
    import torch

    from benchmarks.harness import counting, language

    torch.set_num_threads(1)
    task = instances(cell)[0]
    dtype = getattr(task, "dtype", "float32")
    absent = [] if cell.task in language.TASKS else counting.absent(task)
    try:
        if cell.task in language.TASKS:
            found, notes = language.counted(cell)
        else:
            with counting.stand_ins(absent):
                found, notes = counting.counted(cell), []
    except Exception as error:  # a hole with its reason, and the next cell
        return {"error": f"{type(error).__name__}: {error}"}
    notes += [counting.STAND_INS[name].said for name in absent]
    return {"dtype": dtype, "notes": notes, **found.as_dict()}


def price(same: Same, counted: dict[str, Any], card: Card) -> dict[str, Any]:
    """One line: FLOPs, hours and memory of a row's columns that cost the same."""
    cells = len(same.columns) * same.seeds
    out: dict[str, Any] = {
        "family": family(same.suite),
        "suite": same.suite,
        "row": same.row,
        "columns": list(same.columns),
        "cells": cells,
    }
    if "error" in counted:
        return {**out, "error": counted["error"]}
    work = [(counted["step"], counted["steps"]), *counted["evaluations"].values()]
    bounds: dict[str, float] = {}
    hours = flops = 0.0
    for cost, times in work:
        found = card.seconds(cost, counted["dtype"])
        bound = max(found, key=lambda name: found[name])
        bounds[bound] = bounds.get(bound, 0.0) + found[bound] * times
        hours += found[bound] * times / 3600
        flops += cost["flops"] * times
    peak = max(cost["peak"] for cost, _ in work)
    return {
        **out,
        "flops": flops * cells,
        "hours_a_cell": hours,
        "hours": hours * cells,
        "bound": max(bounds, key=lambda name: bounds[name]),
        "memory_bytes": peak + counted["state_bytes"] + counted["data_bytes"],
        "notes": counted["notes"],
    }


def estimate(command: str, card: Card, rows: list[dict[str, Any]], left: list[Same]) -> str:
    """The Markdown of an estimate."""
    whole = [row for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row]
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for row in whole:
        by_suite.setdefault(row["suite"], []).append(row)
    waiting: dict[str, int] = {}
    for same in left:
        waiting[same.suite] = waiting.get(same.suite, 0) + 1
    notes = dict.fromkeys(note for row in whole for note in row["notes"])
    peaks = ", ".join(f"{v / 1e12:g} TFLOP/s in {k}" for k, v in card.peaks.items())
    lines = [
        f"`{command}`",
        "",
        f"# Paper budget on one {card.name}: an ESTIMATE from counted costs",
        "",
        "Nothing here was measured on a GPU. Of each different cell one outer step and one episode "
        "of each evaluation were run, or for large language models traced without numbers, and "
        "counted; the rest is multiplication by outer steps, evaluations and seeds.",
        "",
        "Assumed:",
        "",
        f"- {card.name}: {peaks}, {card.bandwidth / 1e9:g} GB/s; {card.utilisation:.0%} of the "
        f"peak and {card.bandwidth_use:.0%} of the bandwidth are reached; an operation takes "
        f"{card.op_seconds * 1e6:g} microseconds at least. Of the three bounds the largest holds, "
        "for each kind of work by itself.",
        "- One cell at a time. Cells that are bound by launches leave most of a card idle: several "
        "of them share one, and the hours shrink.",
        "- FLOPs are of matrix products and convolutions, in every derivative. Memory traffic is "
        "what each operation reads and writes, with nothing fused.",
        "- Memory: the most bytes of tensors of a step or an evaluation, weights, solver memory "
        "and data; without PyTorch's own (some 500 MB), workspaces and fragmentation.",
        "- Loops of more than some turns were run for two small numbers of turns: the cost is "
        "affine in them. Of several episodes one was run, and two for what a GPU does with all at "
        "once.",
        "- Building a problem, and reading data, is left out.",
        *[f"- {note}." for note in notes],
        *[f"- {name} is left out: {why}." for name, why in UNCOUNTED.items()],
        "",
        by_family(rows),
        "",
        markdown(
            ["family", "suite", *PRICES],
            [[r[0]["family"], s, *sums(r)] for s, r in by_suite.items()],
        ),
        "",
        markdown(
            ["suite", "row", "columns", *PRICES],
            [[r["suite"], r["row"], ", ".join(r["columns"]), *sums([r])] for r in whole],
        ),
    ]
    if failed:
        lines += ["", "Could not be counted:", ""]
        lines += [f"- {r['suite']}, {r['row']}: {r['error']}" for r in failed]
    if waiting:
        lines += ["", "Not counted yet (the same command goes on):", ""]
        lines += [f"- {name}: {n} different cells" for name, n in waiting.items()]
    return "\n".join(lines) + "\n"


PRICES = ("cells", "PFLOP", "GPU hours", "longest cell h", "memory GB", "bound by")


def by_family(rows: list[dict[str, Any]]) -> str:
    """The table of families."""
    groups: dict[str, list[dict[str, Any]]] = {f: [] for f in FAMILIES}
    for row in rows:
        if "error" not in row:
            groups[row["family"]].append(row)
    return markdown(["family", *PRICES], [[f, *sums(r)] for f, r in groups.items() if r])


def sums(rows: list[dict[str, Any]]) -> list[str]:
    """The numbers of a line over priced rows."""
    bounds: dict[str, float] = {}
    for row in rows:
        bounds[row["bound"]] = bounds.get(row["bound"], 0.0) + row["hours"]
    return [
        str(sum(row["cells"] for row in rows)),
        number(sum(row["flops"] for row in rows), 1e-15),
        number(sum(row["hours"] for row in rows)),
        number(max(row["hours_a_cell"] for row in rows)),
        number(max(row["memory_bytes"] for row in rows), 1e-9),
        max(bounds, key=lambda name: bounds[name]),
    ]


def number(value: float | None, scale: float = 1.0) -> str:
    """Two or three digits; nothing where there is no number."""
    if value is None:
        return ""
    value *= scale
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.3g}"


def markdown(heads: list[str], rows: Table) -> str:
    """A pipe table; all that stands under a number's head is on the right."""
    words = ("family", "suite", "row", "columns", "bound by")
    align = ["left" if head in words else "right" for head in heads]
    return tabulate(rows, heads, tablefmt="pipe", disable_numparse=True, colalign=align)


def shown(table: str, name: str, out: Path) -> None:
    """Put a table where docs/budgets.md has the last one, if it is the project's own."""
    if out.resolve() != (ROOT / "budgets").resolve():
        return
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    DOCS.write_text(text, encoding="utf-8")


def write(path: Path, content: dict[str, Any]) -> None:
    """JSON, as a whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
