"""The conformance kit finds each kind of mistake, and names it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from metabench.api import inventory
from metabench.conformance.kit import (
    ContractError,
    check_method,
    check_task,
    kit_tasks,
    method_checks,
    task_checks,
)
from metabench.conformance.test_problems import Counting, Limited, Sample, SampleProblem, Undeclared
from metabench.contract import autodiff
from metabench.contract.gradient_method import GradientMethod
from metabench.contract.method import Hypergradient, InnerTraining, State
from metabench.contract.problem import Hyper
from metabench.core.errors import UnknownName
from metabench.core.registry import methods, tasks

Bilevel, MAML = methods.get("bilevel"), methods.get("maml")
SAMPLE = Sample("representation")


@pytest.mark.parametrize("given", ["maml", MAML, MAML(order="first")])
def test_a_method_by_name_class_or_instance(given):
    check_method(given, tasks=[Sample()])


@pytest.mark.parametrize("given", ["ridge", tasks.get("ridge"), tasks.get("ridge")(features=4)])
def test_a_task_by_name_class_or_instance(given):
    check_task(given, methods=["fixed"])


def test_the_kits_own_task_passes():
    for task in (Sample(), Sample(batches=True), SAMPLE):
        check_task(task)


def test_unknown_names():
    with pytest.raises(UnknownName, match="near: maml"):
        list(method_checks("mmal"))


def test_names_of_the_checks():
    names = [name for name, _ in method_checks("fixed", ["ridge"])]
    assert names[:4] == ["settings", "attributes", "declares", "applicable[ridge]"]
    assert "resumes[ridge]" in names and len(set(names)) == len(names)
    names = [name for name, _ in task_checks("ridge", ["fixed"])]
    assert names[-1] == "runs[fixed]" and len(set(names)) == len(names)
    assert len({name for name, _ in method_checks("fixed")}) == len(list(method_checks("fixed")))


def test_a_task_that_the_theory_does_not_allow():
    with pytest.raises(ContractError, match=r"maml: applicable\[ridge\]: maml needs .* initial"):
        check_method("maml", tasks=["ridge"])


def test_needs_that_no_task_of_the_kit_meets():
    @dataclass(frozen=True)
    class Policy(Bilevel):
        """Needs a policy and a module: the kit has a task for each, none for both."""

        registered_name: ClassVar[str] = "policy"
        needs: ClassVar[frozenset[str]] = frozenset({"policy", "module"})

    assert kit_tasks(Policy()) == []
    with pytest.raises(ContractError, match=r"policy: applicable: .*give tasks="):
        check_method(Policy)


# Methods, each with one mistake.


def broken_method(name="broken"):
    """Decorator: a dataclass that calls itself broken."""

    def make(cls):
        cls.registered_name = name
        return dataclass(frozen=True)(cls)

    return make


@broken_method()
class NoDocstring(Bilevel):
    pass


@broken_method()
class NoDefault(Bilevel):
    """A setting that must be given has no place in a suite."""

    factor: float = None  # type: ignore[assignment]


@broken_method()
class UnknownNeed(Bilevel):
    """Needs a word that is not on the list."""

    @property
    def needs(self):
        return frozenset({"gradients"})


@broken_method()
class MisspeltAttribute(Bilevel):
    """Refuses solvers under a name that nothing reads."""

    def refuse(self, solver):
        return "no solver"


@broken_method()
class MisspeltClassAttribute(Bilevel):
    """Names its packages under a name that nothing reads."""

    package: ClassVar[tuple[str, ...]] = ("torch",)


@broken_method()
class LosesNames(Bilevel):
    """Drops a name of lam."""

    def step(self, ctx, state):
        new, log = super().step(ctx, state)
        return replace(new, lam=dict(list(new.lam.items())[1:])), log


@broken_method()
class LogsTensors(Bilevel):
    """Logs a tensor."""

    def step(self, ctx, state):
        new, log = super().step(ctx, state)
        return new, {**log, "norm": torch.tensor(1.0)}


@broken_method()
class AdaptsWithGraph(Bilevel):
    """theta comes with a graph."""

    def adapt(self, ctx, state, episode):
        return autodiff.leaf(super().adapt(ctx, state, episode))


@broken_method()
class InPlace(Bilevel):
    """Moves lam in place."""

    def step(self, ctx, state):
        new, log = super().step(ctx, state)
        for k, v in state.lam.items():
            v.copy_(new.lam[k])
        return new, log


@broken_method()
class KeepsObjects(Bilevel):
    """Its memory is no plain data."""

    def init(self, ctx):
        state = super().init(ctx)
        return replace(state, memory={**state.memory, "solver": ctx.solver})


@broken_method()
class GlobalRandomness(Bilevel):
    """Draws from the global generator."""

    def step(self, ctx, state):
        new, log = super().step(ctx, state)
        return replace(new, lam={k: v + torch.rand(()) for k, v in new.lam.items()}), log


REMEMBERED = {}


@broken_method()
class Remembers(Bilevel):
    """Counts its steps beside the state."""

    def init(self, ctx):
        REMEMBERED[id(ctx)] = 0
        return super().init(ctx)

    def step(self, ctx, state):
        n = REMEMBERED[id(ctx)] = REMEMBERED.get(id(ctx), 0) + 1
        new, log = super().step(ctx, state)
        return replace(new, lam={k: v * (1 + 0.1 * n) for k, v in new.lam.items()}), log


@broken_method()
class CountsNothing(Bilevel):
    """Does not count."""

    def hypergradient(self, ctx, lam, theta, episode):
        with ctx.uncounted():
            return super().hypergradient(ctx, lam, theta, episode)


@broken_method()
class CountsHalf(Bilevel):
    """Takes every second inner gradient around the context; the Hessian and mixed products that it
    does count would otherwise make room for them."""

    batched: ClassVar[bool] = False

    def hypergradient(self, ctx, lam, theta, episode):
        lam = autodiff.leaf(lam)
        theta = ctx.problem.init_inner(lam, episode)
        for t in range(self.inner_steps):
            if t % 2:
                loss = ctx.problem.inner_loss(lam, theta, episode.batch(t))
                g = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
                g = dict(zip(theta, g, strict=True))
            else:
                g = ctx.inner_grad(lam, theta, episode.batch(t), hvps=1, mixed_products=1)
            theta = autodiff.axpy(-self.inner_lr, g, theta)
        value = ctx.outer_loss(lam, theta, episode.outer)
        grad = dict(zip(lam, torch.autograd.grad(value, list(lam.values())), strict=True))
        return Hypergradient(value.detach(), grad, autodiff.detach(theta))


@broken_method()
class CountsTooMuch(Bilevel):
    """Counts an inner gradient that it does not take."""

    def hypergradient(self, ctx, lam, theta, episode):
        ctx.meter.add(inner_gradients=1)
        return super().hypergradient(ctx, lam, theta, episode)


@broken_method()
class Understates(Bilevel):
    """Goes through second derivatives without saying so."""

    @property
    def needs(self):
        return frozenset({"outer_gradient"})


@broken_method()
class UnderstatesOuter(Bilevel):
    """Differentiates the outer loss without saying so."""

    @property
    def needs(self):
        return frozenset({"second_order"})


@broken_method()
class ReadsHead(Bilevel):
    """Looks at a head that it does not need."""

    def only(self, ctx):
        return ctx.problem.head


@broken_method()
class LoopsAndBatchesDiffer(Bilevel):
    """Uses the episode's index, which a batch of episodes does not have."""

    def hypergradient(self, ctx, lam, theta, episode):
        found = super().hypergradient(ctx, lam, theta, episode)
        return found._replace(grad={k: v * (2 + episode.index) for k, v in found.grad.items()})


