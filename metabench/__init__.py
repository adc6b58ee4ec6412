"""metabench: a benchmark suite for meta-learning and bilevel optimisation in PyTorch.

A task or a method of your own imports seven paths, and only these: this one (the contract),
:mod:`metabench.autodiff`, :mod:`metabench.implicit`, :mod:`metabench.unrolled` (what methods are
made of), :mod:`metabench.testing` (checks), :mod:`metabench.errors`, and :mod:`metabench.api` (the
verbs of the command line).

>>> from metabench import Hyper, Seeds, generator
>>> Hyper("log_decay", (10,), low=-8.0, high=2.0).shape
(10,)
>>> seeds = Seeds.of(0)
>>> generator(seeds.data, "rows").initial_seed() == generator(seeds.data, "rows").initial_seed()
True

Names are imported when they are first used: ``import metabench`` costs neither torch nor pandas.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

_imported_at = time.time()
"""Before any other module of metabench is imported: code that has changed since may not be what
this process runs."""

if TYPE_CHECKING:
    from metabench import api as api
    from metabench import autodiff as autodiff
    from metabench import errors as errors
    from metabench import implicit as implicit
    from metabench import testing as testing
    from metabench import unrolled as unrolled
    from metabench.api.comparison import compare as compare
    from metabench.contract.context import Context as Context
    from metabench.contract.declared import Evidence as Evidence
    from metabench.contract.declared import InnerRule as InnerRule
    from metabench.contract.declared import Moduli as Moduli
    from metabench.contract.declared import OwnStep as OwnStep
    from metabench.contract.gradient_method import GradientMethod as GradientMethod
    from metabench.contract.guards import check_hypergradient as check_hypergradient
    from metabench.contract.method import Hypergradient as Hypergradient
    from metabench.contract.method import InnerTraining as InnerTraining
    from metabench.contract.method import Method as Method
    from metabench.contract.method import Positive as Positive
    from metabench.contract.method import SolverName as SolverName
    from metabench.contract.method import State as State
    from metabench.contract.method import Steps as Steps
    from metabench.contract.method import inner_loop as inner_loop
    from metabench.contract.method import outer_solver as outer_solver
    from metabench.contract.problem import GRADIENTS as GRADIENTS
    from metabench.contract.problem import Batch as Batch
    from metabench.contract.problem import Episode as Episode
    from metabench.contract.problem import Hyper as Hyper
    from metabench.contract.problem import Params as Params
    from metabench.contract.problem import Problem as Problem
    from metabench.contract.seeds import Seeds as Seeds
    from metabench.contract.seeds import generator as generator
    from metabench.contract.solver import Rate as Rate
    from metabench.contract.solver import Solver as Solver
    from metabench.contract.solver import SolverState as SolverState
    from metabench.contract.solver import scaled as scaled
    from metabench.contract.task import Task as Task
    from metabench.core.capabilities import CAPABILITIES as CAPABILITIES
    from metabench.core.registry import method as method
    from metabench.core.registry import solver as solver
    from metabench.core.registry import task as task
    from metabench.core.registry import tracker as tracker
    from metabench.core.settings import later as later
    from metabench.problems.problem_from import problem_from as problem_from
    from metabench.run.tracking import TrackedRun as TrackedRun
    from metabench.run.tracking import Tracker as Tracker

    __version__: str

_DOORS = ("api", "autodiff", "errors", "implicit", "testing", "unrolled")
"""The other six paths."""

_HOMES = {
    "api.comparison": ("compare",),
    "contract.context": ("Context",),
    "contract.declared": ("Evidence", "InnerRule", "Moduli", "OwnStep"),
    "contract.guards": ("check_hypergradient",),
    "contract.gradient_method": ("GradientMethod",),
    "contract.method": (
        "Hypergradient",
        "InnerTraining",
        "Method",
        "Positive",
        "SolverName",
        "State",
        "Steps",
        "inner_loop",
        "outer_solver",
    ),
    "contract.problem": (
        "GRADIENTS",
        "Batch",
        "Episode",
        "Hyper",
        "Params",
        "Problem",
    ),
    "contract.seeds": ("Seeds", "generator"),
    "contract.solver": ("Rate", "Solver", "SolverState", "scaled"),
    "contract.task": ("Task",),
    "core.capabilities": ("CAPABILITIES",),
    "core.registry": ("method", "solver", "task", "tracker"),
    "core.settings": ("later",),
    "run.tracking": ("TrackedRun", "Tracker"),
    "problems.problem_from": ("problem_from",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, *_DOORS, "__version__"])


if not TYPE_CHECKING:  # which would then take any name for granted

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("metabench")
        elif name in _DOORS:
            return importlib.import_module(f"metabench.{name}")
        elif name in _HOME_OF:
            value = getattr(importlib.import_module(f"metabench.{_HOME_OF[name]}"), name)
        else:
            raise AttributeError(f"module 'metabench' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
