from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metabench.api import examination
from metabench.core import registry
from metabench.core.errors import MetabenchError, UnknownName, WrongPath
from metabench.core.registry import Registry, load_plugin, methods, solvers, tasks

PLUGIN = '''"""Two lines,

of which the first is shown."""
from dataclasses import dataclass
from metabench.contract.solver import Solver
from metabench.core.registry import solvers

@solvers.register("{name}")
@dataclass(frozen=True)
class Halved(Solver):
    """Half of plain gradient descent."""
    def init(self, theta): return {{}}
    def update(self, theta, grad, memory, lr, noise=None):
        return {{k: theta[k] - 0.5 * lr * grad[k] for k in theta}}, memory
'''


def test_built_ins_are_the_files() -> None:
    assert {"bilevel", "maml", "reptile", "fixed", "random"} <= set(methods.names())
    assert {"quadratic", "ridge"} <= set(tasks.names())
    assert {"sgd", "momentum", "adam"} <= set(solvers.names())
    assert not [n for r in registry.REGISTRIES.values() for n in r.names() if n.startswith("_")]


def test_entries_have_an_origin_and_a_line() -> None:
    for entry in [e for r in registry.REGISTRIES.values() for e in r.entries()]:
        assert entry.summary.strip() and "\n" not in entry.summary, entry
        assert entry.origin


def test_names_and_entries_import_no_built_in() -> None:
    code = (
        "import sys; from metabench.core.registry import REGISTRIES\n"
        "for r in REGISTRIES.values(): r.entries()\n"
        "bad = [m for m in sys.modules if m == 'torch' or m.startswith(('metabench.tasks.',"
        " 'metabench.methods.', 'metabench.solvers.'))]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_get_gives_the_class_under_its_name() -> None:
    for kind in registry.REGISTRIES.values():
        for entry in kind.entries():
            if entry.origin == "built-in":
                assert kind.get(entry.name).registered_name == entry.name  # type: ignore[attr-defined]


def test_an_unknown_name_comes_with_near_ones() -> None:
    with pytest.raises(UnknownName, match="no method 'bilvel'; near: bilevel") as error:
        methods.get("bilvel")
    assert error.value.near[0] == "bilevel"
    assert "reptile" in error.value.known


def test_a_plugin_file_registers(plugins_forgotten: None, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="halved"))
    load_plugin(path)
    load_plugin(path)  # once more does no harm
    assert solvers.get("halved").__doc__ == "Half of plain gradient descent."
    entry = next(e for e in solvers.entries() if e.name == "halved")
    assert (entry.origin, entry.summary) == ("plug-in", "Half of plain gradient descent.")
    assert os.environ["METABENCH_PLUGINS"] == str(path)


