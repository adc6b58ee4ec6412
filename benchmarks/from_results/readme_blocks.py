"""The blocks of the README that follow from committed results: two tables and a matrix.

    python -m benchmarks.from_results.readme_blocks            prints them
    python -m benchmarks.from_results.readme_blocks --write    puts them into README.md, each
                                                               between its markers

``omniglot`` is the published table without its notes. ``arena`` has a table for each of an arena's
tracks A and C: who stands highest, and no outer learning. ``matrix`` counts on how many tasks of a
family a method runs, from the suite ``crossing``: run, or to be run where the data is; what is not
applicable does not count. Nothing is measured.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from metabench.analysis.stats import critical_difference
from metabench.store.files import write_atomic

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
README = ROOT / "README.md"
ARENA = "arena-1/laptop"
TRACKS = {"A": "lam in the inner loss", "C": "few bounded scalars"}
SHOWN = {"rank": ("mean_rank", 1), "score": ("score", 2), "retrained": ("score_retrained", 2)}
"""Columns of an arena's table: the field of its file, and digits."""
MOST = 5
"""Rows of a track's table beside no outer learning."""
NOTE = re.compile(r" *<sup>\w+</sup>")

FAMILIES = {
    "known answers": (
        *("quadratic", "ridge", "least_squares", "shrinkage", "two_minima", "pbgd_toy"),
        *("step_size", "schedule_quadratic", "influence_balancing", "noise_level"),
        *("exact_decay", "exact_representation"),
    ),
    "regularisation": (
        *("weight_decay", "multinomial", "newsgroups", "digit_regression", "kernel_ridge"),
        *("regularised_mnist", "layerwise_prior", "rotation_range", "optimiser_constants"),
        *("tv_denoise", "foe_denoise"),
    ),
    "data": (
        *("hyper_cleaning", "distillation", "self_edit_weights", "pretrain_synthetic"),
        *("pretrain_multitask", "pretrain_ppi", "pretrain_ecg", "pretrain_ptbxl"),
    ),
    "losses, augmentations, optimisers": (
        *("loss_learning", "loss_regression", "augmentation", "learned_optimiser"),
    ),
    "few-shot": (
        *("omniglot", "miniimagenet", "cifar_fs", "fc100", "caltech101_fs", "glyphs"),
        *("sinusoid", "inr"),
    ),
    "games": ("bilinear", "dirac_gan", "two_mode_gan", "prisoners"),
    "policies, configurations": (
        *("self_edit_policy", "self_edit_recipe", "recipe_bandit", "rag_squad"),
    ),
    "inner solvers": ("polar_factor", "spectral_risk", "retraining", "tagi_regression", "control"),
}
"""Columns of the matrix, each with its tasks: every task once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the blocks, or write them into the README."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.from_results.readme_blocks",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("--write", action="store_true", help="into README.md")
    given = parser.parse_args(arguments)
    found = blocks(RESULTS)
    if given.write:
        page = README.read_text(encoding="utf-8")
        for name, text in found.items():
            page = placed(page, name, text)
        write_atomic(README, page.encode())
        print(f"wrote {', '.join(found)} into {README.name}")
    else:
        print("\n\n".join(found.values()))
    return 0


def blocks(results: Path) -> dict[str, str]:
    """The text of each block, from a folder of published suites."""
    with (results / "crossing/laptop/table.csv").open(encoding="utf-8", newline="") as file:
        crossing = list(csv.DictReader(file))
    page = (results / "omniglot/laptop/table.md").read_text(encoding="utf-8")
    with (results / ARENA / "table.csv").open(encoding="utf-8", newline="") as file:
        arena = standings(csv.DictReader(file))
    return {"omniglot": beside_papers(page), "arena": arena, "matrix": matrix(crossing)}


def standings(rows: Iterable[dict[str, str]]) -> str:
    """A table for each track: of its tuned methods the first ``MOST`` by mean rank, and no outer
    learning last. Its title says how far apart ranks are that differ."""
    tracks: dict[str, list[dict[str, str]]] = {track: [] for track in TRACKS}
    for row in rows:
        if row["ruleset"] == "tuned" and row["track"] in tracks:
            tracks[row["track"]].append(row)
    lines = []
    for track, of in tracks.items():
        problems, apart = int(of[0]["problems"]), apart_in(of)
        lines += [
            f"Track {track}, {TRACKS[track]}: {len(of)} methods, {problems} problems; ranks differ "
            f"where they lie {apart:.1f} apart\n",
            _line(["method", *SHOWN]),
            _line(["---", *["---:"] * len(SHOWN)]),
        ]
        for row in shown_of(of):
            numbers = (f"{float(row[field]):.{digits}f}" for field, digits in SHOWN.values())
            lines.append(_line([row["label"], *numbers]))
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def apart_in(rows: Sequence[dict[str, str]]) -> float:
    """Nemenyi's critical difference of a track's mean ranks, at 5 %."""
    return critical_difference(len(rows), int(rows[0]["problems"]))


def shown_of(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a track's table."""
    ranked = sorted(rows, key=lambda row: float(row["mean_rank"]))
    first = [row for row in ranked if row["row"] != "fixed"][:MOST]
    return [*first, *(row for row in ranked if row["row"] == "fixed")]


def beside_papers(page: str) -> str:
    """The first table of a published page, without marks of notes."""
    lines = [line for line in page.partition("\n- ")[0].splitlines() if line.startswith("|")]
    rows = [[NOTE.sub("", cell).strip() for cell in line.strip("|").split("|")] for line in lines]
    rows[1] = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(_line(cells) for cells in rows)


def matrix(rows: Iterable[dict[str, str]]) -> str:
    """Methods by families of tasks, and the tasks of each family, of a crossing's table.

    Raises :class:`ValueError` for a task that no family has.
    """
    pairs: dict[str, set[str]] = {}
    for row in rows:
        runs = pairs.setdefault(row["row"], set())
        if row["ours_mean"] or "not applicable" not in row["holes"]:
            runs.add(row["column"])
    known = {task for tasks in FAMILIES.values() for task in tasks}
    if missing := set().union(*pairs.values()) - known:
        raise ValueError(
            f"no family in benchmarks/from_results/readme_blocks.py has {sorted(missing)}"
        )
    head = [f"{name} ({len(tasks)})" for name, tasks in FAMILIES.items()]
    lines = [_line(["method", *head]), _line(["---", *["---:"] * len(head)])]
    for method, runs in pairs.items():
        counts = [len(runs.intersection(tasks)) for tasks in FAMILIES.values()]
        lines.append(_line([f"[`{method}`](methods/{method}.py)", *(str(n or "") for n in counts)]))
    lines += ["", _line(["family", "tasks"]), _line(["---", "---"])]
    for name, tasks in FAMILIES.items():
        lines.append(_line([name, ", ".join(f"[`{task}`](tasks/{task}.py)" for task in tasks)]))
    return "\n".join(lines)


def placed(page: str, name: str, text: str) -> str:
    """A page with this text between the markers of a block.

    Raises :class:`ValueError` where a marker is missing or stands twice.
    """
    begin, end = (
        f"<!-- {name}: python -m benchmarks.from_results.readme_blocks --write -->",
        f"<!-- {name} ends -->",
    )
    for mark in (begin, end):
        if page.count(mark) != 1:
            raise ValueError(f"{README.name} has {page.count(mark)} lines {mark!r}, not 1")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
