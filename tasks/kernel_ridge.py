"""How wide a kernel and how strong a penalty: kernel ridge regression on UCI tables.

Pedregosa: Hyperparameter Optimization with Approximate Gradient, ICML 2016, arXiv 1602.02355, and
the author's code. With K = exp(-e^log_gamma |x - x'|^2) of the training rows, the inner loss is
1/2 w' (K + e^log_penalty I) w - w' y, whose minimiser solves (K + e^log_penalty I) w = y; outer
loss: mean squared error of K(valid, train) w. lam enters the outer loss too, through that K.

Differs: the mean for the sum of squares; inputs and targets are standardised by the training rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.errors import SettingError
from metabench.core.registry import task

from .data import uci_tables
from .data.left_over import lacks_kept, with_selection

Count = Annotated[int, Field(ge=1)]
LOW, HIGH = -6.0, 6.0
"""Bounds of both logs, as in the author's code."""


@task("kernel_ridge")
@dataclass(frozen=True)
class KernelRidge(Task):
    """Kernel ridge regression: the kernel's width and the penalty, on a UCI table."""

    dataset: Literal["yacht", "energy", "concrete", "kin8nm", "power"] = "concrete"
    n_train: Count = 300
    n_valid: Count = 200
    n_test: Count = 200
    first_log_gamma: Annotated[float, Field(ge=LOW, le=HIGH)] = 0.0
    first_log_penalty: Annotated[float, Field(ge=LOW, le=HIGH)] = 0.0
    carried: bool = True
    """One training along the run; False: every outer step trains from w = 0."""

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("loss", "log_gamma", "log_penalty")
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    data: ClassVar[tuple[str, ...]] = ("uci_regression",)

    @property
    def offers(self) -> frozenset[str]:
        """Two bounded numbers, and one strongly convex problem."""
        own = {"lam_in_inner_loss", "best_response", "search_space", "small_lam"}
        own |= {"full_batch", "strongly_convex"} | (set() if self.carried else {"episodes"})
        return GRADIENTS | own

    @property
    def lacks_selection(self) -> str | None:
        """Rows that the parts leave over are kept for it."""
        rows, _ = uci_tables.SIZES[self.dataset]
        return lacks_kept(self.n_valid, rows - self.n_train - self.n_valid - self.n_test)

    def build(self, seeds: Seeds, device: torch.device) -> KernelRidgeProblem:
        """Cut the parts. Raises DataMissing, SettingError."""
        return KernelRidgeProblem(self, seeds, device, *uci_tables.load(self.dataset))


class KernelRidgeProblem(Problem):
    """float64. ``parts``: split to squared distances to the training rows "d2" [n, n_train] and
    targets "y" [n]. theta: "w" [n_train]. lam: "log_gamma" and "log_penalty", scalars."""

    def __init__(
        self, task: KernelRidge, seeds: Seeds, device: torch.device, x: Tensor, y: Tensor
    ) -> None:
        self.task, self.carried = task, task.carried
        sizes = {"train": task.n_train, "valid": task.n_valid, "test": task.n_test}
        if (wanted := sum(sizes.values())) > len(x):
            raise SettingError(
                f"task kernel_ridge: {task.dataset} has {len(x)} rows; n_train + n_valid + n_test "
                f"is {wanted}"
            )
        order = torch.randperm(len(x), generator=generator(seeds.data, "kernel_ridge"))
        sizes = with_selection(sizes, len(x))
        parts = order[: sum(sizes.values())].split([*sizes.values()])
        rows = dict(zip(sizes, parts, strict=True))
        x = uci_tables.standard(x, x[rows["train"]])
        y = uci_tables.standard(y, y[rows["train"]])
        self.parts: dict[str, Batch] = {
            split: {
                "d2": torch.cdist(x[at], x[rows["train"]]).square().to(device),
                "y": y[at].to(device),
            }
            for split, at in rows.items()
        }
        self.hypers = (
            Hyper("log_gamma", (), LOW, HIGH, meaning="log of 1 / (twice the width squared)"),
            Hyper("log_penalty", (), LOW, HIGH, meaning="log of the penalty on w"),
        )

    def init_outer(self) -> Params:
        """Two scalars."""
        y, task = self.parts["train"]["y"], self.task
        first = {"log_gamma": task.first_log_gamma, "log_penalty": task.first_log_penalty}
        return {name: y.new_tensor(value) for name, value in first.items()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """w [n_train], zero."""
        return {"w": torch.zeros_like(self.parts["train"]["y"])}

    def kernel(self, lam: Params, batch: Batch) -> Tensor:
        """K [n, n_train]."""
        return (-lam["log_gamma"].exp() * batch["d2"]).exp()

    def diagonal_penalty(self, lam: Params) -> Params:
        """e^log_penalty for every weight."""
        return {"w": lam["log_penalty"].exp()}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 w' K w - w' y."""
        w = theta["w"]
        return (w * (0.5 * self.kernel(lam, batch) @ w - batch["y"])).sum()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """1/2 w' (K + e^log_penalty I) w - w' y."""
        penalty = lam["log_penalty"].exp() * theta["w"].square().sum()
        return self.unpenalised_loss(lam, theta, batch) + 0.5 * penalty

    def inner_hessian(
        self, lam: Params, theta: Params, batch: Batch
    ) -> Callable[[Params], Params] | None:
        """v -> K v."""
        kernel = self.kernel(lam, batch)
        return lambda v: {"w": kernel @ v["w"]}

    def moduli(self, lam: Params) -> Moduli:
        """The penalty, as K has no negative eigenvalue; it and the largest row sum of K."""
        penalty = float(lam["log_penalty"].exp())
        largest = float(self.kernel(lam, self.parts["train"]).sum(1).max())
        return Moduli(penalty, penalty + largest)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean squared error."""
        return (self.kernel(lam, batch) @ theta["w"] - batch["y"]).square().mean()

    def episode(self, split: str, index: int) -> Episode:
        """All training rows; the validation rows to judge by, or the test rows for "test"."""
        outer = "valid" if split == "train" else split
        return Episode(self.parts["train"], self.parts[outer], index)

    def count(self, split: str) -> int | None:
        """One."""
        return 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """The mean squared error, in variances of the training targets, and lam."""
        found = {"loss": float(self.outer_loss(lam, theta, episode.outer))}
        return found | {name: float(value) for name, value in lam.items()}
