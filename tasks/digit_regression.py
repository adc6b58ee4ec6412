"""Weight decay of a linear regression onto the classes of digits: one, one a class, one a weight.

Lorraine, Duvenaud: Stochastic Hyperparameter Optimization through Hypernetworks, arXiv 1802.09419,
and its code (lorraine2/hypernet-hypertraining). Both losses are the mean over n images and 10
classes of -log N(y | x'w, noise^2), y one-hot; the inner loss adds a penalty:

    "norm"     mean over groups of e^{lam_g} |w_g|     (the code: one group, or one a class)
    "squared"  sum_i e^{lam_i} w_i^2                   (the paper)

Differs from the code: batches are full, parts are drawn by the data seed, and the class-wise norms
see the biases too. Many images are seen through the rows R of [X y] = QR: the same losses, to
rounding. The inner minimiser is known: by a linear solve, or for a norm by the s with s |w(s)| =
e^lam, w(s) the minimiser under s/2 |w|^2.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.declared import Moduli
from metabench.contract.problem import GRADIENTS, Batch, Episode, Hyper, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.core.registry import task

from .data.images import CLASSES, Images, OfImages, enough, shrunk
from .data.left_over import with_selection

LOW, HIGH = -6.0, 6.0
"""Bounds of the log decays."""

Count = Annotated[int, Field(ge=1)]


@task("digit_regression")
@dataclass(frozen=True)
class DigitRegression(OfImages):
    """Weight decay of a linear regression onto digits' classes: 1, 10 or 7,850 decays."""

    decays: Literal["one", "class", "weight"] = "one"
    penalty: Literal["norm", "squared"] = "norm"
    shrink: Count = 1
    """Images are averaged over squares of this many pixels a side."""
    split: Literal["drawn", "as published"] = "drawn"
    """"as published": the first ``n_train`` images train, the next ones validate, as in the code;
    else both are drawn by the data seed."""
    n_train: Count = 10
    n_valid: Count = 10000
    n_test: Count = 10000
    first_log_decay: Annotated[float, Field(ge=LOW, le=HIGH)] = 0.0
    noise: Annotated[float, Field(gt=0)] = 0.1
    """Deviation of the targets: a squared error e^2 counts e^2 / (2 noise^2). Plain steps stay
    stable up to a size of about 0.2 noise^2."""
    start: Annotated[float, Field(gt=0)] = 0.01
    """Deviation of the first weights."""
    carried: bool = True
    """One training along the run; False: every outer step trains from the same fresh weights."""
    dtype: Literal["float32", "float64"] = "float32"

    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    outer_on_validation: ClassVar[bool] = True
    evaluations: ClassVar[tuple[str, ...]] = ("test",)
    lacks: ClassVar[dict[str, str]] = {
        "small_lam": "lam has a decay for every weight: too many scalars to search in",
        "strongly_convex": "a norm that is not squared bends nowhere (penalty = 'squared' does)",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decays == "weight" and self.penalty == "norm":
            raise ValueError(
                "the norm of one weight has no derivative at 0: decays = 'weight' needs "
                "penalty = 'squared'"
            )
        if self.noise**2 < sys.float_info.min:
            raise ValueError(
                f"noise is {self.noise:g}: its square is 0 in double precision; take 1e-150 or more"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The error of lam where there is one decay."""
        own = ("loss", "accuracy", "valid_loss", "gap", "exact_loss", "log_decay")
        return (*own, "decay_error") if self.decays == "one" else own

    @property
    def offers(self) -> frozenset[str]:
        """A convex inner problem of full batches, with bounds."""
        own = {"lam_in_inner_loss", "best_response", "search_space", "prediction", "full_batch"}
        own |= set() if self.carried else {"episodes"}
        own |= {"strongly_convex"} if self.penalty == "squared" else set()
        return GRADIENTS | own | (set() if self.decays == "weight" else {"small_lam"})

    def build(self, seeds: Seeds, device: torch.device) -> DigitRegressionProblem:
        """Draw the parts and the first weights."""
        return DigitRegressionProblem(self, seeds, device, _drawn(self, seeds.data))


class Drawn(NamedTuple):
    """Of each part its images [n, d], with a last column of ones, and labels; and its rows "x" and
    "y" in float64. Training images are not kept."""

    images: dict[str, tuple[Tensor, Tensor]]
    rows: dict[str, Batch]


@lru_cache(maxsize=3)
def _drawn(task: DigitRegression, seed: int) -> Drawn:
    """Kept between cells that share it: many images take seconds."""
    return draw(task, task.images(), seed)


def draw(task: DigitRegression, images: Images, seed: int) -> Drawn:
    """Parts of the images "train", the test part of "test"."""
    sizes = {"train": task.n_train, "valid": task.n_valid, "test": task.n_test}
    gen = generator(seed, "digit_regression")
    out = Drawn({}, {})
    for source, splits in (("train", ("train", "valid")), ("test", ("test",))):
        x, y = images[source]
        wanted = {s: sizes[s] for s in splits}
        named = " + ".join(f"n_{s}" for s in splits)
        enough("digit_regression", task.dataset, named, sum(wanted.values()), len(x))
        if source == "train":
            wanted = with_selection(wanted, len(x))
        order = torch.arange(len(x))
        if task.split == "drawn":
            order = torch.randperm(len(x), generator=gen)
        parts = order[: sum(wanted.values())].split([*wanted.values()])
        for split, chosen in zip(wanted, parts, strict=True):
            flat = F.pad(shrunk(x[chosen], task.shrink).flatten(1), (0, 1), value=1.0)
            out.rows[split] = rows(flat, y[chosen])
            if split != "train":
                out.images[split] = flat, y[chosen]
    return out


def rows(x: Tensor, labels: Tensor) -> Batch:
    """[x y] / sqrt(n), or R of its QR decomposition where that has fewer rows."""
    both = torch.cat([x.double(), F.one_hot(labels, CLASSES).double()], 1) / len(x) ** 0.5
    if len(both) > both.shape[1]:
        both = torch.linalg.qr(both, mode="r").R
    return {"x": both[:, :-CLASSES].contiguous(), "y": both[:, -CLASSES:].contiguous()}


class DigitRegressionProblem(Problem):
    """``parts``: split to rows "x" [r, d] (the last column stands for the bias) and "y" [r, 10],
    scaled by 1/sqrt(n). theta: "w" [10, d]. lam: "log_decay" [1], [10] or [10, d]."""

    def __init__(
        self, task: DigitRegression, seeds: Seeds, device: torch.device, drawn: Drawn
    ) -> None:
        self.task, self.carried, self.device = task, task.carried, device
        self.dtype = getattr(torch, task.dtype)
        self.bend = 1 / (CLASSES * task.noise**2)
        self.held = {k: (x.to(device), y.to(device)) for k, (x, y) in drawn.images.items()}
        self.parts = {
            split: {k: v.to(device, self.dtype) for k, v in rows.items()}
            for split, rows in drawn.rows.items()
        }
        pixels = self.parts["train"]["x"].shape[1]
        first = torch.randn(
            CLASSES, pixels, generator=generator(seeds.init, "digit_regression"), dtype=self.dtype
        )
        self.first = (task.start * first).to(device)
        shape = {"one": (1,), "class": (CLASSES,), "weight": (CLASSES, pixels)}[task.decays]
        self.hypers = (Hyper("log_decay", shape, LOW, HIGH, meaning="log of the weights' penalty"),)

    def init_outer(self) -> Params:
        """log_decay [1], [10] or [10, d]."""
        (hyper,) = self.hypers
        return {"log_decay": self.first.new_full(hyper.shape, self.task.first_log_decay)}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The same small weights every time."""
        return {"w": self.first.clone()}

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """x'w of each row [r, 10]."""
        return F.linear(batch["x"], theta["w"])

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """-log N(y | x'w, noise^2), a mean over images and classes."""
        return self._misfit(self.predict(lam, theta, batch), batch)

    def _misfit(self, prediction: Tensor, batch: Batch) -> Tensor:
        constant = math.log(self.task.noise * math.sqrt(2 * math.pi))
        return 0.5 * self.bend * (prediction - batch["y"]).square().sum() + constant

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """The same of predictions [r, 10], and the penalty."""
        decay, w = lam["log_decay"].exp(), theta["w"]
        penalty: Tensor
        if self.task.penalty == "norm":
            groups = w.reshape(len(decay), -1)
            penalty = (decay * torch.linalg.vector_norm(groups, dim=1)).mean()
        else:
            penalty = ((decay if decay.dim() == 2 else decay[:, None]) * w.square()).sum()
        return self._misfit(prediction, batch) + penalty

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The loss and the penalty."""
        return self.loss_of_prediction(lam, theta, self.predict(lam, theta, batch), batch)

    def diagonal_penalty(self, lam: Params) -> Params | None:
        """2 e^lam of the squared form."""
        if self.task.penalty == "norm":
            return None
        decay = 2 * lam["log_decay"].exp()
        return {"w": decay if decay.dim() == 2 else decay[:, None]}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The loss of the squared form."""
        if self.task.penalty == "norm":
            return self.inner_loss(lam, theta, batch)
        return self.outer_loss(lam, theta, batch)

    def moduli(self, lam: Params) -> Moduli | None:
        """The least decay, and the largest beside the largest bend of the loss; squared form."""
        if self.task.penalty == "norm":
            return None
        decay = 2 * lam["log_decay"].exp()
        # Above the largest eigenvalue by more than its rounding error.
        bend = float(self.decomposition[0][-1]) * (1 + 1e-6)
        return Moduli(float(decay.min()), bend + float(decay.max()))

    @cached_property
    def decomposition(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the training rows in float64: eigenvalues of the loss's Hessian H = bend x'x in the
        weights of a class, its eigenvectors V, and V' bend x'y [d, 10]."""
        x, y = (self.parts["train"][k].double() for k in ("x", "y"))
        values, vectors = torch.linalg.eigh(self.bend * x.T @ x)
        return values.clamp(min=0), vectors, vectors.T @ (self.bend * x.T @ y)

    def minimiser(self, lam: Params) -> Tensor:
        """theta's w [10, d] that minimises the inner loss at lam; float64, without a graph."""
        values, vectors, b = self.decomposition
        decay = lam["log_decay"].detach().double().exp()
        if self.task.decays == "weight":
            h = vectors @ (values[:, None] * vectors.T)
            factors = torch.linalg.cholesky(h + torch.diag_embed(2 * decay))
            return torch.cholesky_solve((vectors @ b).T[..., None], factors)[..., 0]
        s = 2 * decay if self.task.penalty == "squared" else self._equivalent(decay / len(decay))
        return (vectors @ (b / (values[:, None] + s))).T

    def _equivalent(self, force: Tensor) -> Tensor:
        """s [k] with s |w(s)| = force [k], of all of w or, for class-wise decays, of class k; by
        bisection in log s: the left side grows with s, to the norm of b. Infinite where the force
        is larger: the minimiser is 0."""
        values, _, b = self.decomposition
        b = b.T.reshape(CLASSES if self.task.decays == "class" else 1, -1, len(values))
        low, high = (torch.full_like(force, x) for x in (-60.0, 60.0))
        for _ in range(80):
            middle = (low + high) / 2
            s = middle.exp()[:, None, None]
            small = torch.linalg.vector_norm(s * b / (values + s), dim=(1, 2)) < force
            low, high = torch.where(small, middle, low), torch.where(small, high, middle)
        none = force >= torch.linalg.vector_norm(b, dim=(1, 2))
        return torch.where(none, torch.inf, low.exp())

    @cached_property
    def best_decay(self) -> float:
        """The log decay, on a grid of 0.05, whose exact minimiser has the least validation loss;
        for one decay."""
        grid = torch.linspace(LOW, HIGH, 241, dtype=torch.float64)
        values, vectors, b = self.decomposition
        s = 2 * grid.exp() if self.task.penalty == "squared" else self._equivalent(grid.exp())
        x, y = (self.parts["valid"][k].double() for k in ("x", "y"))
        w = b / (values[:, None] + s[:, None, None])  # in the eigenvectors' coordinates
        return float(grid[(x @ vectors @ w - y).square().sum((1, 2)).argmin()])

    def exact_loss(self, lam: Params, split: str) -> float:
        """The loss on a split at the inner minimiser of lam."""
        batch = {k: v.double() for k, v in self.parts[split].items()}
        return float(self.outer_loss(lam, {"w": self.minimiser(lam)}, batch))

    def episode(self, split: str, index: int) -> Episode:
        """All training images; the validation images to judge by, or the test images for "test"."""
        judged = "valid" if split == "train" else split
        return Episode(self.parts["train"], self.parts[judged], index)

    def count(self, split: str) -> int | None:
        """One."""
        return 1

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """Loss and accuracy on the split; the loss on validation images and how far the split's
        lies above it; the loss at the inner minimiser of lam; the mean of lam, and for one decay
        how far it is from ``best_decay``."""
        split = next(s for s in self.held if episode.outer is self.parts[s])
        x, y = self.held[split]
        loss = float(self.outer_loss(lam, theta, episode.outer))
        valid = float(self.outer_loss(lam, theta, self.parts["valid"]))
        out = {
            "loss": loss,
            "accuracy": float((F.linear(x, theta["w"].to(x)).argmax(1) == y).double().mean()),
            "valid_loss": valid,
            "gap": loss - valid,
            "exact_loss": self.exact_loss(lam, split),
            "log_decay": float(lam["log_decay"].mean()),
        }
        if self.task.decays == "one":
            out["decay_error"] = abs(out["log_decay"] - self.best_decay)
        return out
