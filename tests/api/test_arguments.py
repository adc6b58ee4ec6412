"""What verbs are given by mistake is refused in a line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metabench import api
from metabench.api import rendering
from metabench.cluster.submitting import submit
from metabench.core.errors import MetabenchError, SettingError


@pytest.mark.parametrize(
    ("verb", "given", "said"),
    [
        ("plan", {"suite": None}, "suite cannot be None: give a name, .*"),
        ("plan", {"suite": "closedform"}, "no suite 'closedform'; near: closed-form; .*"),
        ("plan", {"budget": "smok"}, "no budget of suite .* called 'smok'; near: smoke; .*"),
        ("plan", {"budget": None}, "no budget of suite .* called None; known: laptop, .*"),
        ("plan", {"only": "reverse"}, r"only cannot be 'reverse': .* \['reverse'\]"),
        ("plan", {"only": [3]}, r"only cannot be \[3\]: give a list of texts"),
        ("plan", {"only": ["revers"]}, "no row or column .* 'revers'; near: reverse, .*"),
        ("plan", {"set": "method.inner_lr=0.1"}, r"set cannot be 'method.inner_lr=0.1': .*"),
        ("plan", {"set": None}, "set cannot be None: give a list of texts"),
        ("plan", {"set": {3: 4}}, "names of settings cannot be .*: give a list of texts"),
        ("plan", {"set": {"method.inner_l": 1}}, ".* 'inner_l'; near: inner_lr, .*"),
        ("plan", {"seeds": 0}, "seeds cannot be 0: give a list of whole numbers"),
        ("plan", {"seeds": "0,1"}, "seed cannot be '0': write a whole number(\n.*)?"),
        ("run", {"jobs": 0}, "jobs cannot be 0: give a number of at least 1"),
        ("run", {"jobs": "2"}, "jobs cannot be '2': give a number of at least 1"),
        ("run", {"ranks": 0}, "ranks cannot be 0: give a number of at least 1"),
        ("run", {"time_limit": -1.0}, "time_limit cannot be -1.0: give a number of at least 0"),
        ("run", {"checkpoint_seconds": "x"}, "checkpoint_seconds cannot be 'x': .*"),
        ("run", {"device": "gpu"}, "device cannot be 'gpu': .*"),
        ("plot", {"kind": "ranking", "out": "figures"}, r"kind cannot be 'ranking': .*"),
        ("plot", {"kind": ["rankin"], "out": "figures"}, ".* 'rankin'; near: ranking, .*"),
    ],
)
def test_mistakes_are_named(
    verb: str,
    given: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"suite": "closed-form", "budget": "smoke", "store": tmp_path / "runs"} | given
    with pytest.raises(MetabenchError, match=f"^{said}$"):
        getattr(api, verb)(**words)
    assert not (tmp_path / "runs").exists()


def test_one_name_where_several_are_asked_for() -> None:
    with pytest.raises(MetabenchError, match=r"tasks cannot be 'quadratic': .* \['quadratic'\]"):
        api.suite_of_pairs("quadratic", ["bilevel"])
    with pytest.raises(MetabenchError, match=r"methods cannot be 'bilevel': .* \['bilevel'\]"):
        api.suite_of_pairs(["quadratic"], "bilevel")


def test_what_chooses_cells_needs_a_suite(tmp_path: Path) -> None:
    for given in ({"set": ["task.dim=2"]}, {"seeds": [0]}, {"only": ["x"]}):
        with pytest.raises(SettingError, match="set, seeds and only choose cells of a suite"):
            api.status(store=tmp_path, **given)
    assert api.status(store=tmp_path).records == []


def given(**changes: Any) -> dict[str, Any]:
    """Arguments that end with their first use."""
    few: dict[str, Any] = {"set": ["budget.outer_steps=2"], "seeds": [5, 6], **changes}
    return {name: iter(values) for name, values in few.items()}


def test_what_ends_with_its_first_use_is_read_once(tmp_path: Path) -> None:
    suite, store = api.suite_of_pairs(["quadratic"], ["bilevel", "fixed"]), tmp_path / "runs"
    api.run(suite, budget="smoke", store=store, **given())
    found = api.results(suite, budget="smoke", store=store, **given())
    assert found.states == {"done": 4}
    assert found.seeds == (5, 6) and [o.value for o in found.overrides] == [2]
    compared = api.compare(suite, suite, budget="smoke", store=store, **given())
    assert compared.identical and {line.seeds for line in compared.found.lines} == {(5, 6)}
    (png, _) = api.plot(
        suite, budget="smoke", store=store, out=tmp_path, cost="seconds", **given(kind=["frontier"])
    )
    assert png.name == "frontier-seconds.png"


def test_reproduce_and_submit_read_it_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[Any]] = {}

    def seen(suite: Any, **words: Any) -> None:
        for name in ("set", "seeds"):
            told.setdefault(name, []).append([*words[name]])

    monkeypatch.setattr(rendering, "run", seen)
    monkeypatch.setattr(rendering, "render", seen)
    api.reproduce("closed-form", out=tmp_path, **given())
    assert told == {"set": [["budget.outer_steps=2"]] * 2, "seeds": [[5, 6]] * 2}

    def stopped(suite: str, budget: str, planned: Any, *rest: Any, words: Any) -> None:
        assert {(p.row, p.cell.seed) for p in planned} == {("reverse", 5), ("reverse", 6)}
        assert {p.cell.budget["outer_steps"] for p in planned} == {2}
        told["words"] = words.cells
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "prepare", stopped)
    with pytest.raises(KeyboardInterrupt):
        api.submit(
            "closed-form",
            cluster=Path("slurm/cpu.toml"),
            budget="smoke",
            store=tmp_path,
            **given(only=["reverse"]),
        )
    assert told["words"] == [
        "--set", "budget.outer_steps=2", "--seeds", "5,6", "--only", "reverse",
    ]  # fmt: skip
