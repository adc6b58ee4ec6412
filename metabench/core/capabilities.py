"""What a method can need of a task, and why a pair of the two is not applicable."""

from __future__ import annotations

from typing import Any

from metabench.core.errors import NotApplicable

CAPABILITIES = {
    "outer_gradient": "an outer loss with a derivative",
    "second_order": "an inner loss with second derivatives",
    "lam_in_inner_loss": "an inner loss that depends on lam",
    "inner_loss": "inner steps that follow the gradient of a loss",
    "field": "inner steps that follow a field, which may be no gradient (Problem.field)",
    "own_step": "inner steps of its own, without gradients (Problem.own_step)",
    "lam_is_initialisation": "a lam that is the initial value of theta",
    "head": "a last layer that is named apart from the body (Problem.head)",
    "batch_norms": "batch norms whose scales and shifts are in theta (Problem.batch_norms)",
    "episodes": "many inner problems, each solved from its own start",
    "carried": "one training along the run, whose theta is carried from outer step to outer step",
    "small_lam": "a lam of few scalars",
    "search_space": "bounds on lam to search in",
    "choices": "a lam that is nothing but choices",
    "continuous": "a lam with a continuous scalar at least",
    "embedding": "a linear head on an embedding that lam makes (Problem.embed)",
    "unit_embedding": "an embedding of length 1 (unit_features = true of few-shot tasks)",
    "base_classes": "training batches of all classes (Problem.base_batch)",
    "context": "a theta that modulates a network of which lam is all weights, from zero",
    "module": "a torch module with separate inputs and targets (Problem.module)",
    "per_example_lam": "a lam that can differ from example to example",
    "full_batch": "the same inner problems at every outer step, each with one inner batch",
    "strongly_convex": "an inner loss that is strongly convex in theta at every lam",
    "best_response": "one inner problem, the same at every step, whose solution depends on lam",
    "prediction": "an inner loss of what a model predicts (Problem.predict)",
    "example_losses": "losses of single examples (Problem.example_losses)",
    "spectral_risk": "an inner loss that is a spectral risk of examples' (Problem.spectrum)",
    "evidence": "a likelihood and a Gaussian prior (Problem.evidence)",
    "branches": "any number of independent starts side by side, the first dimension of theta",
    "policy": "a policy to sample from and rewards for its samples",
}
"""What a method can need of a task, in words; the keys are used in ``needs`` and ``offers``."""

IMPLIED = {
    "inner_loss": frozenset({"field", "own_step"}),
    "carried": frozenset({"episodes"}),
    "continuous": frozenset({"choices"}),
}
"""What a task offers by offering none of these."""


def why_not(task: Any, method: Any, solver: Any = None) -> str | None:
    """Why the theory does not allow this pair, in words, or None where it does.

    Looks at the declarations only (``method.needs``, ``task.offers``, and ``method.refuses`` of an
    inner solver): nothing is built or run.
    """
    implied = {what for what, others in IMPLIED.items() if not task.offers & others}
    offered = task.offers | implied
    missing = [need for need in sorted(method.needs) if need not in offered]
    refused = None if solver is None else _refused(task, method, solver)
    if not missing:
        return refused
    reasons = [task.lacks[need] for need in missing if need in task.lacks]
    if plain := [CAPABILITIES[need] for need in missing if need not in task.lacks]:
        # Tasks are not named, so that a table says it once of all that lack the same.
        needed = f"{method.registered_name} needs {', and '.join(plain)}"
        reasons.append(f"{needed}, which the task does not offer")
    if refused:
        reasons.append(refused)
    # A task may give one reason for several needs.
    return "; ".join(dict.fromkeys(reasons))


def causes(reason: str, method: str) -> list[str]:
    """The reasons of :func:`why_not` one by one and without the method's name, so that they are the
    same for all that lack the same."""
    return [each.removeprefix(f"{method} ") for each in reason.split("; ")]


def _refused(task: Any, method: Any, solver: Any) -> str | None:
    name = solver.registered_name
    if solver.by_examples and not method.by_examples:
        return (
            f"solver {name} steps by single examples, without a graph: {method.registered_name} "
            "takes inner steps of its own, or looks through them"
        )
    reason: str | None = lacks_examples(task, solver) or method.refuses(solver)
    return reason


def lacks_examples(task: Any, solver: Any) -> str | None:
    """Why a solver by single examples cannot step on a task, in words, or None where it can."""
    if not solver.by_examples or task.offers & {"example_losses", "spectral_risk"}:
        return None
    return (
        f"solver {solver.registered_name} needs {CAPABILITIES['example_losses']}, "
        "which the task does not offer"
    )


def check_applicable(task: Any, method: Any, solver: Any = None) -> None:
    """Raise :class:`NotApplicable` with the reason where :func:`why_not` has one."""
    reason = why_not(task, method, solver)
    if reason:
        raise NotApplicable(reason)
