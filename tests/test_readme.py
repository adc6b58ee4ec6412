"""The README: its blocks follow from the records, its Python runs, its badges are true."""

from __future__ import annotations

import csv
import json
import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from test_own_problem_page import run
from test_tutorials import blocks as fenced
from test_tutorials import mismatch

from metabench.core.capabilities import why_not
from metabench.core.registry import methods, solvers, tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.from_results import readme_blocks, readme_figure
from benchmarks.harness.records import committed

ROOT = Path(__file__).parents[1]
SGD: Any = solvers.get("sgd")()
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CODE = next(block.text for block in fenced(README) if block.language == "python")


def test_its_blocks_are_what_the_records_say() -> None:
    page = README
    for name, text in readme_blocks.blocks(ROOT / "results").items():
        page = readme_blocks.placed(page, name, text)
    assert page == README, "python -m benchmarks.from_results.readme_blocks --write"


def test_the_matrix_has_every_method_and_every_task_once() -> None:
    listed = [task for family in readme_blocks.FAMILIES.values() for task in family]
    assert sorted(listed) == sorted(tasks.names())
    assert [m for m in methods.names() if f"[`{m}`](methods/{m}.py)" not in README] == []


def test_what_it_says_of_ranks_that_are_not_told_apart() -> None:
    with (ROOT / "results" / readme_blocks.ARENA / "table.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["ruleset"] == "tuned"]
    worse = {}
    for track in readme_blocks.TRACKS:
        of = [row for row in rows if row["track"] == track]
        *first, last = readme_blocks.shown_of(of)
        apart, ranks = readme_blocks.apart_in(of), [float(row["mean_rank"]) for row in first]
        assert len(ranks) == readme_blocks.MOST == 5 and last["row"] == "fixed"
        assert ranks == sorted(ranks) and ranks[-1] - ranks[0] < apart
        worse[track] = sum(float(last["mean_rank"]) - rank > apart for rank in ranks)
    assert worse == {"A": 5, "C": 5}
    words = " ".join(README.split())
    assert "None of the five of a track is shown to be better than another" in words
    assert "No outer learning is shown to be worse than all five of both" in words


@pytest.mark.parametrize(
    ("method", "formulation"),
    [("protonet", "representation"), ("linear_probe", "representation"), ("cavia", "context")],
)
def test_what_it_says_of_other_formulations(method: str, formulation: str) -> None:
    images = readme_blocks.FAMILIES["few-shot"][:6]
    assert f"`{method}`" in README and f"`{formulation}`" in README
    for task in images:
        shaped: Any = tasks.get(task)
        other: Any = methods.get(method)
        assert why_not(shaped(formulation=formulation), other(), SGD) is None, task


def test_a_pair_that_is_not_applicable_is_not_counted() -> None:
    rows = [
        {"row": "bilevel", "column": "quadratic", "ours_mean": "0.1", "holes": ""},
        {"row": "bilevel", "column": "ridge", "ours_mean": "", "holes": "3 open: not run yet"},
        {"row": "bilevel", "column": "shrinkage", "ours_mean": "", "holes": "3 not applicable: x"},
        {"row": "maml", "column": "omniglot", "ours_mean": "2", "holes": ""},
    ]
    lines = readme_blocks.matrix(rows).splitlines()
    assert lines[2] == "| [`bilevel`](methods/bilevel.py) | 2 |  |  |  |  |  |  |  |"
    assert lines[3] == "| [`maml`](methods/maml.py) |  |  |  |  | 1 |  |  |  |"
    with pytest.raises(ValueError, match=r"no family .* has .'juggling'."):
        readme_blocks.matrix([*rows, {**rows[0], "column": "juggling"}])


def test_a_missing_marker_is_named() -> None:
    with pytest.raises(ValueError, match=r"README.md has 0 lines '<!-- matrix: "):
        readme_blocks.placed("no marker", "matrix", "text")


def test_marks_of_notes_are_left_out_and_nothing_else() -> None:
    page = "### T\n\n| a | b |\n|:--|--:|\n| MAML | 98.7 ± 0.4 <sup>a</sup> |\n\n- | not | it |\n"
    assert readme_blocks.beside_papers(page).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| MAML | 98.7 ± 0.4 |",
    ]


