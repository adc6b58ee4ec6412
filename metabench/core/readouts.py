"""What the tested state is evaluated as, beside the method's own way: what such a name ends in."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from metabench.core import settings
from metabench.core.errors import SettingError


def ending(steps: int | None) -> str:
    """What the name of an evaluation ends in where theta had so many inner steps."""
    return f"@{steps}_steps"


def steps_of(evaluation: str) -> int | None:
    """After how many inner steps an evaluation of this name is; None where it does not say."""
    found = re.fullmatch(r"[^@]*@(\d+)_steps", evaluation)
    return int(found[1]) if found else None


def by_steps(method: Any, budget: Any) -> dict[str, Any]:
    """What names end in to the method as it adapts for that: after as many inner steps as in
    training, where evaluations take others, and after those of ``budget.test_after``.

    Raises ValueError or SettingError where the method cannot have them.
    """
    found = {}
    if method.test_steps is not None and method.test_steps != method.inner_steps:
        found[ending(method.inner_steps)] = replace(method, test_steps=None)
    for steps in budget.test_after or ():
        found.setdefault(ending(steps), replace(method, test_steps=steps))
    return found


def check_test_after(task: Any, method: Any, budget: Any) -> None:
    """Raise SettingError where a number of inner steps at evaluation means nothing: it would be
    found out after the whole run."""
    if not budget.test_after:
        return
    name = method.registered_name
    why = None
    if "test_steps" not in settings.fields(type(method)):
        why = f"method {name}, which has no test_steps"
    elif "episodes" not in task.offers:
        why = (
            f"task {task.registered_name}, whose theta is carried from step to step and is tested "
            "as it is"
        )
    if why:
        raise SettingError(f"budget: setting test_after is nothing for {why}: leave it out")
    try:
        by_steps(method, budget)
    except ValueError as error:
        raise SettingError(
            f"budget: setting test_after cannot be {[*budget.test_after]} for method {name}: "
            f"{error}"
        ) from None