@broken_method()
class ThreadsDiffer(Bilevel):
    """Scales by the number of threads."""

    def hypergradient(self, ctx, lam, theta, episode):
        found = super().hypergradient(ctx, lam, theta, episode)
        return found._replace(grad={k: v + ctx.workers for k, v in found.grad.items()})


@broken_method()
class Uphill(GradientMethod):
    """Has the sign wrong."""

    def hypergradient(self, ctx, lam, theta, episode):
        f = Bilevel(inner_steps=self.inner_steps).hypergradient
        found = f(ctx, lam, theta, episode)
        return found._replace(grad={k: -v for k, v in found.grad.items()})


@broken_method()
class Shortened(Bilevel):
    """Goes the right way, and half as far."""

    def hypergradient(self, ctx, lam, theta, episode):
        found = super().hypergradient(ctx, lam, theta, episode)
        return found._replace(grad={k: v / 2 for k, v in found.grad.items()})


@broken_method()
class ShortenedStep(Bilevel):
    """Its hypergradient is right, and its step uses half of it."""

    def step(self, ctx, state):
        new, log = super().step(ctx, state)
        return replace(new, lam={k: (v + state.lam[k]) / 2 for k, v in new.lam.items()}), log


@broken_method()
class Rounded(Bilevel):
    """Takes its hypergradient through float32."""

    def hypergradient(self, ctx, lam, theta, episode):
        found = super().hypergradient(ctx, lam, theta, episode)
        return found._replace(grad={k: v.float().double() for k, v in found.grad.items()})


