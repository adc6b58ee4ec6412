"""What a method or a task declares: settings, capabilities, and attributes that somebody reads."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Method
from metabench.contract.problem import Problem
from metabench.contract.task import Task
from metabench.core import settings
from metabench.core.capabilities import CAPABILITIES
from metabench.core.text import type_of

CONTRACT: dict[str, tuple[type, ...]] = {"method": (Method, GradientMethod), "task": (Task,)}
"""The classes whose public names the contract reads, by kind."""
NEAR = 0.85
"""Likeness (of :mod:`difflib`) from which a name is taken for a misspelling of another."""


def check_settings(it: Any) -> None:
    """A frozen dataclass with a docstring and a name, whose settings all have defaults and are
    plain values that pass their own types."""
    cls = type(it)
    made = vars(cls).get("__dataclass_params__")
    assert made is not None, f"{cls.__name__} is not a dataclass"
    assert made.frozen, f"{cls.__name__} is not frozen"
    assert getattr(cls, "registered_name", ""), f"{cls.__name__} is not registered under a name"
    own = cls.__doc__ or ""
    assert own and not own.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring"
    plain = settings.values(it)
    again = settings.build(cls, plain, it.registered_name)
    assert again == it, f"settings written out and read again differ: {again} is not {it}"
    settings.build(cls, {}, it.registered_name)


def check_capabilities(words: Any, what: str) -> None:
    """``needs`` or ``offers`` is a frozenset of known capabilities."""
    assert isinstance(words, frozenset), f"{what} is {type_of(words)}, not a frozenset"
    unknown = sorted(words - CAPABILITIES.keys())
    assert not unknown, f"{what} has {unknown}; known: {', '.join(sorted(CAPABILITIES))}"


def check_attributes(kind: str, it: Any) -> None:
    """No public attribute is a misspelling of a name that the contract reads."""
    known = set().union(*map(_public, CONTRACT[kind]))
    own = _defined(type(it), CONTRACT[kind]) - settings.fields(type(it)).keys()
    _check_spelling(own, known)


def check_problem_attributes(problem: Problem) -> None:
    """The same of a problem, those that it sets when it is built among them."""
    own = {name for name in vars(problem) if not name.startswith("_")}
    _check_spelling(own | _defined(type(problem), (Problem,)), _public(Problem))


def _public(cls: type) -> set[str]:
    annotated = (inspect.get_annotations(base) for base in cls.__mro__)
    return {name for name in {*dir(cls)}.union(*annotated) if not name.startswith("_")}


def _defined(cls: type, contract: Iterable[type]) -> set[str]:
    """Public names that a class and its bases define, those of the contract's classes left out."""
    given = {base for known in contract for base in known.__mro__}
    return {
        name
        for base in cls.__mro__
        if base not in given
        for name in vars(base)
        if not name.startswith("_")
    }


def _check_spelling(names: Iterable[str], known: frozenset[str] | set[str]) -> None:
    for name in sorted(set(names) - known):
        near = difflib.get_close_matches(name, known, 1, NEAR)
        assert not near, (
            f"nothing reads {name!r}: is {near[0]!r} meant? A name of its own begins with _"
        )
