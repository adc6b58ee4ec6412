"""Small problems of every kind that problem_from makes, in float64, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metabench import problem_from

DOUBLE = torch.float64
FEATURES = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def classes(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and their two classes, some wrong."""
    x, noise = drawn(n, FEATURES, seed=seed), drawn(n, seed=seed + 100)
    return x, (x[:, 0] + 0.3 * noise > 0).long()


def numbers(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and a noisy linear function of them [n, 1]."""
    x = drawn(n, FEATURES, seed=seed)
    return x, x[:, :1] - x[:, 1:2] + 0.3 * drawn(n, 1, seed=seed + 100)


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 6, 6] of three classes."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 6, 6, generator=gen, dtype=DOUBLE)
    return x, torch.randint(3, (n,), generator=gen)


def mlp(out: int = 2) -> nn.Module:
    """One hidden layer; weights from torch's global generator."""
    layers = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, out))
    return layers.double()


def linear(out: int = 1, bias: bool = True) -> nn.Linear:
    """From weights that are always the same."""
    layer = nn.Linear(FEATURES, out, bias=bias).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(drawn(*p.shape, seed=10 + i))
    return layer


def cnn() -> nn.Module:
    """One convolution."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    return layers.double()


class Recurrent(nn.Module):
    """Two steps of a GRU over halves of the features, then a linear layer."""

    def __init__(self, out: int = 2) -> None:
        super().__init__()
        self.read = nn.GRU(FEATURES // 2, 3, batch_first=True).double()
        self.last = nn.Linear(3, out).double()

    def forward(self, x: Tensor) -> Tensor:
        """Predictions [n, out]."""
        states, _ = self.read(x.unflatten(1, (2, -1)))
        found: Tensor = self.last(states[:, -1])
        return found


class Dropping(nn.Module):
    """One hidden layer behind dropout of its inputs by a module, before one by a function."""

    def __init__(self, out: int = 2) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.first, self.last = nn.Linear(FEATURES, 5).double(), nn.Linear(5, out).double()

    def forward(self, x: Tensor) -> Tensor:
        """Predictions [n, out]."""
        hidden = torch.tanh(self.first(self.drop(x)))
        found: Tensor = self.last(F.dropout(hidden, 0.4, self.training))
        return found


def dropping_cnn() -> nn.Module:
    """One convolution, whose channels are dropped whole."""
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(64, 3)
    )
    return layers.double()


def softened(lam: dict[str, Tensor], model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits at a temperature."""
    logits = model(x) / lam["log_temperature"].exp()
    return nn.functional.cross_entropy(logits, y, reduction="none")


def regression(gen: torch.Generator) -> Any:
    """An inner problem: five examples and five more of a random linear function."""
    w = torch.randn(FEATURES, 1, generator=gen, dtype=DOUBLE)
    x = torch.randn(2, 5, FEATURES, generator=gen, dtype=DOUBLE)
    return (x[0], x[0] @ w), (x[1], x[1] @ w)


def regressions(n: int, seed: int = 0) -> list[Any]:
    """A list of them."""
    gen = torch.Generator().manual_seed(seed)
    return [regression(gen) for _ in range(n)]


BINARY = (classes(12), classes(12, 1))
TABLE = (numbers(12), numbers(12, 1))
PICTURES = (images(8), images(8, 1))

KINDS: dict[str, Callable[[], Any]] = {
    "decay": lambda: problem_from(
        mlp, *BINARY, test=classes(12, 2), decays="one", batch_size=5, outer_batch_size=7
    ),
    "decays": lambda: problem_from(mlp, *BINARY, test=classes(12, 2), carried=False),
    "decays of a recurrent model": lambda: problem_from(Recurrent, *BINARY, test=classes(12, 2)),
    "decays of weights": lambda: problem_from(linear(), *TABLE, decays="weight", carried=False),
    "weights": lambda: problem_from(mlp, *BINARY, learn="example_weights", test=classes(9, 2)),
    "weights and decays": lambda: problem_from(
        mlp,
        *BINARY,
        learn=["example_weights", "weight_decays"],
        selection=classes(9, 3),
        batch_size=5,
    ),
    "augmentation": lambda: problem_from(cnn, *PICTURES, learn="augmentation"),
    "augmentation and decays": lambda: problem_from(
        cnn,
        *PICTURES,
        learn=["augmentation", "weight_decays"],
        strengths="rotation",
        test=images(8, 2),
        batch_size=4,
    ),
    "own": lambda: problem_from(
        mlp,
        *BINARY,
        learn=[softened, "weight_decays"],
        first={"log_temperature": 0.1},
        bounds={"log_temperature": (-2, 2)},
        test=classes(9, 2),
    ),
    "dropout": lambda: problem_from(
        Dropping,
        *BINARY,
        learn=["example_weights", "weight_decays"],
        test=classes(9, 2),
        batch_size=6,
        carried=False,
    ),
    "dropout of channels": lambda: problem_from(dropping_cnn, *PICTURES, learn="augmentation"),
    "start with dropout": lambda: problem_from(
        lambda: Dropping(1), regression, regression, test=regression, learn="initialisation"
    ),
    "start of drawn": lambda: problem_from(
        lambda: mlp(1), regression, regression, test=regression, learn="initialisation"
    ),
    "start of listed": lambda: problem_from(
        lambda: mlp(1), regressions(6), regressions(3, 1), learn="initialisation", batch_size=3
    ),
    "start of one": lambda: problem_from(
        mlp, *BINARY, test=classes(9, 2), learn="initialisation", meta_batch=1
    ),
}