@broken_method()
class TouchedByEvaluation(Bilevel):
    """An evaluation moves what the next step sees."""

    def adapt(self, ctx, state, episode):
        ctx.notes["seen"] = ctx.notes.get("seen", 0) + 1
        return super().adapt(ctx, state, episode)

    def step(self, ctx, state):
        new, log = super().step(ctx, state)
        move = ctx.notes.get("seen", 0)
        return State({k: v + move for k, v in new.lam.items()}, new.theta, new.memory), log


BROKEN_METHODS = {
    NoDocstring: "settings: .* docstring",
    NoDefault: "factor cannot be None",
    UnknownNeed: r"declares: needs has \['gradients'\]",
    MisspeltAttribute: "attributes: nothing reads 'refuse': is 'refuses' meant",
    MisspeltClassAttribute: "attributes: nothing reads 'package': is 'packages' meant",
    LosesNames: "state.*: lam's names change",
    LogsTensors: "log.*: log entry 'norm' is a Tensor",
    AdaptsWithGraph: "adapt.* has a graph",
    InPlace: "pure.*: the state was changed in place",
    KeepsObjects: "storable.*: UnpicklingError",
    GlobalRandomness: "seeded.*: a second run is different",
    Remembers: "resumes.*: a run that was cut ends differently",
    CountsNothing: "counts.*: losses are evaluated",
    CountsHalf: "counts.*: losses are evaluated",
    CountsTooMuch: "counts.*: .* counted",
    Understates: "needs.*: it differentiates",
    UnderstatesOuter: "needs.*: it differentiates",
    ReadsHead: "needs.*: it reads problem.head",
    LoopsAndBatchesDiffer: "batched.*: the batched run's lam is",
    ThreadsDiffer: "threads.*: threads change the result",
    Uphill: "improves.*: 50 outer steps bring",
    Shortened: "exact.*: with .* the hypergradient should be exact: .* differences",
    ShortenedStep: "exact.*: with .* an outer step should be exact: .* differences",
    Rounded: "precision.*: every number of the first hypergradient is one",
    TouchedByEvaluation: "undisturbed.*: evaluation changes the run",
}


@pytest.mark.parametrize("method", BROKEN_METHODS, ids=lambda m: m.__name__)
def test_a_broken_method_is_found(method):
    with pytest.raises(ContractError, match=BROKEN_METHODS[method]):
        check_method(method, None if method in (Uphill, Shortened, ShortenedStep) else [SAMPLE])


