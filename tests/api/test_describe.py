"""What is said of settings: types in words, defaults as they are typed, docstrings below them."""

from __future__ import annotations

from dataclasses import dataclass

from metabench.api.describe import Setting, settings_of
from metabench.core.registry import methods, solvers, tasks


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
