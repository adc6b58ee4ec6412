"""What there is: list, show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typed_commands import metabench

from metabench.core import registry
from metabench.core.catalogue import listing


def test_list_names_everything(folder: Path) -> None:
    typed = metabench("list")
    assert typed.code == 0
    names = {row[0] for row in typed.rows}
    assert {"quadratic", "ridge", "bilevel", "maml", "sgd", "quickstart", "omniglot"} <= names
    assert "Problems with known answers" in typed.out
    only = metabench("list", "methods")
    assert "bilevel" in only.out and "quadratic" not in only.out
    assert metabench("list", "methds").code == 2


def test_show_tells_settings_needs_and_source(folder: Path) -> None:
    typed = metabench("show", "bilevel")
    assert typed.code == 0
    rows = {row[0]: row[1:] for row in typed.rows}
    assert rows["inner_steps"][:2] == ["5", "int, at least 0"]
    assert rows["mode"] == ["reverse", "reverse or forward"]
    assert rows["truncate"][0] == "unset"
    assert "Differentiate the last K inner steps only" in rows["truncate"][-1]
    assert "Clip every entry" in rows["clip"][-1], "a docstring of the base class"
    assert "needs: an outer loss with a derivative" in typed.out
    assert "Franceschi" in typed.out
    assert str(registry.methods._folder() / "bilevel.py") in typed.out
    task = metabench("show", "quadratic").out
    assert "metric: loss (lower is better)" in task and "offers: " in task
    assert "no: maml needs a lam that is the initial value of theta" in task
    assert rows["quadratic"] == ["yes"]


def test_show_finds_every_kind(folder: Path) -> None:
    both = metabench("show", "omniglot").out
    assert "suite omniglot: " in both
    assert "; laptop: method.outer_lr = 0.003, method.outer_decay = linear" in both
    assert "98.7 +- 0.4 (95 % interval over episodes)" in both
    assert "; laptop, 5w5s: budget.outer_steps = 2000" in both
    assert "momentum" in metabench("show", "momentum").out
    small = metabench("show", "small.toml").out
    assert "suite small: Small" in small and "closed form [derived]" in small
    assert "method.inner_steps = 3" in small
    shown = re.search(r"settings of a budget\n(.*\n)*?eval_every +100 +int, at least 1", small)
    assert shown, "what --set budget.NAME=VALUE may set"
    assert metabench("show", "omniglot", "--kind", "method").code == 2
    prompt = next(r for r in metabench("show", "self_edit_policy").rows if "grader_prompt" in r)
    assert len(prompt[1]) <= 60 and prompt[1].endswith("..."), "a page of a default is cut"


@pytest.mark.slow
def test_show_shows_everything_that_is_listed(folder: Path) -> None:
    for entries in listing().values():
        for entry in entries:
            assert metabench("show", entry.name).code == 0, entry
