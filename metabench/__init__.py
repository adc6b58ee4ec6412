"""metabench: a benchmark suite for meta-learning and bilevel optimisation in PyTorch.

The names below are imported when they are first used: ``import metabench`` costs neither torch nor
pandas. The verbs of the command line are functions of :mod:`metabench.api`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metabench import api as api
    from metabench.contract.method import Context as Context
    from metabench.contract.method import GradientMethod as GradientMethod
    from metabench.contract.method import Hypergradient as Hypergradient
    from metabench.contract.method import State as State
    from metabench.contract.problem import Batch as Batch
    from metabench.contract.problem import Episode as Episode
    from metabench.contract.problem import Hyper as Hyper
    from metabench.contract.problem import Params as Params
    from metabench.contract.problem import Problem as Problem
    from metabench.contract.seeds import Seeds as Seeds
    from metabench.core.cell import Budget as Budget
    from metabench.core.cell import Cell as Cell
    from metabench.core.cell import make_cell as make_cell
    from metabench.core.errors import MetabenchError as MetabenchError
    from metabench.run.runner import run_cell as run_cell
    from metabench.store.record import Record as Record
    from metabench.store.store import Store as Store
    from metabench.suites.suite import Suite as Suite

    __version__: str

_HOMES = {
    "core.cell": ("Budget", "Cell", "make_cell"),
    "core.errors": ("MetabenchError",),
    "contract.method": ("Context", "GradientMethod", "Hypergradient", "State"),
    "contract.problem": ("Batch", "Episode", "Hyper", "Params", "Problem", "Seeds"),
    "store.record": ("Record",),
    "run.runner": ("run_cell",),
    "store.store": ("Store",),
    "suites.suite": ("Suite",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__", "api"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("metabench")
    elif name == "api":
        return importlib.import_module("metabench.api")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"metabench.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'metabench' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
