"""learn2learn's meta-gradient and this project's are one, in float64."""

import pytest
import torch
from oracles import context, given, hypergradient

from metabench.conformance.kit import check_method
from metabench.conformance.test_problems import Sample, SampleProblem
from metabench.contract.seeds import Seeds
from metabench.core import registry
from metabench.core.environment import optional_packages

LACK = optional_packages.why_not("learn2learn")
pytestmark = pytest.mark.skipif(
    bool(LACK),
    reason=f"{LACK}: {' && '.join(optional_packages.recipe('learn2learn'))}",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def glyphs():
    Glyphs = registry.tasks.get("glyphs")
    return context(Glyphs(filters=6, meta_batch=2, shots=2, queries=2, dtype="float64"))


def linear():
    """The sample task without its hidden layer: a linear model by itself."""

    class Linear(SampleProblem):
        def __init__(self):
            super().__init__(Sample(batches=True), Seeds.of(0), torch.device("cpu"))
            self.module = torch.nn.Linear(3, 2, dtype=torch.float64)
            self.first = {
                k: torch.linspace(-1, 1, v.numel(), dtype=torch.float64).reshape(v.shape)
                for k, v in self.module.named_parameters()
            }

        def outputs(self, weights, x):
            return torch.nn.functional.linear(x, weights["weight"], weights["bias"])

    return given(Linear(), *Sample().offers)


@pytest.mark.parametrize("problem", [glyphs, linear, lambda: context(Sample())])
@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_same_meta_gradient(problem, order, steps):
    ctx = problem()
    set_ = {"inner_steps": steps, "inner_lr": 0.2, "order": order}
    theirs = hypergradient(ctx, "maml_learn2learn", **set_)
    ours = hypergradient(ctx, "maml", **set_)
    assert list(theirs) == list(ours)
    for name, expected in ours.items():
        torch.testing.assert_close(theirs[name], expected, rtol=1e-10, atol=1e-10)


def test_same_run_and_same_costs():
    runs = {}
    for name in ("maml", "maml_learn2learn"):
        ctx = glyphs()
        own = {"memory": "graph"} if name == "maml" else {}  # choosing one costs a gradient
        method = registry.methods.get(name)(inner_steps=2, test_steps=3, **own)
        state = method.init(ctx)
        for ctx.step in range(2):
            state, _ = method.step(ctx, state)
        theta = method.adapt(ctx, state, ctx.problem.episode("test", 0))
        runs[name] = state.lam, theta, ctx.meter.counts
    (lam, theta, counts), theirs = runs.values()
    assert counts == theirs[2]
    for one, other in ((lam, theirs[0]), (theta, theirs[1])):
        for k in one:
            torch.testing.assert_close(one[k], other[k], rtol=1e-9, atol=1e-9)


def test_keeps_the_contract():
    check_method("maml_learn2learn")
