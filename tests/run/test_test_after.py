"""Evaluations of one trained state after several numbers of inner steps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metabench import testing
from metabench.contract.method import Context, State
from metabench.contract.problem import Episode, Params, Problem
from metabench.core.cell import Cell, make_cell
from metabench.core.costs import COUNT_NAMES
from metabench.core.errors import Diverged, SettingError
from metabench.methods.fixed import Fixed
from metabench.run.runner import run_cell
from metabench.store.record import Record
from metabench.store.store import Store

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("maml", {}),
    "Meta-SGD": ("maml", {"meta_sgd": True}),
    "MAML++": ("maml", {"layer_step_rates": True}),
    "ANIL": ("maml", {"anil": True}),
    "reptile": ("reptile", {}),
    "imaml": ("imaml", {}),
    "fixed": ("fixed", {}),
}


def cell(name: str = "maml", method: dict[str, Any] | None = None, **budget: Any) -> Cell:
    registered, own = METHODS[name]
    limits = {"outer_steps": 3, "eval_every": 1, "valid_episodes": 2, "test_episodes": 5}
    return make_cell(
        "sinusoid",
        registered,
        set={
            "task": {"meta_batch": 3, "width": 8},
            "method": {"inner_steps": 2, "inner_lr": 0.05} | own | (method or {}),
            "budget": limits | {"select": "last"} | budget,
        },
    )


def played(tmp_path: Path, one: Cell, **how: Any) -> Record:
    record = run_cell(one, Store(tmp_path / one.key), **how)
    assert record.status == "done", record.reason
    return record


@pytest.mark.parametrize("name", METHODS)
def test_each_is_to_the_last_bit_what_a_run_with_that_test_steps_gives(
    tmp_path: Path, name: str
) -> None:
    record = played(tmp_path, cell(name, test_after=[1, 5]))
    assert [*record.metrics] == ["valid", "test", "test@1_steps", "test@5_steps"]
    for steps in (1, 5):
        alone = played(tmp_path, cell(name, {"test_steps": steps}))
        assert record.metrics[f"test@{steps}_steps"] == alone.metrics["test"]
    assert len({record.metrics[k]["mse"].mean for k in [*record.metrics][1:]}) == 3


@pytest.mark.parametrize("how", [{"engine": "vmap"}, {"workers": 2}])
def test_so_it_is_however_episodes_are_worked_through(tmp_path: Path, how: dict[str, Any]) -> None:
    record = played(tmp_path, cell(test_after=[4]), **how)
    alone = played(tmp_path, cell(method={"test_steps": 4}), **how)
    assert record.metrics["test@4_steps"] == alone.metrics["test"]


def test_it_is_not_counted_and_changes_nothing_else(tmp_path: Path) -> None:
    without, with_it = played(tmp_path, cell()), played(tmp_path, cell(test_after=[1, 9]))
    assert [with_it.cost[n] for n in COUNT_NAMES] == [without.cost[n] for n in COUNT_NAMES]
    assert {k: v for k, v in with_it.metrics.items() if "@" not in k} == without.metrics
    assert with_it.lam == without.lam


def test_the_steps_of_training_and_of_the_test_are_evaluated_like_others(tmp_path: Path) -> None:
    record = played(tmp_path, cell(method={"test_steps": 4}, test_after=[4, 2]))
    assert [*record.metrics] == ["valid", "test", "test@2_steps", "test@4_steps"]
    assert record.metrics["test@4_steps"] == record.metrics["test"]


def test_steps_that_run_away_leave_the_run_what_it_is(tmp_path: Path) -> None:
    """A rate that two steps survive and many do not."""
    wild = {"inner_lr": 5.0}
    record = played(tmp_path, cell("fixed", wild, test_after=[400]))
    assert record.metrics == played(tmp_path, cell("fixed", wild)).metrics
    assert record.notes["test@400_steps"].startswith("mse on episode 0 of 'test' is ")


def test_pictures_of_what_ran_away_leave_the_run_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adaptation that raises, in the evaluation as for the picture; and one for the picture."""
    adapt, shown, hidden = Fixed.adapt, [], []

    def adapted(self: Fixed, ctx: Context, state: State, episode: Episode) -> Params:
        if self.test_steps == 9:
            raise Diverged("these steps are too long")
        return adapt(self, ctx, state, episode)

    def pictures(self: Problem, lam: Params, theta: Params, episode: Episode) -> Params:
        shown.append(theta)
        if hidden:
            raise Diverged("nothing to see")
        return {"fit": torch.full((2, 2), 0.1 * len(shown))}

    problem = type(testing.context(testing.build("task", "sinusoid")).problem)
    monkeypatch.setattr(Fixed, "adapt", adapted)
    monkeypatch.setattr(problem, "pictures", pictures, raising=False)
    one = cell("fixed", test_after=[4, 9])
    record = played(tmp_path, one)
    assert {*Store(tmp_path / one.key).pictures(record)} == {"fit", "fit@4_steps"}
    assert record.notes["test@9_steps"] == "these steps are too long"
    hidden.append(True)
    blind = played(tmp_path, other := cell("fixed"))
    assert blind.metrics["test"] == record.metrics["test"]
    assert blind.notes["pictures"] == "nothing to see"
    assert Store(tmp_path / other.key).pictures(blind) == {}


@pytest.mark.parametrize(
    ("task", "method", "chosen", "said"),
    [
        ("sinusoid", "maml", [0], "budget: setting test_after.0 cannot be 0"),
        ("sinusoid", "maml", [1, -2], "budget: setting test_after.1 cannot be -2"),
        ("sinusoid", "maml", [1.5], r"budget: setting test_after.0 cannot be 1\.5"),
        ("sinusoid", "maml", [], r"budget: setting test_after cannot be \[\]"),
        ("sinusoid", "maml", 5, "budget: setting test_after cannot be 5"),
        ("sinusoid", "maml", [5, 1, 5], "budget: test_after has 5 twice"),
        ("glyphs", "protonet", [5], r"test_after cannot be \[5\] for method protonet: "),
        ("ridge", "hoag", [5], "is nothing for method hoag, which has no test_steps"),
        ("hyper_cleaning", "fixed", [5], "is nothing for task hyper_cleaning, whose theta is"),
    ],
)
def test_what_means_nothing_is_refused(task: str, method: str, chosen: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make_cell(task, method, set={"budget": {"outer_steps": 1, "test_after": chosen}})


def test_a_cell_without_it_does_not_name_it() -> None:
    assert "test_after" not in cell().budget
    assert cell().key != cell(test_after=[1]).key
    assert cell(test_after=[1, 5]).budget["test_after"] == [1, 5]
