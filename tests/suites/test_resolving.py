"""What suites resolve to is recalled where nothing has changed, and never where something has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.cluster.submitting.snapshot import job_environment
from metabench.core import cell
from metabench.core.catalogue import suite_names
from metabench.core.environment import provenance
from metabench.core.errors import SettingError, UnknownName
from metabench.core.registry import solvers, tasks
from metabench.suites import recalling, resolving
from metabench.suites.listing import COSTS
from metabench.suites.loading import load
from metabench.suites.resolving import Place, resolve

PLACES = [
    Place("quadratic", "bilevel", None, {"budget": {"outer_steps": 3}}, "here"),
    Place("quadratic", "maml", "momentum", {"budget": {"outer_steps": 3}}, "there"),
]
CODE = provenance.files()


class Asked:
    """:func:`metabench.core.cell.resolve`, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(cell, "resolve", self)

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        return REAL(*given)


REAL = cell.resolve


def test_the_classes_are_asked_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    first = resolve(PLACES)
    assert asked.calls == 2 and first[1].declaration.why_not is not None
    again = resolve(PLACES)
    assert asked.calls == 2 and again == first
    assert [r.declaration for r in again] == [r.declaration for r in first]
    assert [r.parts for r in again] == [r.parts for r in first]
    assert [r.cells([4]) for r in again] == [r.cells([4]) for r in first]
    resolve(PLACES[::-1])
    resolve([PLACES[0]._replace(set={"budget": {"outer_steps": 4}})])
    assert asked.calls == 5 and len(list(kept.iterdir())) == 3