class OwnStep(InnerTraining):
    """Has a step of its own, and no hypergradient."""

    outer_lr: float = 0.1
    factor: float = 1.0
    needs: ClassVar[frozenset[str]] = Bilevel().needs | {"lam_in_inner_loss"}
    exact_with: ClassVar[dict[str, float] | None] = {"inner_lr": 0.2}

    def init(self, ctx):
        return State(ctx.problem.init_outer())

    def step(self, ctx, state):
        teacher = Bilevel(inner_steps=self.inner_steps, inner_lr=self.inner_lr)
        found = teacher.hypergradient(ctx, state.lam, None, ctx.training_episodes()[0])
        move = self.factor * self.outer_lr
        lam = {k: v - move * found.grad[k] for k, v in state.lam.items()}
        return State(lam), {"outer_loss": float(found.value)}


OwnStep = dataclass(frozen=True)(OwnStep)
OwnStep.registered_name = "own_step"


def exact_check(method):
    return dict(method_checks(method, ["quadratic"]))["exact[quadratic]"]


def test_a_halved_step_of_a_methods_own_is_found():
    assert exact_check(OwnStep())() == ""
    with pytest.raises(ContractError, match="an outer step should be exact"):
        exact_check(OwnStep(factor=0.5))()


def test_a_check_that_tests_nothing_says_so_and_why(monkeypatch):
    monkeypatch.setattr(OwnStep, "exact_with", None)
    assert "says of no settings that they are exact" in exact_check(OwnStep())()
    checks = dict(task_checks("quadratic", []))
    assert checks["per_example"]() == "it offers no lam for each example"
    assert checks["losses"]() == ""


# Tasks, each with one promise broken in its problem.


def broken_task(words, offers=SAMPLE.offers, task=SAMPLE, **attributes):
    """A sample task whose problem has other attributes, and what is said of it."""

    class Broken(SampleProblem):
        pass

    for name, value in attributes.items():
        setattr(Broken, name, value)

    @dataclass(frozen=True)
    class Task(Sample):
        """Broken."""

        @property
        def offers(self):
            return offers

        def build(self, seeds, device):
            return Broken(task, seeds, device)

    return Task(), words


def nan_loss(self, lam, theta, batch):
    return SampleProblem.inner_loss(self, lam, theta, batch) * float("nan")


def vector_loss(self, lam, theta, batch):
    return SampleProblem.inner_loss(self, lam, theta, batch).reshape(1)


def random_loss(self, lam, theta, batch):
    return SampleProblem.inner_loss(self, lam, theta, batch) + torch.rand(())


def cut_loss(self, lam, theta, batch):
    return SampleProblem.inner_loss(self, autodiff.detach(lam), theta, batch)


def once_loss(self, lam, theta, batch):
    plain = SampleProblem(self.task, self.seeds, self.device)
    return Limited(plain, frozenset()).inner_loss(lam, theta, batch)


def same_episodes(self, split, index):
    fixed = SampleProblem(self.task, replace(self.seeds, data=7), self.device)
    return SampleProblem.episode(fixed, split, index)


def stream_episodes(self, split, index):
    self.asked = getattr(self, "asked", 0) + 1
    return replace(SampleProblem.episode(self, split, index + self.asked), index=index)


def all_of_lam(self, lam, episode):
    return dict(lam)


def own_tensor(self):
    return {k: v for k, v in self.first.items() if k.startswith("body")}


def drifting(self, lam):
    return {k: v * 0.99 for k, v in lam.items()}


def other_batch(self, lam, episode, only=None):
    return replace(episode, outer=episode.batch(0))


def untransformable(self, lam, theta, batch):
    return SampleProblem.inner_loss(self, lam, theta, batch) * float(batch["x"][0, 0] > -99)


def other_rest(self, lam, theta, batch):
    return 0.5 * SampleProblem.inner_loss(self, lam, theta, batch)


def half_gradient(self, lam, theta, batch):
    value, g = autodiff.grad(lambda t: self.inner_loss(lam, t, batch), theta)
    return value, {**g, "head.bias": 0.5 * g["head.bias"]}


def other_value(self, lam, theta, batch):
    value, g = autodiff.grad(lambda t: self.inner_loss(lam, t, batch), theta)
    return 2.0 * value, g


def writing_metrics(self, lam, theta, episode):
    theta["head.bias"].add_(1.0)
    return {"loss": 0.0}


