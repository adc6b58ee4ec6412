from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from optional import needs

from metabench.api.examination import _wanted
from metabench.core import registry
from metabench.core.environment import optional_packages
from metabench.store.store import Store
from metabench.suites import planning

ROOT = Path(__file__).parents[3]


def versions() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("versions", ROOT / ".ci" / "versions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known: dict[str, str] = module.bounds()
    return known


def test_every_package_has_a_lowest_version() -> None:
    known = versions()
    assert "torch" in known and "transformers" in known and "pytest" in known
    assert not [name for name, lowest in known.items() if not lowest]


def test_what_is_recorded_as_tested_is_asked_for_and_not_too_old() -> None:
    known = versions()
    for name, newest in optional_packages.newest_tested().items():
        assert name in known, f"constraints name {name}, pyproject.toml does not"
        lowest, number = map(optional_packages.version_tuple, (known[name], newest))
        assert lowest <= number, name


@pytest.mark.parametrize(
    "wanted", ["numpy", "numpy==2.1", "numpy>=2", "numpy[a,b]>=2,<3", "./a b", "a$b", "a*", "~/x"]
)
def test_a_shell_gives_pip_the_requirement_that_is_meant(wanted: str) -> None:
    command = optional_packages.pip_install(wanted, upgrade=True)
    assert shlex.split(command) == ["pip", "install", "--upgrade", wanted]
    printed = subprocess.run(
        ["sh", "-c", command.replace("pip install", "printf '%s|'")], capture_output=True, text=True
    )
    assert printed.stdout == f"--upgrade|{wanted}|"
    assert ("[" in wanted) <= (f'"{wanted}"' in command)


def test_extras_of_a_requirement_are_no_part_of_its_name() -> None:
    assert optional_packages.required("mkdocstrings[python]>=1.0.4") == "mkdocstrings"
    assert optional_packages.recipe("mkdocstrings") == (optional_packages.install_extra("docs"),)
    assert "mkdocstrings" in _wanted() and not [n for n in _wanted() if "[" in n]


def test_no_requirement_is_listed_twice() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    listed = [line.split(">")[0].split("=")[0] for lines in groups for line in lines]
    assert len(listed) == len(set(listed))


def test_a_package_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poor_package.py").write_text("raise RuntimeError('built for another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    optional_packages.why_not.cache_clear()
    said = "poor_package cannot be imported: RuntimeError: built for another torch"
    assert optional_packages.why_not("poor_package") == said
    assert optional_packages.why_not("no_such_package") == "no_such_package is not installed"
    assert optional_packages.why_not("json") == ""


def test_what_a_package_says_on_being_imported_is_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "import sys, warnings\nwarnings.warn('old')\nprint('unmaintained', file=sys.stderr)\n"
    (tmp_path / "loud_package.py").write_text(says)
    monkeypatch.syspath_prepend(tmp_path)
    optional_packages.why_not.cache_clear()
    assert optional_packages.why_not("loud_package") == "" and "loud_package" in sys.modules
    assert capsys.readouterr() == ("", "")


def packages_of(name: str) -> tuple[str, ...]:
    """What a task or a method asks for."""
    known = {n: r for r in registry.REGISTRIES.values() for n in r.names()}
    return tuple(getattr(known[name].get(name)(), "packages", ()))


@pytest.mark.parametrize(
    ("package", "task", "method"),
    [
        ("optuna", "quadratic", "optuna_tpe"),
        ("learn2learn", "quadratic", "maml_learn2learn"),
        ("transformers", "self_edit_policy", "restem"),
        ("safetensors", "self_edit_policy", "restem"),
    ],
)
def test_a_broken_package_spoils_only_its_own_cells(
    package: str, task: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in {*packages_of(task), *packages_of(method)} - {package}:
        needs(other)  # the first that lacks is the one that is named
    (tmp_path / f"{package}.py").write_text("raise RuntimeError('broken on purpose')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    optional_packages.why_not.cache_clear()
    try:
        made = planning.choose(planning.suite_of_pairs([task], [method]), "smoke")
        (its,) = planning.plan(made, Store(tmp_path / "runs"))
        other = planning.choose(planning.suite_of_pairs(["quadratic"], ["bilevel"]), "smoke")
        (sound,) = planning.plan(other, Store(tmp_path / "runs"))
    finally:
        optional_packages.why_not.cache_clear()
    assert package in (*packages_of(task), *packages_of(method))
    assert its.state in ("missing package", "not applicable")
    if its.state == "missing package":
        assert its.reason == f"{package} cannot be imported: RuntimeError: broken on purpose"
        assert its.repair
    assert sound.state == "open"
