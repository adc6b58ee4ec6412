"""The public conformance kit: the checks of the contract, for a third party's method or task.

    from metabench.testing import check_method, check_task
    check_method("mine")        # a registered name, a class, or an instance with settings

or, one test a check:

    @pytest.mark.parametrize("name, check", method_checks("mine"))
    def test_contract(name, check):
        check()

A method runs on those of the kit's own small tasks that offer what it needs, or on given tasks. A
task runs with every registered method that applies, or with given methods. What is checked stands
in :mod:`metabench.conformance.declaration_checks`, :mod:`metabench.conformance.method_checks`,
:mod:`metabench.conformance.task_checks` and :mod:`metabench.conformance.derivative_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from metabench.conformance import declaration_checks as declarations
from metabench.conformance.harness import Harness, NotTested
from metabench.conformance.method_checks import CHECKS as METHOD_CHECKS
from metabench.conformance.run_checks import applicable_methods, check_methods
from metabench.conformance.task_checks import CHECKS as TASK_CHECKS
from metabench.conformance.test_problems import Sample
from metabench.contract.context import Context
from metabench.contract.seeds import Seeds
from metabench.core import registry, settings
from metabench.core.capabilities import check_applicable, why_not
from metabench.core.errors import NotApplicable, UnknownName
from metabench.run.determinism import fixed

__all__ = [
    "ContractError",
    "build",
    "check_method",
    "check_task",
    "context",
    "method_checks",
    "task_checks",
]

Check = tuple[str, Callable[[], str]]
"""A name, and what runs it: raises :class:`ContractError`, or says why nothing was tested ("" where
something was)."""


class ContractError(AssertionError):
    """A check that failed; says whose, which, and why (``cause`` by itself)."""

    cause = ""


def check_method(method: Any, tasks: Iterable[Any] | None = None) -> None:
    """Raise :class:`ContractError` at the first check that a method fails."""
    for _, check in method_checks(method, tasks):
        check()


def check_task(task: Any, methods: Iterable[Any] | None = None) -> None:
    """Raise :class:`ContractError` at the first check that a task fails."""
    for _, check in task_checks(task, methods):
        check()


def method_checks(method: Any, tasks: Iterable[Any] | None = None) -> list[Check]:
    """Every check of a method: a name such as ``resumes[ridge]``, and what runs it."""
    it = subject("method", method)
    checks = [
        *_declaration_checks("method", it),
        _check(it, "declares", partial(declarations.check_capabilities, it.needs, "needs")),
    ]
    chosen = kit_tasks(it) if tasks is None else [subject("task", task) for task in tasks]
    if not chosen:
        checks.append(_check(it, "applicable", partial(_no_task, it)))
    for number, task in enumerate(chosen):
        same = [t.registered_name for t in chosen].count(task.registered_name) > 1
        where = f"{task.registered_name}{number if same else ''}"
        checks.append(_check(it, f"applicable[{where}]", partial(_applicable, task, it)))
        at = Harness(it, task)
        for check in METHOD_CHECKS:
            name = check.__name__.removeprefix("check_")
            checks.append(_check(it, f"{name}[{where}]", partial(check, at)))
    return checks


def task_checks(task: Any, methods: Iterable[Any] | None = None) -> list[Check]:
    """Every check of a task: a name such as ``episodes``, and what runs it."""
    it = subject("task", task)
    checks = [
        *_declaration_checks("task", it),
        _check(it, "declares", partial(declarations.check_capabilities, it.offers, "offers")),
    ]
    for check in TASK_CHECKS:
        checks.append(_check(it, check.__name__.removeprefix("check_"), partial(check, it)))
    if methods is None:
        crossed = applicable_methods(it)
    else:
        crossed = [subject("method", method) for method in methods]
    for method in crossed:
        checks.append(
            _check(it, f"applicable[{method.registered_name}]", partial(_applicable, it, method))
        )
        run = partial(check_methods, it, [method])
        checks.append(_check(it, f"runs[{method.registered_name}]", run))
    return checks


def subject(kind: str, given: Any) -> Any:
    """The instance that a registered name, a class or an instance means, with checked settings."""
    if isinstance(given, str):
        given = registry.REGISTRIES[kind].get(given)
    if not isinstance(given, type):
        return given
    return settings.build(given, {}, f"{kind} {getattr(given, 'registered_name', given.__name__)}")


def build(kind: str, name: str, **values: Any) -> Any:
    """The registered "task", "method" or "solver" with these settings, others at their default.

    Raises UnknownName for the kind, the name, or a setting; SettingError for a value.
    """
    if kind not in registry.REGISTRIES:
        raise UnknownName("kind", kind, registry.REGISTRIES)
    return settings.build(registry.REGISTRIES[kind].get(name), values, f"{kind} {name}")


def context(task: Any, solver: Any = "sgd", *, seed: int = 0) -> Context:
    """What a method is handed, for tests: the problem of ``task`` on the CPU, built from the seeds
    of a cell with this ``seed``, with nothing counted yet.

    ``task`` and ``solver`` are registered names, classes, or instances with settings. Raises
    UnknownName, DataMissing.
    """
    made, seeds = subject("task", task), Seeds.of(seed)
    problem = made.build(seeds, torch.device("cpu"))
    return Context(problem, subject("solver", solver), seeds, made.offers)


def kit_tasks(method: Any) -> list[Any]:
    """The small tasks of the kit that a method can be run on."""
    quadratic, ridge, bandit, retrieval = (
        registry.tasks.get(name) for name in ("quadratic", "ridge", "recipe_bandit", "rag_squad")
    )
    known = [
        quadratic(),
        quadratic(formulation="init"),
        quadratic(dim=3, carried=True),
        ridge(features=4),
        Sample(batches=True),
        Sample("representation"),
        bandit(),
    ]
    if {"example_losses", "carried"} <= method.needs:
        known.append(ridge(features=4, carried=True))
    if "search_space" in method.needs:
        known.append(retrieval(table="synthetic", questions=20))
    few_shot = {"embedding": "representation", "context": "context", "batch_norms": "init"}
    for need in few_shot.keys() & method.needs:
        small = {"ways": 3, "shots": 2, "queries": 2, "filters": 2, "meta_batch": 3}
        own = {**small, "formulation": few_shot[need], "dtype": "float64"}
        if "unit_embedding" in method.needs:
            own["unit_features"] = True
        known.append(registry.tasks.get("glyphs")(**own))
    if "branches" in method.needs:
        known.append(registry.tasks.get("prisoners")(branches=4))
    return [task for task in known if why_not(task, method) is None]


def _declaration_checks(kind: str, it: Any) -> list[Check]:
    return [
        _check(it, "settings", partial(declarations.check_settings, it)),
        _check(it, "attributes", partial(declarations.check_attributes, kind, it)),
    ]


def _applicable(task: Any, method: Any) -> None:
    try:
        check_applicable(task, method)
    except NotApplicable as reason:
        raise AssertionError(str(reason)) from None


def _no_task(method: Any) -> None:
    raise AssertionError(
        f"none of the kit's tasks offers all of {sorted(method.needs)}: give tasks=[...]"
    )


def _check(it: Any, name: str, run: Callable[[], None]) -> Check:
    def check() -> str:
        if not __debug__:
            raise ContractError("nothing can be checked: python -O leaves assertions out")
        try:
            with fixed(torch.device("cpu")):
                run()
        except NotTested as why:
            return str(why)
        except Exception as error:
            what = (
                str(error)
                if isinstance(error, AssertionError)
                else f"{type(error).__name__}: {error}"
            )
            who = getattr(it, "registered_name", type(it).__name__)
            failure = ContractError(f"{who}: {name}: {what}")
            failure.cause = what
            raise failure from error
        return ""

    return name, check
