"""What a problem of one's own is known by, what it can be crossed with, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_problems
import pytest
import torch
from own_problems import BINARY, TABLE, classes, images, linear, mlp, numbers, regression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from metabench import api, problem_from, testing
from metabench.core.cell import instances, make_cell
from metabench.errors import MetabenchError, SettingError, UnknownName

pytestmark = pytest.mark.usefixtures("plugins_forgotten")


class Pairs(Dataset[Any]):
    """Plain examples, with noise on request."""

    def __init__(self, x: Tensor, y: Tensor, noise: float = 0.0) -> None:
        self.x, self.y, self.noise = x, y, noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + self.noise * torch.rand(()), int(self.y[i])


def accuracy_of_ones(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction.argmax(1)[y == 1] == 1).double().mean()


def absolute(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).abs().flatten(1).mean(1)


def softer(lam: Any, model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x) / 2 / lam["log_temperature"].exp(), y, reduction="none")


def flipped(y: Tensor) -> Tensor:
    return torch.cat([1 - y[:1], y[1:]])


def fixed(activation: nn.Module | None = None) -> nn.Module:
    layers = nn.Sequential(linear(3), activation or nn.Tanh(), nn.Linear(3, 2, dtype=torch.float64))
    with torch.no_grad():
        for p in layers[2].parameters():
            p.fill_(0.1)
    return layers


TRAIN, VALID = BINARY
BASE: dict[str, Any] = {"model": fixed, "train": TRAIN, "valid": VALID, "test": classes(9, 2)}
OTHERS: dict[str, dict[str, Any]] = {
    "a label of training": {"train": (TRAIN[0], flipped(TRAIN[1]))},
    "a label of validation": {"valid": (VALID[0], flipped(VALID[1]))},
    "a label of test": {"test": (BASE["test"][0], flipped(BASE["test"][1]))},
    "no test": {"test": None},
    "a split more": {"selection": classes(9, 5)},
    "splits the other way round": {"train": VALID, "valid": TRAIN},
    "the order of examples": {"train": (TRAIN[0].flip(0), TRAIN[1].flip(0))},
    "the activation": {"model": lambda: fixed(nn.ReLU())},
    "a model that is always the same": {"model": fixed()},
    "the way of decays": {"decays": "one"},
    "what is learned": {"learn": "example_weights"},
    "more that is learned": {"learn": ["weight_decays", "example_weights"]},
    "the order of what is learned": {"learn": ["example_weights", "weight_decays"]},
    "a function": {"learn": own_problems.softened, "first": {"log_temperature": 0.0}},
    "another function": {"learn": softer, "first": {"log_temperature": 0.0}},
    "its first lam": {"learn": softer, "first": {"log_temperature": 0.1}},
    "a start": {"learn": "initialisation"},
    "a first value": {"first": {"log_decay": -3.0}},
    "a bound": {"bounds": {"log_decay": (-9.0, 1.0)}},
    "the metric": {"metric": "loss"},
    "a metric of one's own": {"metric": accuracy_of_ones, "goal": "max"},
    "the goal": {"metric": accuracy_of_ones, "goal": "min"},
    "the loss": {"loss": lambda p, y: F.cross_entropy(p, y, reduction="none")},
    "the loss's constant": {
        "loss": lambda p, y: F.cross_entropy(p, y, reduction="none", label_smoothing=0.1)
    },
    "the head": {"head": "0"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "the batch": {"batch_size": 5},
    "the outer batch": {"outer_batch_size": 5},
    "fresh starts": {"carried": False},
}


def key(name: str | None = "mine", **other: Any) -> str:
    task = problem_from(**{**BASE, **other}, name=name)
    return make_cell(task.registered_name, "fixed", set={"budget": {"outer_steps": 1}}).key


def test_two_problems_never_share_a_key_under_one_name() -> None:
    keys = {what: key(**other) for what, other in {**OTHERS, **SETTINGS}.items()}
    keys["base"] = key()
    same = {a: b for a in keys for b in keys if a < b and keys[a] == keys[b]}
    assert same == {}


def test_the_same_problem_has_the_same_key() -> None:
    assert key() == key() and key(name=None) == key(name=None)
    x, y = TRAIN
    for given in (
        (x.numpy(), y.numpy()),
        [x.clone(), y.int()],
        TensorDataset(x, y),
        Pairs(x, y),
        DataLoader(Pairs(x, y), batch_size=5, shuffle=True),
    ):
        assert key(train=given) == key(), given


def test_settings_change_keys_and_not_the_fingerprint() -> None:
    marks = {problem_from(**{**BASE, **other}).fingerprint for other in [{}, *SETTINGS.values()]}
    assert len(marks) == 1


def test_a_cell_of_another_problem_under_the_name_is_refused() -> None:
    problem_from(**BASE, name="mine")
    cell = make_cell("mine", "fixed", set={"budget": {"outer_steps": 1}})
    instances(cell)
    problem_from(**{**BASE, "decays": "one"}, name="mine")
    with pytest.raises(SettingError, match=r"fingerprint = .* is another problem; here 'mine'"):
        instances(cell)


def test_a_cell_whose_problem_is_not_known_says_what_to_do(tmp_path: Path) -> None:
    task = problem_from(**BASE, name="mine")
    cell = make_cell("mine", "fixed", set={"budget": {"outer_steps": 1}})
    from metabench.core.registry import tasks

    del tasks._classes["mine"]
    with pytest.raises(UnknownName, match=r"no task 'mine'.*--plugin FILE"):
        instances(cell)
    assert task.registered_name == "mine"


def test_a_name_of_another_kind_is_refused() -> None:
    with pytest.raises(MetabenchError, match="two tasks are called 'ridge'"):
        problem_from(**BASE, name="ridge")
    with pytest.raises(SettingError, match="letters, digits and _"):
        problem_from(**BASE, name="my problem")


def test_without_a_name_it_has_one_of_its_fingerprint() -> None:
    task = problem_from(**BASE)
    assert task.registered_name == f"own_{task.fingerprint[:12]}"
    assert task.registered_name in {entry.name for entry in api.list_("task")["task"]}


def test_it_is_run_and_shown_beside_other_methods(tmp_path: Path) -> None:
    task = problem_from(**BASE, name="mine")
    few = ["bilevel", "ift", "maml"]
    suite = api.suite_of_pairs([task], few)
    how: dict[str, Any] = {"budget": "smoke", "store": tmp_path}
    assert api.run(suite, **how).count("done") == 2
    assert [p.state for p in api.plan(suite, **how)] == ["done", "done", "not applicable"]
    frame = api.table(suite, **how).frame
    assert set(frame["row"]) == {*few} and "accuracy" in set(frame["metric"])
    assert api.run(suite, **how).reused  # nothing is run twice
    mended = problem_from(**{**BASE, "train": (TRAIN[0], flipped(TRAIN[1]))}, name="mine")
    again = api.plan(api.suite_of_pairs([mended], few), **how)
    assert [p.state for p in again] == ["open", "open", "not applicable"]


def test_without_a_test_split_the_validation_split_is_compared(tmp_path: Path) -> None:
    task = problem_from(fixed, *BINARY)
    suite = api.suite_of_pairs([task], ["fixed"])
    assert suite.evaluation == "valid" and task.evaluations == ()
    assert api.run(suite, budget="smoke", store=tmp_path).count("done") == 1
    value = api.table(suite, budget="smoke", store=tmp_path).frame["ours_mean"].iloc[0]
    assert 0 <= float(value) <= 1


def test_settings_of_an_instance_go_along() -> None:
    task = problem_from(**BASE, batch_size=5, name="mine")
    method = testing.build("method", "bilevel", inner_steps=3)
    (planned,) = api.plan(api.suite_of_pairs([task], [method]), budget="smoke")
    assert planned.cell.task_settings["batch_size"] == 5
    assert planned.cell.task_settings["fingerprint"] == task.fingerprint
    assert planned.cell.method_settings["inner_steps"] == 3
    (changed,) = api.plan(
        api.suite_of_pairs([task], [method]), budget="smoke", set={"task.batch_size": 6}
    )
    assert changed.cell.task_settings["batch_size"] == 6


def test_all_methods_that_apply() -> None:
    task = problem_from(**BASE)
    rows = {row.method for row in api.suite_of_pairs([task]).rows}
    assert {"bilevel", "ift", "random", "fixed"} <= rows and not {"maml", "hoag"} & rows


def test_show_tells_what_it_is() -> None:
    problem_from(**BASE, name="mine")
    (found,) = api.show("mine", "task")
    assert "weight decays of a Sequential with 23 parameters" in found.title
    assert ("bilevel", "yes") in found.tables[0][1] and ("data", "given in Python") in found.facts


FILE = """
import torch
from torch import nn
from metabench import problem_from

