from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from metabench import api
from metabench.contract.task import Task
from metabench.core import registry
from metabench.core.cell import CONTRACT, Cell, instances, make_cell
from metabench.core.environment import optional_packages
from metabench.core.errors import SettingError, SuiteError, UnknownName
from metabench.store.cell_folder import CHECKPOINT
from metabench.store.record import Record
from metabench.store.store import Store
from metabench.suites import planning
from metabench.suites.loading import from_dict
from metabench.suites.planning import Planned, choose, suite_of_pairs
from metabench.suites.suite import Suite

TEXT = """
title = "Small"
metric = "loss"
goal = "min"
[budgets.smoke]
seeds = [0]
outer_steps = 10
eval_every = 5
valid_episodes = 1
test_episodes = 7
[budgets.laptop]
seeds = [0, 1]
outer_steps = 100
eval_every = 5
valid_episodes = 1
test_episodes = 29
[budgets.paper]
seeds = [0]
seconds = 60
[[columns]]
id = "one"
task = "quadratic"
[[columns]]
id = "four"
task = "quadratic"
set.task = { dim = 4 }
[[rows]]
id = "reverse"
method = "bilevel"
chosen = "own"
[[rows]]
id = "maml"
method = "maml"
chosen = "own"
[[rows]]
id = "none"
method = "fixed"
chosen = "own"
skip = ["four"]
skip_reason = "no sense here"
set.budget = { outer_steps = 0 }
"""