def test_a_process_that_has_torch_asks_and_keeps_nothing(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vars(recalling)["sys"].modules["torch"] = SimpleNamespace()
    asked = Asked(monkeypatch)
    for calls in (2, 4):
        resolve(PLACES)
        assert asked.calls == calls
    assert not kept.exists()


def test_it_keeps_what_is_for_later_once_and_is_not_answered_itself(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = vars(recalling)["sys"].modules
    modules["torch"] = SimpleNamespace()
    asked = Asked(monkeypatch)
    first = resolve(PLACES, for_later=True)
    (file,) = kept.iterdir()
    made = file.stat().st_ino
    resolve(PLACES, for_later=True)
    assert asked.calls == 4 and file.stat().st_ino == made
    del modules["torch"]
    assert resolve(PLACES) == first and asked.calls == 4


@given(st.data())
def test_one_byte_of_any_file_of_metabench_asks_anew(data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(n for n, content in CODE.items() if content)))
    at = data.draw(st.integers(0, len(CODE[name]) - 1))
    changed = bytearray(CODE[name])
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METABENCH_CACHE", "cache")
        patch.setattr(provenance, "files", lambda: CODE)
        before = recalling.kept_at(resolving.question(PLACES))
        patch.setattr(provenance, "files", lambda: {**CODE, name: bytes(changed)})
        assert before is not None and recalling.kept_at(resolving.question(PLACES)) != before


@pytest.mark.parametrize("what", ["torch", "python", "solver"])
def test_another_surrounding_asks_anew(
    what: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = recalling.kept_at(resolving.question(PLACES))
    if what == "torch":
        monkeypatch.setattr(recalling, "version", lambda name: f"another {name}")
    elif what == "python":
        monkeypatch.setattr(vars(recalling)["sys"], "version", "another")
    else:
        names = [*solvers.names(), "somebody's"]
        monkeypatch.setattr(solvers, "names", lambda: names)
    assert before is not None and recalling.kept_at(resolving.question(PLACES)) not in (
        None,
        before,
    )


def test_code_that_was_edited_while_the_process_ran_leaves_nothing(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = max(path.stat().st_mtime for _, path in provenance.paths())
    monkeypatch.setattr(vars(recalling)["sys"].modules["metabench"], "_imported_at", newest)
    resolve(PLACES)
    assert not kept.exists()


def test_code_that_changes_meanwhile_leaves_nothing(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter([CODE, {**CODE, "metabench/tasks/quadratic.py": b""}])
    monkeypatch.setattr(provenance, "files", lambda: next(versions))
    resolve(PLACES)
    assert not kept.exists()


@pytest.mark.parametrize(
    "damage", ["cut", "other settings", "nonsense", "deep", "empty", "another's"]
)
def test_what_is_damaged_is_asked_anew(
    damage: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(PLACES)
    (path,) = kept.iterdir()
    whole = path.read_bytes()
    if damage == "other settings":
        path.write_bytes(whole.replace(b'"outer_steps": 3', b'"outer_steps": 4'))
        assert path.read_bytes() != whole
    elif damage == "another's":
        resolve(PLACES[:1])
        (other,) = (p for p in kept.iterdir() if p != path)
        path.write_bytes(other.read_bytes())
    else:
        of = {"cut": whole[:-9], "nonsense": b"[1]", "deep": b"[" * 200_000, "empty": b""}
        path.write_bytes(of[damage])
    asked = Asked(monkeypatch)
    assert resolve(PLACES) == first and asked.calls == 2
    assert path.read_bytes() == whole
    assert resolve(PLACES) == first and asked.calls == 2


def test_without_a_place_to_write_it_costs_only_time(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.write_text("a file where the folder should be")
    asked = Asked(monkeypatch)
    assert resolve(PLACES) == resolve(PLACES) and asked.calls == 4
    monkeypatch.setenv("METABENCH_CACHE", "~nobody-at-all/cache")
    assert len(resolve(PLACES)) == 2 and asked.calls == 6


def test_several_at_once_leave_one_whole_file(kept: Path) -> None:
    first = [REAL(*place[:4]) for place in PLACES]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: resolve(PLACES), range(16)):
            assert found == first
    (path,) = kept.iterdir()
    assert json.loads(path.read_bytes())["sha256"]


def test_the_oldest_files_are_forgotten(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalling, "MOST_FILES", 2)
    names: list[str] = []
    for steps in range(1, 5):
        resolve([PLACES[0]._replace(set={"budget": {"outer_steps": steps}})])
        (name,) = {p.name for p in kept.iterdir()} - set(names)
        names.append(name)
        os.utime(kept / name, (steps, steps))
    assert {p.name for p in kept.iterdir()} == set(names[-2:])


def test_errors_name_the_place_and_are_not_kept(kept: Path) -> None:
    wrongs: list[tuple[dict[str, dict[str, Any]], type[Exception]]] = [
        ({"method": {"inner_lr": "much"}, "budget": {"outer_steps": 3}}, SettingError),
        ({"method": {"iner_lr": 1.0}, "budget": {"outer_steps": 3}}, UnknownName),
        ({"task": {"x": object()}, "budget": {"outer_steps": 3}}, UnknownName),
    ]
    for wrong, kind in wrongs:
        for _ in range(2):
            with pytest.raises(kind) as caught:
                resolve([PLACES[0], PLACES[0]._replace(set=wrong, where="row 7")])
            assert caught.value.__notes__ == ["row 7"]
    assert not kept.exists()


def test_a_plug_in_is_never_recalled(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = type("Own", (tasks.get("quadratic"),), {"__module__": "somewhere"})
    monkeypatch.setitem(tasks._classes, "somebodys", own)
    monkeypatch.setattr(own, "registered_name", "somebodys")
    assert len(resolve([PLACES[0]._replace(task="somebodys")])) == 1
    assert not kept.exists()


@pytest.mark.parametrize("name", suite_names())
def test_what_is_recalled_is_what_was_found(
    name: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load(name)
    found = [item.resolved for item in suite.cells("laptop")]
    asked = Asked(monkeypatch)
    recalled = [item.resolved for item in suite.cells("laptop")]
    assert asked.calls == 0 and recalled == found
    for one, other in zip(found, recalled, strict=True):
        assert one is not None and other is not None and one.declaration == other.declaration


PURE = """
import os, sys
from metabench.core.catalogue import suite_names
from metabench.core.registry import REGISTRIES
from metabench.suites.loading import load
for registry in REGISTRIES.values():
    [registry.get(name) for name in registry.names()]
suites = [load(name) for name in suite_names()]
seen, code = set(), (".py", ".pyc", ".so")

def watch(event, given):
    if watching and event in ("open", "os.listdir", "os.scandir", "subprocess.Popen"):
        if not str(given[0]).endswith(code) and "site-packages" not in str(given[0]):
            seen.add(f"{event} {given[0]}")

class Environment(dict):
    def get(self, name, default=None):
        if not name.startswith("PYDANTIC"):  # whether there are plug-ins of its own
            seen.add(f"environment {name}")
        return dict.get(self, name, default)
    __getitem__ = __contains__ = get

watching = True
sys.addaudithook(watch)
os.environ = Environment(os.environ)
for suite in suites:
    for item in suite.cells("laptop"):
        item.declaration
print(sorted(seen))
"""


def test_what_is_kept_depends_on_no_file_and_no_variable() -> None:
    """Settings and declarations of all suites are made while whatever they read is watched."""
    done = subprocess.run(
        [sys.executable, "-c", PURE], capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout == "[]\n"


def test_an_edit_is_seen_by_the_next_process(tmp_path: Path) -> None:
    """A copy of the code: planned and shown twice, then what all methods share is edited, and a
    suite. Where nothing has changed, torch is not imported."""
    for name, data in provenance.files().items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1e9, 1e9))
    shutil.copy(COSTS, tmp_path / "code" / "metabench" / "suites")
    program = (
        "import sys\nfrom metabench import api\n"
        "words = {'budget': 'smoke', 'store': 'none'}\n"
        "found = api.plan('quickstart', **words)[0].cell\n"
        "api.status('quickstart', **words), str(api.table('quickstart', **words))\n"
        "print(found.task_settings['queries'], found.method_settings['outer_solver'],"
        " 'torch' in sys.modules)"
    )
    surroundings = {**job_environment(tmp_path), "METABENCH_CACHE": str(tmp_path)}

    def told() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **surroundings},
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def edit(name: str, old: str, new: str) -> None:
        path = tmp_path / "code" / "metabench" / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        os.utime(path, (1e9 + 9, 1e9 + 9))

    assert told() == ["5", "adam", "True"]
    assert told() == ["5", "adam", "False"]
    edit(
        "contract/gradient_method.py",
        'outer_solver: SolverName = "adam"',
        'outer_solver: str = "sgd"',
    )
    assert told() == ["5", "sgd", "True"]
    edit("suite_files/quickstart.toml", "queries = 5", "queries = 4")
    assert told() == ["4", "sgd", "True"]
    assert told() == ["4", "sgd", "False"]


def test_a_plan_with_a_users_setting_imports_torch_once(tmp_path: Path) -> None:
    """As long as the setting is the same; a setting that there is not is named as before."""
    code = (
        "import sys, metabench\n"
        "metabench._imported_at += 60\n"  # however new the code is
        "from metabench import api\n"
        "try:\n"
        "    cells = api.plan('quickstart', budget='smoke', store='none', set=[{given!r}])\n"
        "    print({{p.cell.method_settings.get('inner_lr') for p in cells if p.row == 'maml'}})\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "print('torch' in sys.modules)"
    )

    def told(given: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code.format(given=given)],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "METABENCH_CACHE": str(tmp_path), "METABENCH_PLUGINS": ""},
            timeout=100,
        )
        return done.stdout.splitlines()

    assert told("maml.inner_lr=0.125") == ["{0.125}", "True"]
    assert told("maml.inner_lr=0.125") == ["{0.125}", "False"]
    (wrong, torch) = told("method.iner_lr=0.125")
    assert "near: inner_lr" in wrong and "write ROW.iner_lr=..." in wrong
    assert torch == "True"