def by_validation(self, split, index):
    return SampleProblem.episode(self, "valid" if split == "test" else split, index)


def running_loss(self, lam, theta, batch):
    self.running = 0.9 * getattr(self, "running", 0.0) + 0.1 * float(batch["x"].mean())
    return SampleProblem.inner_loss(self, lam, theta, batch)


def running_metrics(self, lam, theta, episode):
    return {"loss": float(self.outer_loss(lam, theta, episode.outer)) + getattr(self, "running", 0)}


BODY_BIAS = Hyper("body.bias", (5,), -1.0, 1.0)
INIT = Sample().offers
BROKEN_TASKS = {
    "offers": broken_task("declares: offers has", offers=SAMPLE.offers | {"speed"}),
    "misspelt": broken_task("problem: nothing reads 'hyper': is 'hypers' meant", hyper=()),
    "own tensor": broken_task("init: init_outer gives away", init_outer=own_tensor),
    "stream": broken_task("episodes: .* is different", episode=stream_episodes),
    "seeds": broken_task("seeds: episodes are random", episode=same_episodes),
    "nan": broken_task("losses: inner_loss at the start is nan", inner_loss=nan_loss),
    "vector": broken_task("losses: inner_loss has shape", inner_loss=vector_loss),
    "random": broken_task("losses: inner_loss differs", inner_loss=random_loss),
    "cut": broken_task("derivatives: .* is zero everywhere", inner_loss=cut_loss),
    "once": broken_task("derivatives: Undeclared", inner_loss=once_loss),
    "names": broken_task("initialisation: .* theta becomes", INIT, Sample(), init_inner=all_of_lam),
    "drift": broken_task("project: the first lam", project=drifting),
    "hyper": broken_task("hypers: hyper 'x'", hypers=(Hyper("x"),)),
    "shape": broken_task("hypers: .* lam has", hypers=(replace(BODY_BIAS, shape=(2,)),)),
    "bounds": broken_task(
        "no bounds",
        SAMPLE.offers | {"search_space"},
        hypers=(replace(BODY_BIAS, high=None),),
    ),
    "condition": broken_task(
        "hypers: .* counts only if 'kind' is one of",
        hypers=(replace(BODY_BIAS, only_if=("kind", ("a",))),),
    ),
    "head": broken_task(r"parts: head names \['top'\]", head=("top",)),
    "norms": broken_task("parts: it offers 'batch_norms' and", SAMPLE.offers | {"batch_norms"}),
    "module": broken_task(
        "parts: it offers a module", module=property(lambda s: None, lambda s, v: None)
    ),
    "metric": broken_task("metrics: .* no loss", metrics=lambda *_: {"accuracy": 1.0}),
    "prepare": broken_task("prepare: outer_loss of a prepared", prepare=other_batch),
    "rest": broken_task(
        "split: .* it has no diagonal_penalty, so nothing uses the rest",
        unpenalised_loss=other_rest,
    ),
    "gradient": broken_task("split: inner_gradient in head.bias is", inner_gradient=half_gradient),
    "value": broken_task("split: inner_gradient in the value is", inner_gradient=other_value),
    "writing": broken_task("metrics: metrics changes what it is given", metrics=writing_metrics),
    "leak": broken_task(
        "episodes: episode 0 of 'test' is judged by the data of episode 0 of 'valid'",
        episode=by_validation,
    ),
    "vmap": broken_task("batched: RuntimeError: vmap", inner_loss=untransformable),
}


@pytest.mark.parametrize("name", BROKEN_TASKS)
def test_a_broken_task_is_found(name):
    task, words = BROKEN_TASKS[name]
    with pytest.raises(ContractError, match=words):
        check_task(task, methods=[])


