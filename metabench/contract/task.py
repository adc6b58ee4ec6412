"""What is registered under a task's name: settings that can build their problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from metabench.contract.problem import Problem
from metabench.contract.seeds import Seeds


class Task(ABC):
    """What is registered: a frozen dataclass of settings that can build its problem.

    A subclass gives ``metric``, ``goal``, ``data``, ``offers`` and :meth:`build`. What follows them
    has defaults, and is replaced by a ClassVar, a property or (``source``) a setting.
    """

    registered_name: ClassVar[str]
    metric: ClassVar[str]
    """The metric that selection and tables use, a key of ``Problem.metrics``."""
    goal: ClassVar[Literal["max", "min"]]
    outer_on_validation: ClassVar[bool] = False
    """Whether the outer level learns on the examples of the split "valid": the best state on it is
    then chosen by what was fitted to it. False for few-shot tasks, whose outer loss sees training
    classes, for formulas, which have no examples, and where none were cut off, so that "valid" is
    the training part."""

    @property
    @abstractmethod
    def data(self) -> tuple[str, ...]:
        """Data sets (names in :mod:`metabench.datasets.catalogue`) that must be on the machine."""

    @property
    @abstractmethod
    def offers(self) -> frozenset[str]:
        """The capabilities (keys of ``CAPABILITIES``) that the problem has under these settings."""

    @abstractmethod
    def build(self, seeds: Seeds, device: torch.device) -> Problem:
        """Load the data and fix the seeds. Raises DataMissing."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """Why a capability is not offered, in the task's own words."""
        return {}

    @property
    def lacks_selection(self) -> str | None:
        """Why there is no split "selection", of examples that neither loss learns on and no final
        evaluation sees, under these settings; None: there is one, and a budget may choose the
        state by it (``select = "best_selection"``)."""
        if self.outer_on_validation:
            return "it keeps no examples for it"
        return "its outer level does not learn on the split 'valid', which serves"

    @property
    def metrics(self) -> tuple[str, ...] | None:
        """The keys of ``Problem.metrics`` under these settings, and of a search's report where
        regret is known; None: not said. A suite that asks for another is refused at once."""
        return None

    @property
    def evaluations(self) -> tuple[str, ...] | None:
        """``Problem.evaluations`` under these settings, as :attr:`metrics`."""
        return None

    @property
    def protocol(self) -> str:
        """What a reader of a table has to know of how a run is tested, in a few words; "" where
        there is nothing. Rows of a column may differ in it, and the table then says so."""
        return ""

    @property
    def source(self) -> str:
        """Name of the layout that the data is read from."""
        return "auto"

    @property
    def packages(self) -> tuple[str, ...]:
        """Names that must be importable."""
        return ()

    @property
    def missing(self) -> tuple[str, str] | None:
        """What else is not on this machine, and the command that brings it."""
        return None