@pytest.mark.slow
def test_its_ten_lines_run(tmp_path: Path) -> None:
    lines = [line for line in CODE.splitlines() if line.strip()]
    assert len([line for line in lines if "import" not in line]) <= 10
    short = CODE.replace("(suite, ", "(suite, budget='smoke', ")
    assert short != CODE
    # Without a seed of its own torch starts from another one in every process.
    seeded = [
        short.replace("import torch\n", f"import torch\ntorch.manual_seed({n})\n") for n in (1, 2)
    ]
    printed = []
    for n, code in enumerate(seeded):
        (tmp_path / str(n)).mkdir()
        printed.append(run(code, tmp_path / str(n)))
    assert "fixed, bilevel, ift, pbgd on cleaning (budget smoke)" in printed[0]
    assert printed[0] == printed[1]


@pytest.mark.slow
def test_its_ten_lines_print_what_it_says(tmp_path: Path) -> None:
    shown = re.search(r"```\n\n((?:    .*\n)+)", README[README.index(CODE) :])
    assert shown is not None
    expected = "...\n" + "".join(line[4:] + "\n" for line in shown[1].splitlines())
    assert (wrong := mismatch(expected, run(CODE, tmp_path))) == "", wrong


def ends() -> dict[str, dict[str, list[float]]]:
    """The median relative error of four ways on each problem of the figure's suite: "cg 20",
    "cg 40", "neumann 1000", "unrolled 1000", "pbgd 1000", by products or inner steps."""
    found = defaultdict(lambda: defaultdict(list))
    for record in committed(readme_figure.RECORDS).values():
        cell, how = record.cell, record.cell.method_settings
        if (name := readme_figure.line_of(cell)) and how["inner_steps"] == readme_figure.STEPS:
            spent = how["terms"] if name in ("cg", "neumann") else how["inner_steps"]
            problem = json.dumps(cell.task_settings, sort_keys=True)
            error = record.metrics["test"]["relative_error"].mean
            found[problem][f"{name} {spent}"].append(error)
    assert {len(e) for of in found.values() for e in of.values()} == {10} and len(found) == 4
    return {p: {name: median(e) for name, e in of.items()} for p, of in found.items()}


def test_the_figures_caption_says_what_its_medians_are() -> None:
    found = ends()
    of = found.values()
    per_cent = sorted(100 * errors["pbgd 1000"] for errors in of)
    words = " ".join(README.split())
    assert f"ends between {per_cent[0]:.1f} and {per_cent[-1]:.0f} per cent. Medians" in words
    told = "conjugate gradient reaches with 40 products an episode what"
    assert "On all [four problems]" in words
    assert f"{told} unrolling and Neumann series reach with 1,000" in words
    results = " ".join((ROOT / "results/README.md").read_text(encoding="utf-8").split())
    assert f"{told} they reach with 1,000" in results
    others = [min(errors["neumann 1000"], errors["unrolled 1000"]) for errors in of]
    assert all(e["cg 40"] < other for e, other in zip(of, others, strict=True))
    assert not all(e["cg 20"] < other for e, other in zip(of, others, strict=True))
    (network,) = [errors for problem, errors in found.items() if '"mlp"' in problem]
    assert f"nothing gets far below {100 * min(network.values()):.0f} per cent" in words


def test_the_first_figure_is_of_the_committed_records() -> None:
    from PIL import Image

    found = readme_figure.lines(committed(readme_figure.RECORDS).values())
    with Image.open(readme_figure.PICTURE) as picture:
        shown = json.loads(picture.info["Description"])
    assert shown == json.loads(json.dumps(found)), (
        "python -m benchmarks.from_results.readme_figure --write"
    )
    assert readme_figure.PICTURE.stat().st_size < 100_000
    assert [len(points) for points in found.values()] == [6, 5, 5, 1]
    name = readme_figure.PICTURE.relative_to(ROOT).as_posix()
    assert README.index(f"({name})") < README.index("\n## ")


def test_its_badges_are_true() -> None:
    assert f"python-{PROJECT['requires-python'].removeprefix('>=')}%2B-" in README
    assert f"licence-{PROJECT['license']}-" in README