PROVED = {
    "mu": 3.1, "smooth": 2.9, "outer_smooth": 0.9, "mixed": lambda theta: 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_moduli_that_are_said_to_be_proved_and_are_broken_are_found(name):
    """Of the closed-form problem; what is called an estimate is not held to anything."""
    task = tasks.get("quadratic")(dim=3)
    real = task.build(*_seeds())

    def giving(**more):
        known = replace(real.moduli({}), **{name: PROVED[name]}, **more)
        given = type("Given", (type(real),), {"moduli": lambda self, lam: known})
        made = {"__doc__": "Broken.", "build": lambda self, *at: given(self, *at)}
        return dict(task_checks(dataclass(frozen=True)(type("T", (type(task),), made))(dim=3), []))

    with pytest.raises(ContractError, match=f"moduli: {name} of its moduli, said to be proved"):
        giving()["moduli"]()
    assert giving(certified=False)["moduli"]() == "its moduli are estimates"


def test_episodes_that_differ_from_step_to_step_are_no_full_batch():
    offers = SAMPLE.offers | {"full_batch"}
    task, words = broken_task("full_batch: .* there are endless, 3 a step", offers)
    with pytest.raises(ContractError, match=words):
        check_task(task, methods=[])
    task, words = broken_task(
        "full_batch: training episode 0 is another one", offers, count=lambda self, split: 3
    )
    with pytest.raises(ContractError, match=words):
        dict(task_checks(task, []))["full_batch"]()


def test_a_hypergradient_of_a_method_with_its_own_step_is_held_to_the_truth():
    HOAG = methods.get("hoag")

    @dataclass(frozen=True)
    class Halved(HOAG):
        """Half of the hypergradient."""

        def hypergradient_from(self, ctx, state, episode):
            found = super().hypergradient_from(ctx, state, episode)
            return found._replace(grad={k: v / 2 for k, v in found.grad.items()})

    for method, words in ((HOAG(), ""), (Halved(), "should be exact")):
        check = dict(method_checks(method, [tasks.get("quadratic")()]))["exact[quadratic]"]
        if words:
            with pytest.raises(ContractError, match=words):
                check()
        else:
            assert check() == ""


RETRIEVAL = tasks.get("rag_squad")(table="synthetic", questions=12)
UCB = methods.get("ucb")


class CountsTwice(UCB):
    """Counts its 30th pull twice."""

    def tell_round(self, ctx, state, found):
        memory = super().tell_round(ctx, state, found)
        more = float(memory["pulls"].sum() == 30)
        return {**memory, "pulls": memory["pulls"] + more * (memory["pulls"] > 0)}


class RanksTwice(UCB):
    """Names its best arm twice."""

    def ranking(self, ctx, state):
        found = super().ranking(ctx, state)
        return [found[0], *found]


class HidesRegret(UCB):
    """Reports half of its regret."""

    def report(self, ctx, state):
        return {k: v / 2 for k, v in super().report(ctx, state).items()}


BROKEN_SEARCHES = {
    CountsTwice: r"its arms were pulled \d+ times, and 80 lam were judged",
    RanksTwice: "it ranks a lam twice",
    HidesRegret: "it reports a regret of .*; what it judged has",
}


@pytest.mark.parametrize("search", BROKEN_SEARCHES, ids=lambda s: s.__name__)
def test_a_search_with_a_wrong_account_is_found(search):
    with pytest.raises(ContractError, match=BROKEN_SEARCHES[search]):
        dict(method_checks(search(inner_steps=0), [RETRIEVAL]))["account[rag_squad]"]()


@pytest.mark.parametrize("name", ["grid", "random", "cehpo", "ucb", "thompson", "hier_ucb"])
def test_searches_account_for_what_they_judge(name):
    method = methods.get(name)(inner_steps=0)
    assert dict(method_checks(method, [RETRIEVAL]))["account[rag_squad]"]() == ""
    assert "no regret" in dict(method_checks(method, ["step_size"]))["account[step_size]"]()


@pytest.mark.parametrize(
    ("broken", "check", "words"),
    [
        ({"regret": lambda *_: -0.1}, "regret", "the regret of the first lam is -0.1"),
        ({"ranking_metrics": lambda *_: {"hits": 1.0}}, "metrics", "it says that its metrics are"),
        ({"regret": lambda *_: None}, "metrics", "it says that its metrics are"),
    ],
)
def test_what_a_task_says_of_searches_is_held_to_what_it_declares(broken, check, words):
    Problem = type(RETRIEVAL.build(*_seeds()))

    class Other(type(RETRIEVAL)):
        """Broken."""

        def build(self, seeds, device):
            made = super().build(seeds, device)
            made.__class__ = type("Broken", (Problem,), broken)
            return made

    other = Other(table="synthetic", questions=12)
    with pytest.raises(ContractError, match=words):
        dict(task_checks(other, []))[check]()


def test_hidden_state_of_a_task_is_found():
    """As running statistics of a batch normalisation, which a resumed run would have lost."""
    task, _ = broken_task("", inner_loss=running_loss, metrics=running_metrics)
    with pytest.raises(ContractError, match=r"loss of a saved state is .* freshly built"):
        dict(task_checks(task, ["bilevel"]))["runs[bilevel]"]()


def test_one_cause_is_said_once():
    class Broken(SampleProblem):
        def init_outer(self):
            raise RuntimeError("no way to start")

    task = dataclass(frozen=True)(
        type("Task", (Sample,), {"__doc__": "Broken.", "build": lambda s, *at: Broken(SAMPLE, *at)})
    )
    tasks.register("cannot_start")(task)
    try:
        failed = [how for _, how, _ in inventory.check("cannot_start") if how]
    finally:
        tasks._classes.pop("cannot_start")
    assert len(failed) > 5 and sum("no way to start" in how for how in failed) == 1
    assert failed[1] == "for the same reason as init"


@pytest.mark.parametrize(
    ("name", "said"), [("metrics", ("loss", "accuracy")), ("evaluations", ("test", "runs"))]
)
def test_a_task_that_says_wrongly_what_it_measures_is_found(name, said):
    wrong = dataclass(frozen=True)(type("Says", (Sample,), {"__doc__": "Says.", name: said}))
    with pytest.raises(ContractError, match=f"metrics: it says that its {name} are"):
        check_task(wrong(), methods=[])
    right = {"metrics": ("loss",), "evaluations": ("test",)}[name]
    check_task(
        dataclass(frozen=True)(type("Says", (Sample,), {"__doc__": "Says.", name: right}))(),
        methods=[],
    )


def test_names_of_ones_own_are_allowed():
    own = {"__doc__": "Has own names.", "refusals": 3, "_refuse": None, "metrics": ("loss",)}
    task = dataclass(frozen=True)(type("Own", (Sample,), own))()
    dict(task_checks(task, []))["attributes"]()
    own = {"__doc__": "Has own names.", "refusals": 3, "_refuse": None, "exact_with": None}
    method = dataclass(frozen=True)(type("Own", (Bilevel,), own))()
    dict(method_checks(method, []))["attributes"]()
    misspelt = {"__doc__": "Has no such name.", "metrics_": ("loss",)}
    wrong = dataclass(frozen=True)(type("Own", (Sample,), misspelt))()
    with pytest.raises(ContractError, match="nothing reads 'metrics_': is 'metrics' meant"):
        dict(task_checks(wrong, []))["attributes"]()


def test_wrapped_problems():
    problem = SAMPLE.build(*_seeds())
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    counting = Counting(problem)
    counting.inner_loss(lam, theta, episode.batch(0))
    assert counting.calls == {"inner_loss": 1} and counting.episodes_per_step == 3
    limited = Limited(problem, frozenset({"outer_gradient"}))
    value, g = autodiff.grad(lambda t: limited.inner_loss(lam, t, episode.batch(0)), theta)
    assert torch.equal(value, problem.inner_loss(lam, theta, episode.batch(0)))
    assert any(bool(v.any()) for v in g.values())
    with pytest.raises(Undeclared):
        autodiff.grad(
            lambda t: autodiff.grad(
                lambda s: limited.inner_loss(lam, s, episode.batch(0)), t, create_graph=True
            )[1]["head.bias"].sum(),
            theta,
        )


def _seeds():
    from metabench.contract.seeds import Seeds

    return Seeds.of(0), torch.device("cpu")
