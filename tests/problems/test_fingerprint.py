"""What changes a fingerprint and what does not."""

from __future__ import annotations

import functools
import importlib
import io
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metabench.errors import SettingError
from metabench.problems.fingerprint import fingerprint

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
)
TREES = st.recursive(
    LEAVES,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.tuples(inside, inside),
        st.dictionaries(st.text(max_size=3), inside, max_size=3),
    ),
    max_leaves=8,
)


def told(value: Any) -> str:
    """All that makes plain data differ: its values with their types, and the order of names."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{told(k)}:{told(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({','.join(map(told, value))})"
    return f"{type(value).__name__} {value!r}"


@given(TREES, TREES)
def test_plain_data_have_the_same_fingerprint_where_they_are_the_same(a: Any, b: Any) -> None:
    assert (fingerprint(x=a) == fingerprint(x=b)) == (told(a) == told(b))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_module_is_known_by_its_weights(kind: type[nn.Module]) -> None:
    """It has weak references to them, too."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return kind(4, 2)

    assert fingerprint(x=made(0)) == fingerprint(x=made(0)) != fingerprint(x=made(1))


def module(activation: nn.Module | None = None, **how: Any) -> nn.Module:
    """Always from the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2, **how), activation or nn.Tanh())


def changed(module: nn.Module, change: Callable[[Any], Any]) -> nn.Module:
    with torch.no_grad():
        change(module)
    return module


class Scaled(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by * x


def of_source(source: str, **names: Any) -> Any:
    """What a cell of a notebook defines as ``f``."""
    space: dict[str, Any] = {"__name__": "__main__", "torch": torch, "nn": nn, **names}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), space)
    return space["f"]


NET = "class f(nn.Module):\n    def forward(self, x):\n        return {}\n"
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "a number of a tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
    "a tensor's type": (torch.zeros(2, dtype=torch.float32), torch.zeros(2, dtype=torch.float64)),
    "a tensor's shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "the sign of zero": (torch.tensor(0.0), torch.tensor(-0.0)),
    "an array": (np.zeros(3), np.zeros(3, dtype=np.float32)),
    "an activation": (module(), module(nn.ReLU())),
    "a constant of a layer": (module(nn.LeakyReLU(0.1)), module(nn.LeakyReLU(0.2))),
    "a weight": (module(), changed(module(), lambda m: m[0].weight[0, 0].add_(1e-7))),
    "a bias": (module(), module(bias=False)),
    "what is frozen": (module(), changed(module(), lambda m: m[0].bias.requires_grad_(False))),
    "the mode": (module(), module().eval()),
    "a buffer": (
        nn.BatchNorm1d(2),
        changed(nn.BatchNorm1d(2), lambda m: m.running_mean.add_(1)),
    ),
    "a number of a module": (Scaled(1.0), Scaled(2.0)),
    "a name of a parameter": (
        nn.ModuleDict({"a": nn.Identity()}),
        nn.ModuleDict({"b": nn.Identity()}),
    ),
    "a class's code": (of_source(NET.format("x"))(), of_source(NET.format("2 * x"))()),
    "a function's code": (of_source("f = lambda x: x + 1"), of_source("f = lambda x: x - 1")),
    "a constant in code": (of_source("f = lambda x: x + 1"), of_source("f = lambda x: x + 2")),
    "a name in code": (of_source("f = lambda x: x.sin()"), of_source("f = lambda x: x.cos()")),
    "a default": (of_source("f = lambda x, a=1: x * a"), of_source("f = lambda x, a=2: x * a")),
    "a global": (of_source("f = lambda x: x * a", a=1), of_source("f = lambda x: x * a", a=2)),
    "a global of a helper": (
        of_source("def g(x):\n    return x * a\ndef f(x):\n    return g(x)\n", a=1),
        of_source("def g(x):\n    return x * a\ndef f(x):\n    return g(x)\n", a=2),
    ),
    "a global of a method": (
        of_source(NET.format("a * x"), a=torch.ones(2)),
        of_source(NET.format("a * x"), a=torch.zeros(2)),
    ),
    "a function inside": (
        of_source("def f(x):\n    return (lambda y: y + 1)(x)"),
        of_source("def f(x):\n    return (lambda y: y + 2)(x)"),
    ),
    "a closure": (
        of_source("def make(a):\n    return lambda x: a * x\nf = make(1)"),
        of_source("def make(a):\n    return lambda x: a * x\nf = make(2)"),
    ),
    "a partial's argument": (
        functools.partial(nn.functional.huber_loss, delta=1.0),
        functools.partial(nn.functional.huber_loss, delta=2.0),
    ),
    "a library's function": (torch.sin, torch.cos),
    "a method's object": (Scaled(1.0).forward, Scaled(2.0).forward),
    "an object of a library": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "a set": ({"a", "b"}, {"a", "c"}),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_fingerprints_that_differ(what: str) -> None:
    a, b = DIFFERENT[what]
    assert fingerprint(x=a) == fingerprint(x=a)
    assert fingerprint(x=a) != fingerprint(x=b)


def test_a_hook_is_part_of_a_module() -> None:
    hooked = module()
    hooked.register_forward_hook(lambda m, args, out: 2 * out)
    assert fingerprint(x=hooked) != fingerprint(x=module())


@dataclass
class Settings:
    a: Any = None


SAME: dict[str, tuple[Any, Any]] = {
    "a copy of a tensor": (torch.arange(6).view(2, 3), torch.arange(6).view(3, 2).view(2, 3)),
    "a tensor that is laid out otherwise": (torch.ones(2, 3), torch.ones(3, 2).t()),
    "a module made again": (module(), module()),
    "a class defined again": (of_source(NET.format("x"))(), of_source(NET.format("x"))()),
    "comments": (of_source("f = lambda x: x"), of_source("# new\n\nf = lambda x: x  # same")),
    "an object made again": (Settings([1, 2]), Settings([1, 2])),
    "a global that is not read": (
        of_source("f = lambda x: x.data", data=1),
        of_source("f = lambda x: x.data", data=2),
    ),
    "the order of a set": ({"a", "b", "c"}, {"c", "b", "a"}),
}


@pytest.mark.parametrize("what", SAME)
def test_fingerprints_that_are_the_same(what: str) -> None:
    a, b = SAME[what]
    assert fingerprint(x=a) == fingerprint(x=b)


def test_gradients_and_calls_leave_no_trace() -> None:
    net = module()
    before = fingerprint(x=net)
    net(torch.ones(2, 3)).sum().backward()
    assert fingerprint(x=net) == before


def test_a_file_of_ones_own_counts_by_what_stands_in_it_and_in_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    marks = []
    for by, shift in ((1, 0), (2, 0), (2, 1), (1, 0)):
        (tmp_path / "own_inner.py").write_text(f"def f(x):\n    return x + {shift}\n")
        (tmp_path / "own_helper.py").write_text(
            f"from own_inner import f\ndef g(x):\n    return {by} * f(x)\n"
        )
        importlib.invalidate_caches()
        for name in ("own_helper", "own_inner"):
            sys.modules.pop(name, None)
        helper = importlib.import_module("own_helper")
        marks.append(fingerprint(x=of_source("f = lambda x: helper.g(x)", helper=helper)))
    for name in ("own_helper", "own_inner"):
        sys.modules.pop(name, None)
    assert len(set(marks)) == 3 and marks[0] == marks[3]


def test_cycles_end() -> None:
    a: list[Any] = [1]
    a.append(a)
    b: list[Any] = [2]
    b.append(b)
    assert fingerprint(x=a) != fingerprint(x=b)


@pytest.mark.parametrize("value", [io.StringIO, lambda: (i for i in range(3))])
def test_what_cannot_be_told_apart_is_refused_by_name(value: Any) -> None:
    thing = value()
    source = "f = lambda x: thing"
    if isinstance(thing, io.StringIO):
        thing = sys.stderr
    with pytest.raises(SettingError, match=r"loss \(function <lambda>\), global thing: nothing"):
        fingerprint(loss=of_source(source, thing=thing))


PROGRAM = """
import torch
from torch import nn
from metabench.problems.fingerprint import fingerprint

class Net(nn.Module):
    names = {"alpha", "beta", "gamma", "delta"}
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
    def forward(self, x):
        return self.layer(x) if "alpha" in {"alpha", "beta", "gamma"} else x

print(fingerprint(net=Net(), loss=lambda p, y: nn.functional.mse_loss(p, y, reduction="none")))
"""


@pytest.mark.slow
def test_it_is_the_same_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and len(found.pop().strip()) == 64
