"""A method that changes the state that it is given is named, not believed."""

from dataclasses import dataclass, replace

import pytest
import torch

from metabench.contract.method import State
from metabench.core import registry
from metabench.core.cell import make_cell
from metabench.run.attempts.guards import ChangedInPlace, Untouched
from metabench.run.runner import run_cell

Bilevel = registry.methods.get("bilevel")
FAST = {"outer_lr": 0.3, "inner_steps": 20, "inner_lr": 0.3}
"""Overshoots, so that the best of the states is not the last."""


def result(name, **more):
    budget = {"outer_steps": 60, "eval_every": 10}
    return run_cell(make_cell("ridge", name, set={"method": FAST | more, "budget": budget}))


def copied(state, new):
    for k, v in state.lam.items():
        v.copy_(new.lam[k])
    return replace(new, lam=state.lam)


def copied_as_data(state, new):
    for k, v in state.lam.items():
        v.data.copy_(new.lam[k])
    return replace(new, lam=state.lam)


def same_state(state, new):
    copied(state, new)
    return state


def same_dict(state, new):
    state.lam.update(new.lam)
    return state


WAYS = {f.__name__: f for f in (copied, copied_as_data, same_state, same_dict)}


@dataclass(frozen=True)
class InPlace(Bilevel):
    """Gives its next state in one of the ways that are not allowed."""

    way: str = ""

    def step(self, ctx, state):
        new, log = super().step(ctx, state)
        return WAYS[self.way](state, new), log


@pytest.fixture(autouse=True)
def registered():
    registry.methods.register("in_place")(InPlace)
    yield
    registry.methods._classes.pop("in_place")


def test_the_best_state_is_not_the_last_one():
    record = result("bilevel")
    assert record.selected_step == 30
    assert record.metrics["test"]["loss"].mean == pytest.approx(0.15345, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_method_that_changes_its_state_in_place_fails_by_name(way):
    record = result("in_place", way=way)
    assert record.status == "failed" and record.metrics == {}
    assert "lam.log_penalty of the state was changed in place" in record.reason
    assert "clone" in record.reason


def changes():
    lam = {"a": torch.tensor([1.0, 2.0])}
    yield State(lam), lambda: lam["a"].add_(1.0), "lam.a"
    memory = {"n": 1, "list": [torch.zeros(2, dtype=torch.float32)]}
    state = State({}, None, memory)
    yield state, lambda: memory.update(n=2), "memory.n"
    yield state, lambda: memory["list"].append(1), "memory.list.1"
    yield state, lambda: memory.pop("list"), "memory.list.0"


@pytest.mark.parametrize("case", range(4))
def test_what_was_changed_is_named(case):
    state, change, name = list(changes())[case]
    held = Untouched(state)
    held.check("by nobody")
    change()
    with pytest.raises(ChangedInPlace, match=rf"^{name} of the state was .* by a step"):
        held.check("by a step")


# What a new method gives in the wrong shape is told by its name.


def shaped(step=None, adapt=None, init=None, hypergradient=None, carried=False):
    """The reason of a run of bilevel with some of its functions changed."""

    @registry.methods.register("misshaped")
    @dataclass(frozen=True)
    class Misshaped(Bilevel):
        def init(self, ctx):
            found = super().init(ctx)
            return found if init is None else init(found)

        def step(self, ctx, state):
            found = super().step(ctx, state)
            return found if step is None else step(*found)

        def adapt(self, ctx, state, episode):
            found = super().adapt(ctx, state, episode)
            return found if adapt is None else adapt(found)

        def hypergradient(self, ctx, lam, theta, episode):
            found = super().hypergradient(ctx, lam, theta, episode)
            return found if hypergradient is None else hypergradient(found)

    try:
        budget = {"outer_steps": 2, "eval_every": 1, "valid_episodes": 1, "test_episodes": 1}
        cell = make_cell("ridge", "misshaped", set={"task": {"carried": carried}, "budget": budget})
        record = run_cell(cell)
    finally:
        del registry.methods._classes["misshaped"]
    return record.status, record.reason


def grown(params):
    return {k: v[:, None] for k, v in params.items()}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"init": lambda s: s.lam}, "init of misshaped gives a dict, not a State"),
        ({"step": lambda s, log: s}, "step of misshaped gives a State, not (State, dict of numb"),
        ({"step": lambda s, log: None}, "step of misshaped gives a NoneType, not (State, dict"),
        ({"step": lambda s, log: (s.lam, log)}, "step of misshaped gives a dict, not a State"),
        ({"step": lambda s, log: (s, 0.5)}, "gives a tuple of State and float, not (State, dict"),
        (
            {"step": lambda s, log: (replace(s, lam=grown(s.lam)), log)},
            "lam after a step of misshaped has 'log_penalty' as [10, 1], not [10]",
        ),
        (
            {"step": lambda s, log: (replace(s, lam={"decay": s.lam["log_penalty"]}), log)},
            "lam after a step of misshaped has no 'log_penalty'; 'decay', which is not asked for",
        ),
        (
            {"step": lambda s, log: (replace(s, lam={k: v.long() for k, v in s.lam.items()}), log)},
            "lam after a step of misshaped has 'log_penalty' as torch.int64, not torch.float64",
        ),
        (
            {
                "step": lambda s, log: (
                    replace(s, lam={k: v.numpy() for k, v in s.lam.items()}),
                    log,
                )
            },
            "lam after a step of misshaped has 'log_penalty' as ndarray, not a tensor",
        ),
        (
            {"step": lambda s, log: (s, {"outer_loss": "0.5"})},
            "step of misshaped logs 'outer_loss' as a str",
        ),
        ({"adapt": lambda t: None}, "what adapt of misshaped gives is a NoneType, not a dict"),
        ({"adapt": grown}, "what adapt of misshaped gives has 'w' as [10, 1], not [10]"),
        ({"hypergradient": lambda h: tuple(h)}, "hypergradient of misshaped gives a tuple, not a"),
        ({"hypergradient": lambda h: 7}, "hypergradient of misshaped gives an int, not a Hyper"),
        (
            {"hypergradient": lambda h: h._replace(grad=grown(h.grad))},
            "the grad that hypergradient of misshaped gives has 'log_penalty' as [10, 1], not [10]",
        ),
        (
            {"hypergradient": lambda h: h._replace(grad={k: v.sum() for k, v in h.grad.items()})},
            "the grad that hypergradient of misshaped gives has 'log_penalty' as [], not [10]",
        ),
        (
            {"hypergradient": lambda h: h._replace(theta=None), "carried": True},
            "the theta that hypergradient of misshaped gives is a NoneType, not a dict of tensors",
        ),
    ],
)
def test_what_a_method_gives_in_the_wrong_shape_is_told_by_name_and_shape(given, says):
    status, reason = shaped(**given)
    assert status == "failed" and says in reason, reason
