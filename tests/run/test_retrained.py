"""The second readout: theta trained anew at the lam that is tested, alike for every method."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metabench.contract.seeds import Seeds
from metabench.core.cell import Cell, instances, make_cell
from metabench.core.costs import COUNT_NAMES
from metabench.core.errors import SettingError, UnknownName
from metabench.run.runner import run_cell
from metabench.store.record import RETRAINED, Record
from metabench.store.store import Store

AGAIN = "test" + RETRAINED
ANEW = {"retrain_steps": 4000, "retrain_lr": 0.2}


def cell(method: str = "fixed", task: dict | None = None, **budget: Any) -> Cell:
    limits = {"outer_steps": 3, "eval_every": 3, "valid_episodes": 2, "test_episodes": 2}
    return make_cell(
        "ridge",
        method,
        set={
            "task": {"rows": 30, "features": 4} | (task or {}),
            "method": {"inner_steps": 5},
            "budget": limits | budget,
        },
    )


def played(tmp_path: Path, one: Cell, **how: Any) -> Record:
    record = run_cell(one, Store(tmp_path / one.key), **how)
    assert record.status == "done", record.reason
    return record


@pytest.mark.parametrize("carried", [False, True])
def test_trained_to_the_end_it_is_the_solution_at_the_lam_found(
    tmp_path: Path, carried: bool
) -> None:
    one = cell("bilevel", {"carried": carried}, **ANEW)
    record = played(tmp_path, one)
    problem = instances(one)[0].build(Seeds.of(one.seed), torch.device("cpu"))
    lam = {k: torch.tensor(v, dtype=torch.float64) for k, v in record.lam["values"].items()}
    x, y = problem.parts["train"]["x"], problem.parts["train"]["y"]
    theta = {"w": torch.linalg.solve(x.T @ x + torch.diag(lam["log_penalty"].exp()), x.T @ y)}
    known = problem.metrics(lam, theta, problem.episode("test", 0))
    assert record.metrics[AGAIN]["loss"].mean == pytest.approx(float(known["loss"]), rel=1e-9)
    assert record.metrics["test"]["loss"].mean != pytest.approx(float(known["loss"]), rel=1e-4)


def test_it_does_not_depend_on_how_the_method_trains(tmp_path: Path) -> None:
    budget = {"retrain_steps": 7, "retrain_lr": 0.05, "retrain_solver": "adam"}
    few, many = (
        played(tmp_path, make_cell("ridge", "fixed", set={
            "method": {"inner_steps": n}, "budget": {"outer_steps": 1, **budget},
        })) for n in (1, 9)
    )  # fmt: skip
    assert few.metrics["test"] != many.metrics["test"]
    assert few.metrics[AGAIN] == many.metrics[AGAIN]


def test_one_that_runs_away_leaves_the_run_what_it_is(tmp_path: Path) -> None:
    """e^lam may have made the inner problem too steep for the readout's step size."""
    record = played(tmp_path, cell("ift", retrain_steps=400, retrain_lr=50.0))
    assert AGAIN not in record.metrics
    assert record.metrics == played(tmp_path, cell("ift")).metrics
    assert record.notes["retraining"].startswith("on 'test': loss on episode 0 of 'test' is ")


def test_it_is_not_counted_and_changes_nothing_else(tmp_path: Path) -> None:
    without, with_it = played(tmp_path, cell("ift")), played(tmp_path, cell("ift", **ANEW))
    assert [with_it.cost[n] for n in COUNT_NAMES] == [without.cost[n] for n in COUNT_NAMES]
    assert {k: v for k, v in with_it.metrics.items() if k != AGAIN} == without.metrics


@pytest.mark.parametrize("how", [{}, {"workers": 2}, {"engine": "vmap"}])
def test_an_initialisation_is_adapted_to_every_episode(tmp_path: Path, how: dict) -> None:
    """Where a method adapts at test as the readout does, both say the same."""
    budget = {"outer_steps": 2, "eval_every": 2, "valid_episodes": 2, "test_episodes": 4}
    budget |= {"retrain_steps": 3, "retrain_lr": 0.05}
    chosen = {
        "task": {"meta_batch": 2},
        "method": {"inner_steps": 3, "inner_lr": 0.05},
        "budget": budget,
    }
    record = played(tmp_path, make_cell("sinusoid", "maml", set=chosen), **how)
    assert record.metrics[AGAIN] == record.metrics["test"]
    assert record.metrics[AGAIN]["mse"].n == 4


@pytest.mark.parametrize(
    ("budget", "error", "said"),
    [
        ({"retrain_steps": 5}, SettingError, "retrain_steps and retrain_lr go together"),
        ({"retrain_lr": 0.1}, SettingError, "retrain_steps and retrain_lr go together"),
        ({"retrain_solver": "sgd"}, SettingError, "needs retrain_steps and retrain_lr"),
        (ANEW | {"retrain_solver": "langevin"}, SettingError, "'langevin' adds noise to its steps"),
        (ANEW | {"retrain_solver": "adamm"}, UnknownName, "near: adam, adamw"),
        (ANEW | {"retrain_steps": 0}, SettingError, "retrain_steps cannot be 0"),
    ],
)
def test_half_of_it_or_a_wrong_solver_is_refused(
    budget: dict, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        cell(**budget)


@pytest.mark.parametrize("solver", ["prospect", "saddle_saga", "lsvrg"])
def test_a_solver_by_examples_is_refused_where_a_task_has_none(solver: str) -> None:
    budget = {"outer_steps": 1, "retrain_steps": 5, "retrain_lr": 0.1, "retrain_solver": solver}
    said = f"cannot be '{solver}' for task quadratic: solver {solver} needs losses of single"
    with pytest.raises(SettingError, match=said):
        make_cell("quadratic", "fixed", set={"budget": budget})
    assert make_cell("ridge", "fixed", set={"budget": budget}).budget["retrain_solver"] == solver


def test_a_learner_with_steps_of_its_own_has_no_step_size_to_retrain_with() -> None:
    with pytest.raises(SettingError, match="retrain_lr is nothing for task tagi_regression"):
        make_cell("tagi_regression", "fixed", set={"budget": {"outer_steps": 1, **ANEW}})


def test_a_cell_without_it_does_not_name_it() -> None:
    assert not [name for name in cell().budget if name.startswith("retrain")]