@pytest.fixture
def suite() -> Suite:
    return from_dict(tomllib.loads(TEXT), Path("small.toml"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def record(cell: Cell, status: Any = "done", **more: Any) -> Record:
    return Record(key=cell.key, cell=cell, status=status, **more)


def look(suite: Suite, store: Store, budget: str = "smoke", **how: Any) -> dict[str, Planned]:
    found = planning.plan(choose(suite, budget, **how), store)
    return {f"{p.row}/{p.column}/{p.cell.seed}": p for p in found}


def test_states_and_reasons(suite: Suite, store: Store) -> None:
    planned = look(suite, store)
    assert {k: p.state for k, p in planned.items()} == {
        "reverse/one/0": "open",
        "reverse/four/0": "open",
        "maml/one/0": "not applicable",
        "maml/four/0": "not applicable",
        "none/one/0": "open",
        "none/four/0": "skipped",
    }
    assert "initial value of theta" in planned["maml/one/0"].reason
    assert planned["none/four/0"].reason == "no sense here"
    assert not store.root.exists(), "a plan writes nothing"


@pytest.mark.parametrize("status", ["failed", "diverged", "timeout"])
def test_what_went_wrong_is_told(suite: Suite, store: Store, status: str) -> None:
    cell = look(suite, store)["reverse/one/0"].cell
    store.write(record(cell, status, reason="so it is"))
    planned = look(suite, store)["reverse/one/0"]
    assert (planned.state, planned.reason) == (status, "so it is")
    assert planned.state in planning.TO_RUN


def test_finished_running_and_interrupted_cells(suite: Suite, store: Store) -> None:
    before = look(suite, store, "laptop")
    store.write(record(before["reverse/one/0"].cell))
    resumed = before["reverse/one/1"].cell
    store.folder(resumed.key).mkdir(parents=True)
    (store.folder(resumed.key) / CHECKPOINT).write_bytes(b"x")
    lease = store.lease(before["reverse/four/0"].cell.key)
    assert lease is not None
    with lease:
        planned = look(suite, store, "laptop")
    assert planned["reverse/one/0"].state == "done"
    assert planned["reverse/one/0"].estimated_seconds is None
    assert planned["reverse/one/1"].reason == "goes on from a checkpoint"
    assert planned["reverse/four/0"].state == "running"
    assert "process" in planned["reverse/four/0"].reason


def test_budgets_do_not_share_records(suite: Suite, store: Store) -> None:
    store.write(record(look(suite, store)["reverse/one/0"].cell))
    assert look(suite, store)["reverse/one/0"].state == "done"
    assert look(suite, store, "laptop")["reverse/one/0"].state == "open"


def test_estimates_scale_training_and_evaluation(suite: Suite, store: Store) -> None:
    cell = look(suite, store)["reverse/one/0"].cell
    # 10 steps; 3 rounds of 1 validation episode and 7 test episodes.
    store.write(record(cell, steps=10, cost={"seconds": 2.0, "evaluation_seconds": 1.0}))
    planned = look(suite, store, "laptop")
    # 100 steps: 20 s; 21 rounds of 1 and 29: 50 episodes at 0.1 s.
    assert planned["reverse/one/0"].estimated_seconds == pytest.approx(20.0 + 5.0)
    assert planned["reverse/one/0"].similar == 1
    assert planned["reverse/four/0"].estimated_seconds == pytest.approx(25.0)
    assert planned["none/one/0"].estimated_seconds is None


def test_records_of_another_contract_are_left_out(suite: Suite, store: Store) -> None:
    cell = look(suite, store)["reverse/one/0"].cell
    other = replace(cell, contract=CONTRACT + 1, budget={"hours": 3})
    store.write(record(other, steps=10, cost={"seconds": 2.0}))
    planned = look(suite, store, "laptop")["reverse/one/0"]
    assert planned.state == "open" and planned.estimated_seconds is None


def test_estimates_prefer_equal_settings_and_take_the_median(suite: Suite, store: Store) -> None:
    at = look(suite, store, "smoke", seeds=[0, 1, 2, 3])
    for name, seconds in (
        ("reverse/one/0", 1.0),
        ("reverse/one/1", 3.0),
        ("reverse/one/2", 50.0),
        ("reverse/four/0", 7.0),
    ):
        store.write(record(at[name].cell, steps=10, cost={"seconds": seconds}))
    after = look(suite, store, "smoke", seeds=[0, 1, 2, 3])
    assert after["reverse/one/3"].estimated_seconds == pytest.approx(3.0)
    assert after["reverse/four/3"].estimated_seconds == pytest.approx(7.0)
    assert after["reverse/one/3"].similar == 3


def test_estimates_ignore_runs_that_went_wrong_and_time_budgets_bound_them(
    suite: Suite, store: Store
) -> None:
    at = look(suite, store, "smoke", seeds=[0, 1])
    store.write(record(at["reverse/one/0"].cell, "diverged", steps=10, cost={"seconds": 9.0}))
    assert look(suite, store, "laptop")["reverse/one/0"].estimated_seconds is None
    store.write(record(at["reverse/one/1"].cell, steps=10, cost={"seconds": 30.0}))
    assert look(suite, store, "paper")["reverse/one/0"].estimated_seconds == pytest.approx(60.0)
    bounded = look(suite, store, "laptop", set={"budget.seconds": 50.0})["reverse/one/0"]
    assert bounded.estimated_seconds == pytest.approx(50.0)


def test_a_cell_without_outer_steps_costs_its_evaluation(suite: Suite, store: Store) -> None:
    cell = look(suite, store)["none/one/0"].cell
    store.write(record(cell, steps=0, cost={"seconds": 0.0, "evaluation_seconds": 0.8}))
    # 1 + 7 episodes took 0.8 s; now 1 + 29.
    later = look(suite, store, "laptop")["none/one/0"].estimated_seconds
    assert later == pytest.approx(3.0)


@dataclass(frozen=True)
class Needy(Task):
    """Needs what nobody has."""

    registered_name: ClassVar[str]
    metric: ClassVar[str] = "loss"
    goal: ClassVar[str] = "min"
    data: ClassVar[tuple[str, ...]] = ("no_such_data",)
    packages: ClassVar[tuple[str, ...]] = ()
    offers: ClassVar[frozenset[str]] = frozenset({"outer_gradient", "second_order"})

    def build(self, seeds: Any, device: Any) -> None:
        raise AssertionError("a plan builds no problem")


@dataclass(frozen=True)
class Packed(Needy):
    """Needs a package that nobody has."""

    data: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ("torch", "no_such_package")


@pytest.fixture
def needy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry.tasks._classes, "needy", Needy)
    monkeypatch.setitem(registry.tasks._classes, "packed", Packed)
    monkeypatch.setattr(Needy, "registered_name", "needy", raising=False)
    monkeypatch.setattr(Packed, "registered_name", "packed", raising=False)
    yield


def test_missing_data_and_packages_come_with_their_command(
    needy: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.core.errors import DataMissing
    from metabench.datasets import locate

    def missing(name: str, layout: str | None) -> locate.Found:
        raise DataMissing(name, ["here", "there"], f"metabench data fetch {name}")

    monkeypatch.setattr(locate, "locate", missing)
    planned = planning.plan(
        choose(suite_of_pairs(["needy", "packed"], ["bilevel"]), "smoke"), store
    )
    assert [p.state for p in planned] == ["missing data", "missing package"]
    assert planned[0].repair == "metabench data fetch no_such_data"
    assert planned[0].reason == "data set 'no_such_data' not found; looked in here, there"
    assert planned[1].repair == "pip install no_such_package"
    assert not {p.state for p in planned} & planning.TO_RUN


def test_data_is_looked_for_in_the_layout_that_the_task_names(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.datasets import catalogue

    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    arrays = catalogue.dataset("omniglot").layouts[0]
    for file in arrays.files:
        path = tmp_path / arrays.folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for source, state in [("auto", "open"), ("metabench", "open"), ("torchvision", "missing data")]:
        suite = suite_of_pairs(["omniglot"], ["fixed"])
        cells = choose(suite, "smoke", set=[f"task.source={source}"], seeds=[0])
        (planned,) = planning.plan(cells, store)
        assert planned.state == state, source
        assert arrays.name == "metabench" and (planned.reason == "") == (state == "open")


def test_a_finished_cell_needs_nothing(needy: None, store: Store) -> None:
    item = choose(suite_of_pairs(["needy"], ["bilevel"]), "smoke")[0]
    store.write(record(item.cell))
    assert planning.plan([item], store)[0].state == "done"


def test_only_filters(suite: Suite) -> None:
    def places(*only: str) -> list[str]:
        return [f"{c.row}/{c.column}" for c in choose(suite, "smoke", only=only)]

    everything = places()
    assert places("reverse") == ["reverse/one", "reverse/four"]
    assert places("bilevel") == places("reverse")
    assert places("four") == ["reverse/four", "maml/four", "none/four"]
    assert places("/four") == places("four") == places("*/four")
    assert places("quadratic") == everything
    assert places("maml/one", "none/one") == ["maml/one", "none/one"]
    twin = replace(suite, rows=[*suite.rows, replace(suite.rows[1], id="bilevel")])
    assert {c.row for c in choose(twin, "smoke", only=["bilevel"])} == {"bilevel"}
    assert {c.row for c in choose(twin, "smoke", only=["maml"])} == {"maml"}
    assert places("m*") == ["maml/one", "maml/four"]
    for wrong, near in (("revrse", "reverse"), ("revrse/one", "reverse"), ("reverse/fuor", "four")):
        with pytest.raises(UnknownName, match=f"near: {near}"):
            places(wrong)


def test_overrides_as_a_mapping(suite: Suite) -> None:
    a = choose(suite, "smoke", set={"method.inner_lr": 0.2, "four.a": 3})
    b = choose(suite, "smoke", set=["method.inner_lr=0.2", "four.a=3"])
    assert a == b
    with pytest.raises(SettingError, match=r"write GROUP\.NAME"):
        choose(suite, "smoke", set={"inner_lr": 0.2})


def test_pairs_are_a_suite_of_defaults() -> None:
    made = suite_of_pairs(["quadratic"], ["bilevel", "fixed", "bilevel"], "momentum")
    cells = choose(made, "laptop")
    assert [(c.row, c.column, c.cell.seed) for c in cells if c.cell.seed == 1] == [
        ("bilevel", "quadratic", 1),
        ("fixed", "quadratic", 1),
    ]
    assert cells[0].cell.solver == "momentum"
    assert (made.metric, made.goal) == ("loss", "min")
    with pytest.raises(UnknownName, match="near: quadratic"):
        suite_of_pairs(["quadratc"], ["bilevel"])
    with pytest.raises(UnknownName, match="near: bilevel"):
        suite_of_pairs(["quadratic"], ["bilvel"])
    with pytest.raises(UnknownName, match="near: momentum"):
        suite_of_pairs(["quadratic"], ["bilevel"], "momentun")
    with pytest.raises(SuiteError, match="at least one --task"):
        suite_of_pairs([], ["bilevel"])
    with pytest.raises(SuiteError, match="quadratic: loss, glyphs: accuracy"):
        suite_of_pairs(["quadratic", "glyphs"], ["bilevel"])


def test_recipes() -> None:
    first, second = optional_packages.recipe("learn2learn")
    assert "learn2learn" in first or "gym" in first
    assert second == (
        "pip install --no-deps --use-pep517 "
        '--config-settings="--build-option=build_ext" learn2learn==0.2.0'
    )
    assert optional_packages.recipe("optuna")[0].startswith("pip install")
    assert any(x in optional_packages.recipe("skimage")[0] for x in ("imaging", "scikit-image>"))
    assert optional_packages.recipe("nobody_knows") == ("pip install nobody_knows",)
    assert (
        optional_packages.here("torch")
        and optional_packages.here("json")
        and not optional_packages.here("no_such_thing")
    )
    assert optional_packages.base()["torch"] == (2, 6)
    assert optional_packages.version_tuple("2.15.0+cpu") == (2, 15, 0)
    assert (
        "pytest" not in optional_packages.base()
        and "gym==0.26.2" in optional_packages.extras()["learn2learn"]
    )


def test_every_extra_is_for_something_that_asks_for_it() -> None:
    """Else doctor would tell users to install what nothing of theirs imports."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    asked = {
        optional_packages.package(module)
        for known in registry.REGISTRIES.values()
        for name in known.names()
        for module in getattr(known.get(name)(), "packages", ())
    }
    for name in registry.trackers.names():
        packages = registry.trackers.get(name).packages  # type: ignore[attr-defined]
        asked |= {optional_packages.package(module) for module in packages}
    asked.add(optional_packages.package("vl_convert"))  # the leaderboard's page
    for extra, wanted in project["optional-dependencies"].items():
        names = {re.split("[^A-Za-z0-9_-]", requirement)[0] for requirement in wanted}
        assert extra in ("dev", "bench", "docs") or asked & {extra, *names}, extra
    assert registry.tasks.get("pretrain_ppi")().data == ("ppi_bio",)
    assert "torch_geometric" not in asked  # its file is read without it


def test_looking_for_a_package_does_not_import_it() -> None:
    code = (
        "import sys; from metabench.core.environment import optional_packages as p\n"
        "assert p.here('torch')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_changed_contract_is_another_cell(suite: Suite, store: Store) -> None:
    cell = look(suite, store)["reverse/one/0"].cell
    store.write(record(replace(cell, contract=cell.contract + 1)))
    assert look(suite, store)["reverse/one/0"].state == "open"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a record's file is read, by its cell, and settings are checked ("checked")."""
    from metabench.core import settings
    from metabench.store import cell_folder as module

    found: Counter[str] = Counter()
    read, build = module.read, settings.build

    def counted_read(folder: Path) -> Any:
        found[folder.name] += 1
        return read(folder)

    def counted_build(*args: Any) -> Any:
        found["checked"] += 1
        return build(*args)

    monkeypatch.setattr(module, "read", counted_read)
    monkeypatch.setattr(settings, "build", counted_build)
    return found


@pytest.mark.parametrize("verb", ["plan", "status", "results", "table"])
def test_a_record_is_read_once_and_a_place_checked_once(
    suite: Suite, store: Store, counts: Counter[str], verb: str
) -> None:
    """Seeds of one place have the same four groups of settings."""
    cells = choose(suite, "laptop")
    keys = {c.cell.key for c in cells if c.skip is None}
    for item in cells:
        store.write(record(item.cell, "failed"))
    counts.clear()
    getattr(api, verb)(suite, budget="laptop", store=store)
    assert counts.pop("checked") == 4 * len({(c.row, c.column) for c in cells})
    assert set(counts.values()) == {1} and keys <= counts.keys()


def test_cells_of_other_seeds_are_those_made_one_by_one(suite: Suite) -> None:
    for item in choose(suite, "laptop"):
        cell = item.cell
        groups = {
            "task": cell.task_settings,
            "method": cell.method_settings,
            "solver": cell.solver_settings,
            "budget": cell.budget,
        }
        alone = make_cell(cell.task, cell.method, solver=cell.solver, seed=cell.seed, set=groups)
        assert alone == cell and alone.key == cell.key
        assert item.parts == instances(cell) == replace(item, resolved=None).parts


def test_instances_bring_their_settings_and_no_methods_are_all_that_apply() -> None:
    task = registry.tasks.get("quadratic")(dim=3)
    made = suite_of_pairs([task], [registry.methods.get("bilevel")(inner_steps=3), "ift"])
    assert [(c.id, c.set) for c in made.columns] == [("quadratic", {"task": {"dim": 3}})]
    own, default = made.rows
    assert own.set == {"method": {"inner_steps": 3}} and own.chosen == "own"
    assert default.set == {} and default.chosen == "default"
    every = {row.method for row in suite_of_pairs([task], None).rows}
    assert {"bilevel", "ift", "fixed"} <= every and not {"maml", "restem"} & every


def test_instances_that_a_suite_cannot_have() -> None:
    quadratic = registry.tasks.get("quadratic")
    with pytest.raises(SuiteError, match="two tasks are called 'quadratic'"):
        suite_of_pairs([quadratic(dim=3), quadratic(dim=4)], ["ift"])
    with pytest.raises(SettingError, match=r"tasks cannot have <class .*Quadratic.*: give a task"):
        suite_of_pairs([quadratic], ["ift"])
    with pytest.raises(SettingError, match="methods cannot have 3"):
        suite_of_pairs([quadratic()], [3])