def test_child_processes_find_plugins(plugins_forgotten: None, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    # Registered by hand: the base of a solver's class would import torch, which takes seconds.
    path.write_text(
        "from metabench.core.registry import solvers\n"
        "class Halved: pass\n"
        "solvers._classes['halved'] = Halved\n"
    )
    load_plugin(path)
    code = (
        "from metabench.core.registry import *; load_plugins(); assert 'halved' in solvers.names()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_plugins_that_cannot_be(plugins_forgotten: None, tmp_path: Path) -> None:
    with pytest.raises(MetabenchError, match="no plug-in file"):
        load_plugin(tmp_path / "none.py")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(MetabenchError, match=r"no plug-in file .*: it is not called NAME\.py$"):
        load_plugin(tmp_path / "mine.txt")
    (tmp_path / "a").mkdir()
    with pytest.raises(MetabenchError, match=r"no plug-in file .*: it is a folder$"):
        load_plugin(tmp_path / "a")
    for place in (tmp_path, tmp_path / "a"):
        (place / "same.py").write_text("")
    load_plugin(tmp_path / "same.py")
    with pytest.raises(MetabenchError, match="two plug-in files are called 'same'"):
        load_plugin(tmp_path / "a" / "same.py")


def test_a_plugin_that_fails_is_forgotten(plugins_forgotten: None, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(WrongPath, match="line 1: ZeroDivisionError") as error:
        load_plugin(path)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert "metabench_plugin_broken" not in sys.modules
    assert "METABENCH_PLUGINS" not in os.environ
    path.write_text("")
    load_plugin(path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"from metabench.problem import Problem", r"'metabench.problem'; .* metabench: .*Problem"),
        (b"from metabench import Probelm", "cannot import name 'Probelm' .*; .* metabench: "),
        (b"import none_such", ", line 1: No module named 'none_such'$"),
        (b"\nfrom metabench import errors\nraise KeyError('x')", ", line 3: KeyError: 'x'$"),
        (b"import sys\nsys.exit(3)", ", line 2: SystemExit: 3$"),
        (b"import json\njson.loads('')", ", line 2: JSONDecodeError: Expecting value"),
        (b"def f(:", r": .*old.py, line 1\)$"),
        (b"x = 'caf\xe9'", r": .*'utf-8' codec can't decode byte 0xe9 .*old.py, line 1\)$"),
        (b"x = '\0'", ": source code string cannot contain null bytes$"),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_so_in_a_line(
    plugins_forgotten: None, tmp_path: Path, source: bytes, said: str
) -> None:
    path = tmp_path / "old.py"
    path.write_bytes(source)
    with pytest.raises(MetabenchError, match=f"^plug-in {path}.*{said}"):
        load_plugin(path)
    assert "metabench_plugin_old" not in sys.modules


def test_a_name_can_be_taken_once(plugins_forgotten: None, tmp_path: Path) -> None:
    solvers.get("sgd")
    path = tmp_path / "thief.py"
    path.write_text(PLUGIN.format(name="sgd"))
    with pytest.raises(WrongPath, match="two solvers are called 'sgd'"):
        load_plugin(path)


def test_a_built_in_that_nobody_has_asked_for_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "thief.py"
    path.write_text(PLUGIN.format(name="sgd"))
    code = (
        "import sys; from metabench.core.errors import MetabenchError\n"
        "from metabench.core.registry import load_plugin, solvers\n"
        "try: load_plugin(sys.argv[1])\n"
        "except MetabenchError as error: print(error)\n"
        "print(solvers.get('sgd').__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "two solvers are called 'sgd': metabench.solvers.sgd and metabench_plugin_thief",
        "metabench.solvers.sgd",
    ]


@pytest.mark.parametrize("known", registry.REGISTRIES.values(), ids=lambda r: r.kind)
def test_what_is_registered_derives_from_the_contract(known: Registry) -> None:
    public = f"metabench.{known.kind.title()}"
    said = rf"'plain': class Plain .* derive from {public}; write: class Plain\({public}\)$"
    with pytest.raises(MetabenchError, match=said):
        known.register("plain")(type("Plain", (), {}))
    assert "plain" not in known.names()


@pytest.mark.parametrize(
    ("body", "lacks"),
    [
        ("class New(metabench.Method): needs = frozenset()", "adapt, init and step"),
        ("class New(metabench.GradientMethod): pass", "hypergradient"),
        ("class New(metabench.Solver): pass", "init and update"),
        ("class New(metabench.Task): data = offers = ()", "build"),
        ("class New(metabench.GradientMethod):\n    def step(self, ctx, state): ...", ""),
        (
            "class New(metabench.GradientMethod):\n    def hypergradient_from(self, c, s, e): ...",
            "",
        ),
    ],
)
def test_a_class_without_what_it_must_have_is_told_when_it_is_registered(
    plugins_forgotten: None, tmp_path: Path, body: str, lacks: str
) -> None:
    kind = "task" if ".Task" in body else "solver" if ".Solver" in body else "method"
    path = tmp_path / "unfinished.py"
    path.write_text(f"import metabench\n@metabench.{kind}('new')\n{body}\n")
    if lacks:
        with pytest.raises(MetabenchError, match=f"^{kind} 'new': class New lacks {lacks}$"):
            load_plugin(path)
    else:
        load_plugin(path)


def test_a_file_that_registers_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "others_of_metabench"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "thing.py").write_text('"""A thing."""')
    monkeypatch.syspath_prepend(tmp_path)
    things = Registry("thing", "others_of_metabench", "metabench.none_such")
    assert [(e.name, e.origin, e.summary) for e in things.entries()] == [
        ("thing", "built-in", "A thing.")
    ]
    with pytest.raises(MetabenchError, match="does not register a thing called 'thing'"):
        things.get("thing")


def test_entry_points_are_found_and_named_by_their_package(
    plugins_forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "third_party.py").write_text(PLUGIN.format(name="ignored"))
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metabench.solvers]\nthird = third_party:Halved\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = next(e for e in solvers.entries() if e.name == "third")
    assert (entry.origin, entry.summary) == ("third-party", "Two lines,")
    assert "third_party" not in sys.modules
    assert solvers.get("third").__name__ == "Halved"
    assert next(e for e in solvers.entries() if e.name == "third").origin == "third-party"
    sys.modules.pop("third_party")


def test_a_package_that_cannot_be_imported_is_told_by_its_name(
    plugins_forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metabench.solvers]\nthird = third_party:Halved\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source, summary in (
        (b"1 / 0", ""),
        (b"def f(:", "(cannot be read: "),
        (b"\xe9", "(cannot"),
    ):
        (tmp_path / "third_party.py").write_bytes(source)
        entry = next(e for e in solvers.entries() if e.name == "third")
        assert entry.summary.startswith(summary)
        with pytest.raises(MetabenchError, match=r"^solver .third. from third-party: "):
            solvers.get("third")
    [found] = [f for f in examination._third_parties([]) if f.bad]
    assert found.name == "solver third" and "from third-party: " in found.detail


def test_names_that_packages_share_are_told(
    plugins_forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "third_party.py").write_text(PLUGIN.format(name="ignored"))
    for package, names in {"one": ("sgd", "both"), "other": ("both", "own")}.items():
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        points = "".join(f"{name} = third_party:Halved\n" for name in names)
        (info / "entry_points.txt").write_text(f"[metabench.solvers]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    assert solvers.clashes() == {"both": ["one", "other"], "sgd": ["metabench", "one"]}
    assert solvers.get("sgd").__module__ == "metabench.solvers.sgd"
    with pytest.raises(MetabenchError, match="two solvers are called 'both': of one and other"):
        solvers.get("both")
    told = {f.name: f.detail for f in examination._third_parties([]) if f.bad}
    assert told == {
        "solver both": "declared by one and other: neither can be used",
        "solver sgd": "declared by metabench and one: the built-in is meant",
    }
    sys.modules.pop("third_party", None)


def test_which_processes_find_a_name(
    plugins_forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tasks.found_by("quadratic") == "any"
    assert solvers.found_by("nobody has it") == "any"  # asking for it says so
    path = tmp_path / "halved.py"
    path.write_text(PLUGIN.format(name="halved"))
    load_plugin(path)
    assert solvers.found_by("halved") == "any"
    here = type("Here", (solvers.get("halved"),), {"__module__": "__main__"})
    solvers.register("here")(here)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "script.py", raising=False)
    assert solvers.found_by("here") == "spawned"
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert solvers.found_by("here") == "this"