g = torch.Generator().manual_seed({seed})
x = torch.randn(30, 4, generator=g)
y = (x[:, 0] > 0).long()
problem_from(
    lambda: nn.Linear(4, 2), (x[:10], y[:10]), (x[10:20], y[10:20]), test=(x[20:], y[20:]),
    name="mine",
)
"""
SCRIPT = """
import sys
from metabench import api
{body}
if __name__ == "__main__":
    suite = api.suite_of_pairs(["mine"], ["fixed", "random"])
    print(api.run(suite, budget="smoke", store=sys.argv[1], jobs=2))
"""


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_worker_processes_of_a_script_make_it_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body=FILE.format(seed=0)))
    done = python(str(script), str(tmp_path / "store"))
    assert done.stdout.startswith("2 done"), done.stderr


@pytest.mark.slow
def test_a_session_that_cannot_be_imported_again_is_refused_several_jobs(tmp_path: Path) -> None:
    text = SCRIPT.format(body=FILE.format(seed=0))
    done = python("-c", text, str(tmp_path / "store"))
    assert "jobs and ranks are to be 1: task 'mine' is known in this process alone" in done.stderr


@pytest.mark.slow
def test_a_plugin_file_makes_it_for_every_command(tmp_path: Path) -> None:
    file, store = tmp_path / "mine.py", str(tmp_path / "store")
    words = ["--task", "mine", "--method", "fixed", "--budget", "smoke", "--store", store]

    def ask(verb: str) -> str:
        done = python("-m", "metabench", verb, *words, "--plugin", str(file))
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    file.write_text(FILE.format(seed=0))
    assert "1 done" in ask("run")
    assert "1 cell: 1 done" in ask("plan")
    file.write_text(FILE.format(seed=1))  # other data under the same name
    assert "1 cell: 1 open" in ask("plan")


def test_jobs_of_a_cluster_are_refused_what_no_file_makes() -> None:
    from metabench.cluster.submitting.refusals import unknown_to_nodes

    task = problem_from(**BASE, name="mine")
    planned = api.plan(api.suite_of_pairs([task], ["fixed"]), budget="smoke")
    (why,) = unknown_to_nodes(planned)
    assert why.startswith("task 'mine' is known in this process alone") and "--plugin FILE" in why
    plain = api.plan(api.suite_of_pairs(["quadratic"], ["fixed"]), budget="smoke")
    assert unknown_to_nodes(plain) == []


def once(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.layer(x), 0.5)


class Custom(nn.Module):
    """A layer and what ``how`` does with it."""

    def __init__(self, how: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.how = linear(2), how
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


def counted(self: Any, x: Tensor) -> Tensor:
    self.calls.add_(1)
    found: Tensor = self.layer(x)
    return found


def drawing(_: torch.Generator) -> Any:
    return own_problems.regression(torch.default_generator)


def odd_shapes() -> list[Any]:
    (first, second) = own_problems.regressions(2)
    (x, y), query = second
    return [first, ((x[:3], y[:3]), query)]


X, Y = TRAIN
NUMBERS: dict[str, Any] = {"train": TABLE[0], "valid": TABLE[1], "test": None}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no module": ({"model": 3}, r"model cannot be an int: give a torch.nn.Module"),
    "a function of none": ({"model": lambda: 3}, "the function makes an int, no nn.Module"),
    "other modules": (
        {"model": lambda: linear(int(torch.randint(2, 3, (), generator=None)) + next(COUNT))},
        "two modules under one seed",
    ),
    "a function of an argument": (
        {"model": lambda seed: linear(2)},
        r"model: the function that makes it raises TypeError: .*called without arguments",
    ),
    "a prediction that is not finite": (
        {"model": Custom(lambda s, x: s.layer(x) * torch.nan)},
        "model: at its first parameters it predicts what is not finite",
    ),
    "no data": ({"train": None}, "train cannot be a NoneType: give a pair of tensors"),
    "sparse": ({"valid": (X.to_sparse(), Y)}, r"valid: x is sparse; give it as x\.to_dense\(\)"),
    "a loss that is not finite": (
        {"loss": lambda p, y: p[:, 0] * torch.inf},
        "loss: of the first predictions it gives what is not finite",
    ),
    "no parameter": ({"model": nn.Identity()}, "it has no parameter"),
    "all frozen": ({"model": linear(2).requires_grad_(False)}, "it has no parameter to train"),
    "two types": (
        {"model": nn.Sequential(linear(3), nn.Linear(3, 2))},
        r"one floating type, not '0\.bias' torch\.float64, '1\.bias' torch\.float32",
    ),
    "a lazy module": ({"model": nn.LazyLinear(2)}, "has no shape yet; call the model on a batch"),
    "running statistics": (
        {"model": nn.Sequential(linear(3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()},
        r"module '1' \(BatchNorm1d\) writes running statistics.*track_running_stats=False.*"
        r"nn\.GroupNorm.*\.eval\(\)",
    ),
    "a recurrent dropout": (
        {"model": nn.LSTM(4, 2, num_layers=2, dropout=0.1).double()},
        r"module '' \(LSTM\) draws what it drops \(p = 0\.1\).*\.eval\(\)",
    ),
    "dropout in evaluation": (
        {"model": Custom(once)},
        r"something else when it is called again, in \.eval\(\) mode: .*self\.training\)",
    ),
    "noise": (
        {"model": Custom(lambda s, x: s.layer(x + torch.randn_like(x)))},
        "something else when it is called again, with the same dropout: leave out what else",
    ),
    "a buffer that moves": ({"model": Custom(counted)}, "changes its buffer 'calls'"),
    "a prediction of none": ({"model": Custom(lambda s, x: x.sum())}, r"it makes \[\]; give one"),
    "a tuple": ({"model": Custom(lambda s, x: (x, x))}, "it makes tuple; give one"),
    "features that do not fit": (
        {"model": nn.Linear(5, 2).double()},
        r"it cannot take x \[3, 4\] torch\.float64: RuntimeError",
    ),
    "data of another kind": ({"train": 3}, r"train cannot be an int: give a pair of tensors"),
    "one tensor": ({"train": (X,)}, r"train cannot be a tuple of 1 \(Tensor\): give a pair"),
    "numbers that differ": ({"train": (X, Y[:5])}, r"train: x is \[12, 4\] and y \[5\]"),
    "no example": ({"valid": (X[:0], Y[:0])}, "valid: there is no example"),
    "not a number": ({"valid": (X * torch.nan, Y)}, "valid: x has numbers that are not finite"),
    "complex": ({"valid": (X * 1j, Y)}, "valid: x is complex"),
    "another shape": ({"valid": (X[:, :3], Y)}, r"valid: x of an example is \[3\].*train is \[4\]"),
    "another type": ({"valid": (X, Y.double())}, r"valid: y of an example is \[\] torch.float64"),
    "a random transform": (
        {"train": Pairs(X, Y, 0.1)},
        "train: example 0 is another one when it is asked for again.*learn='augmentation'",
    ),
    "examples that are none": (
        {"train": TensorDataset(X)},
        r"train\[0\] is a tuple of 1 \(Tensor\), not a pair",
    ),
    "a loader that collates": (
        {"train": DataLoader(Pairs(X, Y), collate_fn=lambda rows: rows)},
        "train: its DataLoader collates examples by a function of its own",
    ),
    "a class too many": (
        {"valid": (X, Y + 1)},
        "valid: classes are 1 to 2; the model has 2",
    ),
    "classes for one number": ({"model": linear(1)}, "train: classes are 0 to 1; the model has 1"),
    "whole numbers without logits": (
        {"model": Custom(lambda s, x: s.layer(x)[:, 0])},
        r"the loss is cross-entropy: predictions \[3\] and y \[3\].*give y as floats",
    ),
    "numbers of another shape": (
        {**NUMBERS, "model": linear(3)},
        r"the model predicts \[3\] for an example, and its target y is \[1\]",
    ),
    "a mean loss": ({"loss": F.cross_entropy}, r"of 3 examples it gives \[\].*reduction='none'"),
    "a loss that fails": ({"loss": F.mse_loss}, r"loss: of predictions \[3, 2\] and y \[3\]"),
    "a loss that is none": ({"loss": "mse"}, "loss cannot be 'mse': give a function"),
    "a loss with parameters": (
        {"loss": nn.Linear(2, 1)},
        "loss: it has parameters; learn=function and first=",
    ),
    "a metric that is none": ({"metric": "acuracy"}, "no metric 'acuracy'; near: accuracy"),
    "no accuracy of numbers": (
        {
            "train": TABLE[0],
            "valid": TABLE[1],
            "test": None,
            "model": linear(),
            "metric": "accuracy",
        },
        "no metric 'accuracy'.*known: loss",
    ),
    "a metric without a goal": ({"metric": accuracy_of_ones}, "say 'max' or 'min'"),
    "a metric of no number": (
        {"metric": lambda p, y: p, "goal": "max"},
        "metric metric: of predictions .* it gives no number",
    ),
    "the wrong goal": ({"goal": "min"}, "goal of accuracy is 'max', not 'min'"),
    "another thing to learn": (
        {"learn": "weight_decay"},
        "no thing to learn called 'weight_decay'; near: weight_decays",
    ),
    "nothing to learn": ({"learn": []}, "give one or several of weight_decays"),
    "something else to learn": ({"learn": [3]}, "learn has 3: give names or a function"),
    "twice the same": ({"learn": ["weight_decays"] * 2}, "learn has 'weight_decays' twice"),
    "a start and decays": (
        {"learn": ["initialisation", "weight_decays"]},
        "'initialisation' goes alone, not with weight_decays",
    ),
    "another way of decays": ({"decays": "layer"}, "no way of weight decays 'layer'"),
    "other strengths": (
        {
            "model": own_problems.cnn,
            "train": images(8),
            "valid": images(8),
            "test": None,
            "learn": "augmentation",
            "strengths": "rotatoin",
        },
        "no strengths of augmentations called 'rotatoin'; near: rotation",
    ),
    "augmentations of rows": ({"learn": "augmentation"}, r"takes square images.*x is \[12, 4\]"),
    "a function without a first lam": ({"learn": softer}, "needs its first lam: first="),
    "a function that fails": (
        {"learn": softer, "first": {"temperature": 1.0}},
        "the function raises KeyError at the first lam: 'log_temperature'",
    ),
    "a function that draws": (
        {
            "learn": lambda lam, model, x, y: F.dropout(model(x), lam["a"].item())[:, 0],
            "first": {"a": 0.5},
        },
        "gives other losses when it is called again: it may draw nothing; dropout is for the model",
    ),
    "a function of a mean": (
        {"learn": lambda lam, model, x, y: model(x).mean(), "first": {"a": 1.0}},
        r"of 3 examples the function gives \[\], not the loss of each, \[3\]",
    ),
    "a first value of nothing": (
        {"first": {"log_deacy": -3.0}},
        "no part of lam called 'log_deacy'; near: log_decay",
    ),
    "a bound of nothing": ({"bounds": {"logit": (0, 1)}}, "no part of lam called 'logit'"),
    "a bound that is none": ({"bounds": {"log_decay": 3}}, r"bounds of log_decay.* cannot be 3"),
    "bounds the wrong way": ({"bounds": {"log_decay": (1, 0)}}, "low is below high"),
    "a bound that is no number": (
        {"bounds": {"log_decay": (float("nan"), 1.0)}},
        r"bounds of log_decay.* cannot be \(nan, 1.0\): NaN is no bound",
    ),
    "losses that are not finite": (
        {"learn": lambda lam, model, x, y: model(x)[:, 0] * lam["a"].log(), "first": {"a": -1.0}},
        "at the first lam the function gives what is not finite",
    ),
    "a first value that is no number": (
        {"first": {"log_decay": "small"}},
        r"first: log_decay.* cannot be 'small': give numbers",
    ),
    "a name that is none": ({"name": 3}, "name cannot be 3: letters, digits and _"),
    "a first value that is not finite": (
        {"first": {"log_decay": float("inf")}, "bounds": {"log_decay": (0, float("inf"))}},
        r"first: log_decay.* cannot be inf: not finite",
    ),
    "a first value outside": (
        {"first": {"log_decay": 9.0}},
        r"first: log_decay\.0\.weight starts at 9 to 9, outside of its bounds, -12 to 2",
    ),
    "a first value of another shape": (
        {"first": {"log_decay": torch.zeros(7)}},
        r"first: log_decay\.0\.weight is \[\], not \[7\]",
    ),
    "a batch too large": ({"batch_size": 13}, "batch_size = 13, and train has 12 examples"),
    "an outer batch too large": ({"outer_batch_size": 13}, "and valid has 12 examples"),
    "a batch of none": ({"batch_size": 0}, "setting batch_size cannot be 0"),
    "a head that is none": ({"head": "3"}, r"head cannot be '3': name a submodule \(0, 1, 2\)"),
    "a head without parameters": ({"head": "1"}, "head: module '1' has no parameter to train"),
    "a meta batch of decays": ({"meta_batch": 3}, "meta_batch cannot be 3: it is for learn='init"),
}
START: dict[str, Any] = {
    "model": linear, "train": regression, "valid": regression, "learn": "initialisation",
}  # fmt: skip
WRONG_START: dict[str, tuple[dict[str, Any], str]] = {
    "inner problems and a data set": ({"valid": numbers(9)}, "valid is one data set, and the oth"),
    "no inner problem": ({"train": []}, "train: there is no inner problem"),
    "other shapes": ({"train": odd_shapes()}, "train: inner problem 1 has shapes"),
    "no pairs": ({"train": [numbers(9)]}, r"train\[0\], support cannot be a Tensor"),
    "no two pairs": ({"train": [(1, 2, 3)]}, r"train\[0\]: give two pairs.*a tuple of 3"),
    "a generator of its own": ({"train": drawing}, "gives two inner problems for one torch.Gen"),
    "a first value": ({"first": {"a": 1}}, "first cannot be {'a': 1}: learn='initialisation' has"),
    "a carried start": ({"carried": True}, "carried cannot be True"),
    "a selection": ({"selection": regression}, "selection: learn='initialisation' chooses"),
    "an int": ({"train": 3}, "train cannot be an int: give a pair"),
}


def counter() -> Any:
    n = 0
    while True:
        n += 1
        yield n


COUNT = counter()


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_problem_is_refused_in_words(what: str) -> None:
    other, message = WRONG[what]
    given = {**BASE, "model": fixed() if "model" not in other else other["model"], **other}
    kind = UnknownName if message.startswith("no ") else SettingError
    with pytest.raises(kind, match=message):
        problem_from(**given)


def test_what_is_refused_leaves_no_name() -> None:
    for other in ({"batch_size": 13}, {"batch_size": 0}, {"head": "3"}):
        with pytest.raises(SettingError):
            problem_from(**{**BASE, **other}, name="mine")
    assert "mine" not in {entry.name for entry in api.list_("task")["task"]}


@pytest.mark.parametrize("what", WRONG_START)
def test_what_is_no_start_is_refused_in_words(what: str) -> None:
    other, message = WRONG_START[what]
    with pytest.raises(SettingError, match=message):
        problem_from(**{**START, **other})


def test_an_infinite_end_is_no_bound_and_nothing_to_search_in() -> None:
    inf = float("inf")
    task = problem_from(linear(), *TABLE, decays="one", bounds={"log_decay": (-9, inf)})
    problem = testing.context(task).problem
    (hyper,) = problem.hypers
    assert (hyper.low, hyper.high) == (-9.0, None)
    far = problem.project({"log_decay": torch.tensor(-99.0)})["log_decay"]
    assert far == -9 and problem.project({"log_decay": 1e9 * torch.ones(())})["log_decay"] == 1e9
    assert "search_space" not in task.offers and "bounds" in task.lacks["search_space"]
    free = problem_from(linear(), *TABLE, decays="one", bounds={"log_decay": (-inf, inf)})
    (hyper,) = testing.context(free).problem.hypers
    assert (hyper.low, hyper.high) == (None, None)


def test_data_of_other_types_take_the_models() -> None:
    x, y = TABLE[0]
    task = problem_from(linear().float(), (x.numpy().astype(np.float64), y), TABLE[1])
    assert task.given.splits["train"].x.dtype == torch.float32 == task.given.splits["train"].y.dtype


def test_an_own_loss_and_metric_are_taken() -> None:
    task = problem_from(linear(), *TABLE, loss=absolute, metric=lambda p, y: (p - y).abs().max(),
                        goal="min")  # fmt: skip
    assert task.metric == "metric" and task.metrics == ("loss", "metric")
    assert not task.offers & {"evidence", "strongly_convex"}
    for need in ("evidence", "strongly_convex"):
        assert "only where the" in task.lacks[need] and "default one" in task.lacks[need]
    problem = testing.context(task).problem
    episode = problem.episode("valid", 0)
    found = problem.metrics(problem.init_outer(), problem.network.start, episode)
    x, y = TABLE[1]
    gap = (problem.network(problem.network.start, x) - y).abs()
    assert found == pytest.approx({"loss": float(gap.mean()), "metric": float(gap.max())})


def test_a_recurrent_model_has_no_evidence_and_says_why() -> None:
    """torch has no rule for it under vmap; all other derivatives it has."""
    task = own_problems.KINDS["decays of a recurrent model"]()
    assert "evidence" not in task.offers and "example_losses" in task.offers
    assert "no derivatives of each example" in task.lacks["evidence"]


def test_the_head_is_the_last_layer_of_a_sequence_or_the_one_that_is_named() -> None:
    assert problem_from(mlp, *BINARY).given.head == ("2.weight", "2.bias")
    named = problem_from(mlp, *BINARY, head="0")
    assert named.given.head == ("0.weight", "0.bias")
    custom = problem_from(Custom(lambda s, x: s.layer(x)), *BINARY)
    assert "head" not in custom.offers and "which layer is the last" in custom.lacks["head"]


def test_batch_norms_whose_start_is_learned_are_named() -> None:
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    model = nn.Sequential(linear(3), norm, nn.BatchNorm1d(3, affine=False).eval(), nn.Linear(3, 2))
    task = problem_from(model.double(), *BINARY, learn="initialisation")
    assert "batch_norms" in task.offers
    assert testing.context(task).problem.batch_norms == ("1.weight", "1.bias")
    norm.bias.requires_grad_(False)
    frozen = problem_from(model, *BINARY, learn="initialisation")
    assert testing.context(frozen).problem.batch_norms == ("1.weight",)
    assert "batch_norms" not in problem_from(mlp, *BINARY, learn="initialisation").offers
