"""What is said of settings: types in words, defaults as they are typed, docstrings below them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from metabench.api import describe
from metabench.api.describe import Setting, settings_of
from metabench.core.registry import REGISTRIES, methods, solvers, tasks


@dataclass(frozen=True)
class Example:
    batch: int | None = None
    """Examples of a step; None: all. None, as published: the rest."""
    most: int = 3
    """None are left out."""


def test_what_is_said_of_none_is_said_of_what_one_types() -> None:
    first = "Examples of a step; unset: all. unset, as published: the rest."
    assert settings_of(Example) == [
        Setting("batch", "int, or unset", "unset", first),
        Setting("most", "int", "3", "None are left out."),
    ]


def test_no_setting_has_a_text_about_a_value_that_cannot_be_typed() -> None:
    wrong = [
        (name, setting.name)
        for registry in (methods, solvers, tasks)
        for name in registry.names()
        for setting in settings_of(registry.get(name))
        if "None:" in setting.doc
    ]
    assert wrong == []


def test_what_is_recalled_of_each_is_what_its_class_says() -> None:
    names = [(kind, name) for kind, known in REGISTRIES.items() for name in known.names()]
    asked = [describe._asked(kind, name) for kind, name in names]
    kept = json.loads(json.dumps(describe._plain(asked)))
    assert describe._read(kept) == asked


def test_what_cannot_be_loaded_now_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no such library")

    monkeypatch.setitem(tasks._classes, "quadratic", broken)
    asked = describe._asked("method", "maml")
    assert ("quadratic", "no: cannot be loaded: ImportError: no such library") in asked.tables[0][1]
    assert describe._plain([asked]) is None


def test_show_imports_torch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any name: the first look keeps what is said of all."""
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("METABENCH_PLUGINS", raising=False)
    code = (
        "import sys, metabench\n"
        "metabench._imported_at += 60\n"  # however new the code is
        "from metabench import api\n"
        "print(api.show({name!r})[0].title, 'torch' in sys.modules)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code.format(name=name)],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout.split()[-1]
        for name in ("maml", "quadratic", "momentum")
    ]
    assert told == ["True", "False", "False"]
