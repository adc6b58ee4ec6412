"""The pages name only modules, functions, files and programs that are there."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / room / "README.md" for room in ("benchmarks", "slurm")),
]
DOTTED = re.compile(r"\bmetabench(?:\.[A-Za-z_]\w*)+")
PROGRAM = re.compile(r"python -m ((?:benchmarks|metabench|tests)[\w.]*)")
FILE = re.compile(
    r"(?<![\w/.])((?:metabench|tasks|methods|tests|docs|results|benchmarks|slurm)/[\w./*-]+)"
)
READERS = {
    *("methods/nystrom.py", "tasks/denoising.py", "results/runs", "results/tensorboard"),
    *("results/inverses/smoke/report.html", "results/denoising/smoke/report.html"),
    *(f"results/rank/small/mine/{n}" for n in ("standing.md", "standing.csv", "records.jsonl.gz")),
    *(f"results/closed-form/smoke/{n}" for n in ("learning.png", "learning.pdf", "report.html")),
    "results/rank/small/one_product/records.jsonl.gz",
}
"""What a reader of the pages makes."""


def is_there(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute or field of what one has."""
    thing, rest = importlib.import_module("metabench"), dotted.split(".")[1:]
    for number, name in enumerate(rest):
        try:
            thing = importlib.import_module(".".join(["metabench", *rest[: number + 1]]))
        except ImportError:
            if name in getattr(thing, "__dataclass_fields__", {}):
                return number == len(rest) - 1
            if not hasattr(thing, name):
                return False
            thing = getattr(thing, name)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [name for name in sorted({*DOTTED.findall(text)}) if not is_there(name)] == []
    programs = {name.rstrip(".").replace(".", "/") for name in PROGRAM.findall(text)}
    places = {"metabench/cluster_profiles": "slurm"}
    for program in programs:
        for name, folder in places.items():
            program = program.replace(name, folder)
        there = (ROOT / f"{program}.py").is_file() or (ROOT / program / "__main__.py").is_file()
        assert there, f"no program {program}"
    files = {name.rstrip("./") for name in FILE.findall(text)} - READERS
    missing = [name for name in files if "SUITE" not in name and not [*ROOT.glob(name)]]
    assert missing == []


def test_names_that_are_not_there_are_found() -> None:
    assert is_there("metabench.contract.task.Task.metrics")
    assert is_there("metabench.store.merge.Merged.copied")
    assert not is_there("metabench.problem") and not is_there("metabench.api.crossing")


def test_the_page_of_budgets_names_every_suite_with_fewer_than_ten_seeds() -> None:
    text = (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")
    said = text[text.index("### Seeds") : text.index("## Paper")]
    numbers = {"one": 1, "two": 2, "three": 3, "five": 5}
    told = {
        suite: numbers[number]
        for number, names in re.findall(r"^- (\w+): (.*?)(?=^- |\Z)", said, re.S | re.M)
        for suite in re.findall(r"`([\w-]+)`", names)
    }
    few = {}
    for path in sorted((ROOT / "results" / "suites").glob("*.toml")):
        laptop = tomllib.loads(path.read_text(encoding="utf-8")).get("budgets", {}).get("laptop")
        if laptop and len(laptop.get("seeds", [0] * 10)) < 10:
            few[path.stem] = len(laptop["seeds"])
    assert told == few
