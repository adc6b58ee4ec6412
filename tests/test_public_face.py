"""The seven import paths: what they show, what they say of it, and that plug-ins need no other."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from types import ModuleType

import pytest

import metabench

ROOT = Path(__file__).parents[1]
PATHS = ("metabench", *(f"metabench.{name}" for name in sorted(metabench._DOORS)))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^ +((?:from|import) metabench.*)$", re.MULTILINE)
DOTTED = re.compile(r"`(metabench(?:\.\w+)+)")


def shown(path: str) -> dict[str, object]:
    """The names that a public path shows."""
    module = importlib.import_module(path)
    return {name: getattr(module, name) for name in module.__all__}


def is_public(dotted: str) -> bool:
    """Whether a dotted name is a public path, or a name that one shows (or a part of that)."""
    if dotted in PATHS:
        return True
    path = ".".join(dotted.split(".")[:2])
    path = path if path in PATHS else "metabench"
    return dotted.removeprefix(f"{path}.").split(".")[0] in shown(path)


def private(source: str) -> list[str]:
    """What of metabench some Python imports, or takes from a door, that is not public."""
    used, doors = [], {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used += [alias.name for alias in node.names]
            doors |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            whole = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            used += whole.values()
            doors |= {name: path for name, path in whole.items() if path in PATHS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.append(f"{doors.get(node.value.id, '')}.{node.attr}")
    return [name for name in used if name.split(".")[0] == "metabench" and not is_public(name)]


def sources() -> Iterator[tuple[str, str]]:
    """Everything that a newcomer copies: (where, Python)."""
    for file in sorted((ROOT / "tests" / "third_party").rglob("*.py")):
        yield file.name, file.read_text(encoding="utf-8")
    for file in sorted((ROOT / "metabench" / "api" / "templates").glob("*.py.txt")):
        template = Template(file.read_text(encoding="utf-8"))
        yield file.name, template.substitute(name="mine", class_name="Mine")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text(encoding="utf-8")
        for number, fence in enumerate(FENCE.findall(text)):
            yield f"{file.name}, block {number}", fence
        for line in LINE.findall(FENCE.sub("", text)):
            yield f"{file.name}: {line}", line


SOURCES = dict(sources())


@pytest.mark.parametrize("where", SOURCES)
def test_what_newcomers_copy_uses_public_paths_only(where: str) -> None:
    assert private(SOURCES[where]) == []


def test_there_is_something_to_look_at() -> None:
    using = [
        where for where, source in SOURCES.items() if "import" in source and "metabench" in source
    ]
    assert {"method.py.txt", "task.py.txt", "cleaning.py", "central_differences.py"} <= {*using}
    for page in ("README.md", "add-a-task.md", "add-a-method.md"):
        assert any(where.startswith(page) for where in using), page


@pytest.mark.parametrize("page", ["README.md", "docs/add-a-task.md", "docs/add-a-method.md"])
def test_pages_name_public_paths_only(page: str) -> None:
    names = DOTTED.findall((ROOT / page).read_text(encoding="utf-8"))
    groups = {f"metabench.{kind}s" for kind in ("task", "method", "solver")}  # entry points
    assert names and [n for n in names if n not in groups and not is_public(n)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from metabench import Problem, task, autodiff", []),
        ("import metabench.api\nfrom torch import nn", []),
        ("from metabench.testing import check_task", []),
        ("from metabench import autodiff as ad\nad.grad(ad.leaf(x), y.grads)", []),
        ("from metabench import autodiff as ad\nad._backward()", ["metabench.autodiff._backward"]),
        ("from metabench import core", ["metabench.core"]),
        ("from metabench import Store", ["metabench.Store"]),
        ("import metabench.contract.problem", ["metabench.contract.problem"]),
        ("def f():\n    from metabench.core.cell import Cell", ["metabench.core.cell.Cell"]),
        ("from metabench.implicit import _add", ["metabench.implicit._add"]),
        ("import metabench\nmetabench.run_cell()", ["metabench.run_cell"]),
    ],
)
def test_private_names_are_found(source: str, found: list[str]) -> None:
    assert private(source) == found


def test_the_front_shows_its_names_and_no_more() -> None:
    assert dir(metabench) == metabench.__all__ == sorted({*metabench.__all__})
    for name, home in metabench._HOME_OF.items():
        there = getattr(importlib.import_module(f"metabench.{home}"), name)
        assert getattr(metabench, name) is there
    with pytest.raises(AttributeError, match="no attribute 'Probelm'"):
        metabench.Probelm  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The names under TYPE_CHECKING are those that are found when asked for, from one home."""
    tree = ast.parse(Path(str(metabench.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    homes = {name: f"metabench.{home}" for name, home in metabench._HOME_OF.items()}
    assert found == homes | dict.fromkeys(metabench._DOORS, "metabench")
    assert {*metabench.__all__} == {*found, "__version__"}


@pytest.mark.parametrize("path", PATHS[1:])
def test_a_door_shows_what_it_imports(path: str) -> None:
    module = importlib.import_module(path)
    there = {n for n, x in vars(module).items() if n[0] != "_" and not isinstance(x, ModuleType)}
    assert set(module.__all__) == there
    assert list(module.__all__) == sorted(module.__all__)


@pytest.mark.parametrize("path", PATHS)
def test_all_that_is_shown_says_what_it_is(path: str) -> None:
    for name, thing in shown(path).items():
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if not thing.__module__.startswith("metabench."):
            continue  # an alias, such as Params
        doc = thing.__doc__ or ""
        assert doc and not doc.startswith(f"{name}("), f"{path}.{name} has no docstring"
        for part, member in vars(thing).items() if inspect.isclass(thing) else ():
            if part[0] != "_" and (inspect.isfunction(member) or isinstance(member, property)):
                assert member.__doc__, f"{path}.{name}.{part} has no docstring"


@pytest.mark.parametrize("path", PATHS)
def test_the_examples_run(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the path itself, at least one; and of every function and class that it shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METABENCH_STORE", raising=False)
    module = importlib.import_module(path)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    documented = [x for x in shown(path).values() if callable(x)] if path != "metabench" else []
    for thing in (module, *documented):
        name = getattr(thing, "__name__", path)
        for example in finder.find(thing, name, module=False, globs={}):
            assert runner.run(example).failed == 0, name
    result = runner.summarize(verbose=False)
    assert result.attempted >= 2 and result.failed == 0


def test_verbs_say_what_they_take() -> None:
    for name, verb in shown("metabench.api").items():
        if not inspect.isfunction(verb):
            continue
        signature = inspect.signature(verb)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            assert parameter.annotation not in (inspect.Parameter.empty, "Any"), (name, parameter)
            assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), name
