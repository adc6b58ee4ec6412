"""What both tables of budgets have: the families of suites, numbers, Markdown, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

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

Table = list[list[str]]


def family(suite: str) -> str:
    """Of a suite; raises KeyError for one that is in none."""
    for name, beginnings in FAMILIES.items():
        if suite.startswith(beginnings):
            return name
    raise KeyError(f"suite {suite!r} is in no family: add it to FAMILIES of budget_tables.py")


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
