"""Who may import whom, and what importing may not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted(f for at in (".", "cluster") for f in (ROOT / "metabench" / at).glob("*.py"))
PARTS = sorted(
    file
    for folder in ("tasks", "methods", "metabench/solvers")
    for file in (ROOT / folder).glob("*.py")
)
CONTRACT = {
    "best_response",
    "blocks",
    "causal",
    "cell",
    "comoment",
    "context",
    "convolution",
    "data",
    "errors",
    "fidelity",
    "first_block",
    "fused",
    "gated",
    "grads",
    "implicit",
    "lora",
    "lora_peft",
    "meter",
    "method",
    "problem",
    "registry",
    "search",
    "settings",
    "softmax",
    "solver",
    "unroll",
}
"""What tasks, methods and solvers may know."""
REPORTS = [
    "stats",
    "results",
    "entries",
    "long",
    "formats",
    "notes",
    "tables",
    "plots",
    "frontier",
    "report",
]
LIGHT = [
    "errors",
    "registry",
    "settings",
    "cell",
    "suite",
    "record",
    "claim",
    "store",
    "events",
    "launch",
    "worker",
    "progress",
    "plan",
    "packages",
    "listing",
    "show",
    "api",
    "options",
    "cli",
    "verbs",
    "screen",
    "doctor",
    "new",
    "merge",
    "costs",
    "cluster.profile",
    "cluster.slurm",
    "cluster.snapshot",
    "cluster.folder",
    "cluster.arrange",
    "cluster.queue",
    "cluster.submit",
    "cluster.standing",
    "cluster.element",
    "cluster.probe",
    "cluster.verbs",
]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield node.level, base
            yield from ((node.level, f"{base}.{alias.name}".strip(".")) for alias in node.names)


def core_modules(file: Path) -> set[str]:
    """The modules of metabench that a file imports, by absolute name."""
    found = set()
    for level, name in imports(file):
        first, _, rest = name.partition(".")
        if level == 0 and first == "metabench" and rest:
            found.add(rest.split(".")[0])
    return {
        m
        for m in found
        if (ROOT / "metabench" / f"{m}.py").exists()
        or m in ("tasks", "methods", "solvers", "suites")
    }


def test_the_walk_sees_imports() -> None:
    assert {"unroll", "registry", "problem"} <= core_modules(ROOT / "methods" / "maml.py")
    assert (0, "torch") in set(imports(ROOT / "tasks" / "ridge.py"))
    assert len(PARTS) > 8 and len(CORE) > 20


@pytest.mark.parametrize("file", PARTS, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_tasks_methods_and_solvers_know_the_contract_only(file: Path) -> None:
    assert core_modules(file) <= CONTRACT
    for level, name in imports(file):
        assert level <= 1, f"{file.name} reaches out of its folder: {'.' * level}{name}"
        if level == 1 and name:
            sibling = name.split(".")[0]
            assert (file.parent / f"{sibling}.py").exists(), f"{file.name} imports .{name}"
            assert sibling.startswith("_"), f"{file.name} imports {sibling}: share a _helper"


@pytest.mark.parametrize("file", CORE, ids=lambda f: f.name)
def test_the_core_knows_no_task_and_no_method_by_name(file: Path) -> None:
    assert not core_modules(file) & {"tasks", "methods", "solvers"}


@pytest.mark.parametrize(
    "file", [ROOT / "metabench" / f"{m}.py" for m in REPORTS], ids=lambda f: f.name
)
def test_reports_know_nothing_of_torch_or_of_running(file: Path) -> None:
    names = {name.split(".")[0] for level, name in imports(file) if level == 0}
    assert "torch" not in names
    running = {"runner", "loop", "launch", "worker", "checkpoint", "method", "problem", "grads"}
    assert not core_modules(file) & running


def test_nothing_imports_the_command_line() -> None:
    for file in CORE:
        if file.name not in ("__main__.py", "cli.py", "verbs.py"):
            assert not core_modules(file) & {"cli", "verbs", "options", "screen"}, file.name
        if file.name not in ("cli.py", "verbs.py", "options.py"):
            names = {name.split(".")[0] for level, name in imports(file) if level == 0}
            assert "typer" not in names, file.name


def loaded_by(code: str, *heavy: str) -> list[str]:
    """Which of the ``heavy`` modules a fresh interpreter has after running ``code``."""
    check = f"import sys\n{code}\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    return found


HEAVY = ("torch", "torchvision", "pandas", "matplotlib", "scipy", "submitit", "datasets")


def test_importing_metabench_imports_nothing_heavy() -> None:
    assert loaded_by("import metabench", *HEAVY, "numpy", "pydantic", "typer", "rich") == []


def test_layers_above_the_runner_import_without_torch() -> None:
    code = "\n".join(f"import metabench.{name}" for name in LIGHT)
    assert loaded_by(code, *HEAVY) == []


def test_report_layers_import_without_torch() -> None:
    there = [m for m in REPORTS if (ROOT / "metabench" / f"{m}.py").exists()]
    assert loaded_by("\n".join(f"import metabench.{name}" for name in there), "torch") == []


def test_lazy_names_are_those_that_are_promised() -> None:
    import metabench

    assert metabench.make_cell is __import__("metabench.core.cell", fromlist=["cell"]).make_cell
    assert metabench.Problem.__module__ == "metabench.contract.problem"
    assert set(metabench.__all__) <= set(dir(metabench))
    for name in metabench.__all__:
        assert getattr(metabench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Probelm'"):
        metabench.Probelm  # noqa: B018
