"""Where everything stands: who may import whom, and what importing may not cost.

``RANKS`` is the one table of the rooms of ``metabench/``. A module imports its own room and rooms
of a lower rank, inside functions and for type checkers too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RANKS = {
    "core": 0,
    "contract": 1,
    "hypergradients": 2,
    "solvers": 2,
    "datasets": 2,
    "store": 2,
    "problems": 2,
    "suites": 3,
    "run": 4,
    "cluster": 5,
    "analysis": 5,
    "conformance": 5,
    "trackers": 5,
    "reports": 6,
    "api": 7,
    "cli": 8,
}
PLUGINS = {"tasks": 3, "methods": 3, "solvers": 2, "trackers": 5}
"""Folders of plug-ins: no room knows one of them by name, and they know no room above these."""
COMMANDS = "metabench.cli.commands."
TASK_ROOMS = {"data": 0, "models": 1, "families": 2}
NO_TORCH = (
    "core",
    "datasets",
    "store",
    "suites",
    "cluster",
    "analysis",
    "reports",
    "api",
    "cli",
    "trackers",
)
"""Rooms that are imported without torch."""
FIGURES = ("analysis", "reports")
"""Rooms that may import what draws and computes statistics."""
HEAVY = ("torch", "torchvision", "pandas", "matplotlib", "scipy", "submitit", "datasets")
TOP = max(RANKS.values()) + 1


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    out = {}
    for folder in ("metabench", "tasks", "methods"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "metabench" else ("metabench", *parts)
            out[".".join(parts).removesuffix(".__init__")] = file
    return out


KNOWN = modules()


@cache
def imports(module: str) -> tuple[tuple[str, str], ...]:
    """(module, name) of every import, those inside functions too; the name is "" for a module."""
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[tuple[str, str]]:
    package = module.split(".")
    if KNOWN[module].name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(KNOWN[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner, "") if inner in KNOWN else (base, alias.name)


def own(module: str) -> set[str]:
    """The modules of metabench that a module imports."""
    return {m for m, _ in imports(module) if m in KNOWN} - {module}


def room(module: str) -> str:
    """The room that a module stands in; "" for the doors, directly in the package."""
    parts = module.split(".")
    inside = len(parts) > 2 or (len(parts) == 2 and KNOWN[module].name == "__init__.py")
    return parts[1] if inside else ""


def rank(module: str) -> int:
    """The rank of a module's room; the doors stand above all."""
    return RANKS.get(room(module), PLUGINS.get(room(module), TOP))


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def visit(at: str) -> None:
        order[at] = low[at] = len(order)
        stack.append(at)
        for to in sorted(graph[at]):
            if to not in order:
                visit(to)
                low[at] = min(low[at], low[to])
            elif to in stack:
                low[at] = min(low[at], order[to])
        if low[at] == order[at]:
            group = stack[stack.index(at) :]
            del stack[stack.index(at) :]
            if len(group) > 1:
                out.append(sorted(group))

    for at in sorted(graph):
        if at not in order:
            visit(at)
    return out


def test_every_room_has_a_rank() -> None:
    rooms = {f.name for f in (ROOT / "metabench").iterdir() if (f / "__init__.py").is_file()}
    assert rooms == set(RANKS)


def test_the_walk_sees_imports() -> None:
    assert "metabench.hypergradients.unrolled" in own("metabench.methods.maml")
    assert ("torch", "") in set(imports("metabench.tasks.ridge"))
    assert "metabench.tasks.families.episodes.few_shot" in own(
        "metabench.tasks.omniglot"
    )  # relative
    assert "metabench.reports.figures.plots" in own("metabench.api.rendering")  # inside a function
    assert "metabench.run.events" in own("metabench.api.running")  # for type checkers
    assert len(KNOWN) > 150


@pytest.mark.parametrize("module", [m for m in KNOWN if rank(m) < TOP])
def test_every_import_goes_down(module: str) -> None:
    here = room(module)
    for other in own(module):
        if room(other) != here:
            assert other != "metabench", f"{module} imports the door"
            assert rank(other) < rank(module), f"{module} imports {other}"


def test_no_module_reaches_itself() -> None:
    assert circles({m: own(m) for m in KNOWN}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


@pytest.mark.parametrize("module", [m for m in KNOWN if room(m) in PLUGINS])
def test_plugins_share_rooms_and_not_each_other(module: str) -> None:
    for other in own(module):
        if room(other) not in PLUGINS:
            continue
        assert room(other) == room(module), f"{module} imports {other}"
        inside = other.split(".")[2:]
        assert inside[0] in TASK_ROOMS, f"{module} imports {other}: share it in a room of tasks/"
        mine = module.split(".")[2]
        if mine in TASK_ROOMS:
            assert TASK_ROOMS[inside[0]] <= TASK_ROOMS[mine], f"{module} imports {other}"


@pytest.mark.parametrize("module", [m for m in KNOWN if m.startswith(COMMANDS)])
def test_commands_do_not_import_each_other(module: str) -> None:
    assert not [other for other in own(module) if other.startswith(COMMANDS)]


@pytest.mark.parametrize("module", [m for m in KNOWN if room(m) not in PLUGINS])
def test_no_room_knows_a_plugin_by_name(module: str) -> None:
    assert not [other for other in own(module) if room(other) in PLUGINS]


@pytest.mark.parametrize("module", [m for m in KNOWN if room(m) != "cli"])
def test_only_the_command_line_imports_typer(module: str) -> None:
    assert "typer" not in {m.split(".")[0] for m, _ in imports(module)}


def loaded_by(code: str, *heavy: str) -> list[str]:
    """Which of the ``heavy`` modules a fresh interpreter has after running ``code``."""
    check = f"import sys\n{code}\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    return found


def test_importing_metabench_imports_nothing_heavy() -> None:
    assert loaded_by("import metabench", *HEAVY, "numpy", "pydantic", "typer", "rich") == []


def test_rooms_that_need_no_torch_import_without_it() -> None:
    light = [m for m in KNOWN if room(m) in NO_TORCH and room(m) not in FIGURES]
    assert loaded_by("\n".join(f"import {m}" for m in light), *HEAVY) == []
    rest = [m for m in KNOWN if room(m) in FIGURES]
    assert loaded_by("\n".join(f"import {m}" for m in rest), "torch") == []


def test_workers_and_launchers_start_without_torch() -> None:
    names = (
        "events",
        "attempts.failure",
        "tracking",
        "workers.worker",
        "workers.process",
        "workers.pool",
        "workers.local_launcher",
        "workers.rank_processes",
    )
    assert loaded_by("\n".join(f"import metabench.run.{n}" for n in names), *HEAVY) == []


@pytest.mark.parametrize("file", sorted((ROOT / "methods").glob("*.py")), ids=lambda f: f.stem)
def test_methods_leave_counting_to_the_context(file: Path) -> None:
    counting = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("add", "counts")
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "meter"
    ]
    assert not counting, f"{file.name} counts costs by itself in lines {counting}"


def test_the_wheel_holds_every_package() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    packages = {m for m, f in KNOWN.items() if f.name == "__init__.py"}
    assert set(setup["packages"]) == packages | set(setup["package-dir"])
    assert setup["packages"] == sorted(setup["packages"])
