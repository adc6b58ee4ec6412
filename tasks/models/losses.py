"""Families of losses with parameters to learn, of classes and of numbers.

Taylor: Gonzalez, Miikkulainen: Optimizing Loss Functions through Multivariate Taylor Polynomial
Parameterization (TaylorGLO), arXiv 2002.00059; the terms of its third order are recalled, not
looked up. Network: Bechtle et al.: Meta-Learning via Learned Loss (ML3), arXiv 1906.05374, there of
one number. Weight net: Shu et al.: Meta-Weight-Net, NeurIPS 2019, arXiv 1902.07379. Transition
matrix: forward correction, Patrini et al., CVPR 2017, arXiv 1609.03683, with the matrix learned.
GCE: Zhang, Sabuncu, NeurIPS 2018, arXiv 1805.07836.

A weight net's input is not differentiated: its step is V(l_i) grad l_i. That is the gradient of
the integral of V from 0 to l_i and of no V(l) l, so the integral is the loss here, and its second
derivatives are those of the steps that theta takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.problem import Hyper, Params

ClassForm = Literal["gce", "taylor", "network", "weight_net", "transition", "examples"]
NumberForm = Literal["power", "huber", "taylor", "network", "weight_net", "examples"]

SURE = 0.9
"""First diagonal of a transition matrix."""
NODES, AREAS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
"""Gauss-Legendre on -1..1."""


@dataclass(frozen=True)
class Learned:
    """A family of losses.

    ``first`` draws lam, float64; ``loss`` of (lam, predictions [n, ...], targets [n], places in the
    training part [n]) is one of each example [n]; ``hypers`` say lam in words, with bounds where
    the form is one of ``SEARCHABLE``.
    """

    first: Callable[[torch.Generator], Params]
    loss: Callable[[Params, Tensor, Tensor, Tensor], Tensor]
    hypers: tuple[Hyper, ...] = ()


SEARCHABLE = ("gce", "taylor", "power", "huber")
"""Forms whose lam is a few bounded scalars."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each example [n]; logits [n, classes], labels [n]."""
    return -logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of each example [n]."""
    return (prediction - target).square()


def of_classes(form: ClassForm, *, n: int, classes: int, q: float) -> Learned:
    """A family for logits [n, classes] and labels [n]; ``n`` training examples.

    ``q`` is the first value of GCE's exponent: 0 is cross-entropy, 1 is 1 - p, half of the mean
    absolute error.
    """
    if form == "gce":

        def gce(lam: Params, logits: Tensor, y: Tensor, at: Tensor) -> Tensor:
            ce = cross_entropy(logits, y)
            return ce * growth(-lam["q"] * ce)  # (1 - p^q) / q

        meaning = "exponent of the generalised cross-entropy"
        return Learned(lambda _: {"q": _full(q)}, gce, (Hyper("q", (), 0.0, 1.0, meaning=meaning),))
    if form == "transition":

        def corrected(lam: Params, logits: Tensor, y: Tensor, at: Tensor) -> Tensor:
            to = lam["transition"].log_softmax(1)[:, y].t()
            return -(logits.log_softmax(1) + to).logsumexp(1)

        def identity(_: torch.Generator) -> Params:
            high = math.log(SURE * (classes - 1) / (1 - SURE))
            return {"transition": high * torch.eye(classes, dtype=torch.float64)}

        meaning = "logits of the given label (columns) for each true one (rows)"
        return Learned(
            identity, corrected, (Hyper("transition", (classes, classes), meaning=meaning),)
        )
    if form in ("taylor", "network"):
        entry = taylor if form == "taylor" else network

        def summed(lam: Params, logits: Tensor, y: Tensor, at: Tensor) -> Tensor:
            # F.one_hot looks at the labels, which vmap does not let it.
            target = (y[:, None] == torch.arange(classes, device=y.device)).to(logits)
            return entry(lam, target, logits.softmax(1)).sum(1)

        return _elementwise(form, summed)
    return _weighted(form, n, cross_entropy)


def of_numbers(
    form: NumberForm, *, n: int, power: float, delta: float, smoothing: float, bound: float | None
) -> Learned:
    """A family for predictions [n] and targets [n]; ``n`` training examples.

    power: (e^2 + smoothing^2)^(power / 2), e = prediction - target; huber: 2 delta^2
    (sqrt(1 + (e / delta)^2) - 1), which is e^2 near 0. ``power`` and ``delta`` are first values.
    ``bound``: predictions and targets go into a polynomial through bound tanh(x / bound), since
    one of odd degree has no minimum; None: as they are.
    """
    if form == "power":

        def powered(lam: Params, p: Tensor, y: Tensor, at: Tensor) -> Tensor:
            return (squared(p, y) + smoothing**2) ** (lam["power"] / 2)

        hyper = Hyper("power", (), 1.0, 2.0, meaning="power of the absolute error")
        return Learned(lambda _: {"power": _full(power)}, powered, (hyper,))
    if form == "huber":

        def huber(lam: Params, p: Tensor, y: Tensor, at: Tensor) -> Tensor:
            size = lam["log_delta"].exp().square()
            return 2 * size * ((1 + squared(p, y) / size).sqrt() - 1)

        hyper = Hyper("log_delta", (), -4.0, 4.0, meaning="log of where the loss turns linear")
        return Learned(lambda _: {"log_delta": _full(math.log(delta))}, huber, (hyper,))
    if form == "taylor":

        def polynomial(lam: Params, p: Tensor, y: Tensor, at: Tensor) -> Tensor:
            if bound is not None:
                p, y = (bound * (x / bound).tanh() for x in (p, y))
            return taylor(lam, y, p)

        return _elementwise(form, polynomial)
    if form == "network":
        return _elementwise(form, lambda lam, p, y, at: network(lam, y, p))
    return _weighted(form, n, squared)


def _full(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def growth(z: Tensor) -> Tensor:
    """(e^z - 1) / z, 1 at 0, with derivatives there."""
    small = z.abs() < 1e-3
    safe = torch.where(small, torch.ones_like(z), z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
    return torch.where(small, series, safe.expm1() / safe)


def taylor(lam: Params, y: Tensor, p: Tensor) -> Tensor:
    """TaylorGLO's third order, entry by entry: with a = y - theta_0, b = p - theta_1,

    -(theta_2 b + theta_3 b^2 / 2 + theta_4 b^3 / 6 + a (theta_5 b + theta_6 b^2 / 2)
      + theta_7 a^2 b / 2) .
    """
    centre, c = lam["centre"], lam["coefficient"]
    a, b = y - centre[0], p - centre[1]
    own = b * (c[0] + b * (c[1] / 2 + b * c[2] / 6))
    return -(own + a * b * (c[3] + b * c[4] / 2 + a * c[5] / 2))


def network(lam: Params, y: Tensor, p: Tensor) -> Tensor:
    """ML3's M(p, y), entry by entry: 2-50-50-1, ReLU, without biases, softplus at the end."""
    x = torch.stack([p, y], -1)
    for name in ("loss.first", "loss.second"):
        x = F.linear(x, lam[name]).relu()
    return F.softplus(F.linear(x, lam["loss.end"]).squeeze(-1))


def weight(lam: Params, loss: Tensor) -> Tensor:
    """Meta-Weight-Net's V in (0, 1) of losses of any shape: 1-100-1, ReLU, sigmoid at the end."""
    x = F.linear(loss[..., None], lam["weight.hidden"], lam["weight.hidden_bias"]).relu()
    return F.linear(x, lam["weight.end"], lam["weight.end_bias"]).squeeze(-1).sigmoid()


def weighed(lam: Params, loss: Tensor) -> Tensor:
    """The integral of V from 0 to each loss [n].

    Its value, and with it the slope in lam, by quadrature; the midpoint rule from the loss as a
    constant to the loss itself has value 0, and the integral's own first and second derivatives in
    theta and mixed ones in lam.
    """
    here = loss.detach()
    nodes, areas = ((x.to(here) / 2) for x in (NODES, AREAS))
    area = here * (weight(lam, here[..., None] * (nodes + 0.5)) * areas).sum(-1)
    return area + (loss - here) * weight(lam, (loss + here) / 2)


def _elementwise(
    form: str, loss: Callable[[Params, Tensor, Tensor, Tensor], Tensor], units: int = 50
) -> Learned:
    if form == "taylor":
        hypers = (
            Hyper("centre", (2,), -1.0, 1.0, meaning="theta_0, theta_1"),
            Hyper("coefficient", (6,), -4.0, 4.0, meaning="theta_2 .. theta_7"),
        )
        # (p - y)^2, but for y^2, which no theta sees.
        start = (0.0, -2.0, 0.0, 2.0, 0.0, 0.0)

        def square(_: torch.Generator) -> Params:
            zero = torch.zeros(2, dtype=torch.float64)
            return {"centre": zero, "coefficient": torch.tensor(start, dtype=torch.float64)}

        return Learned(square, loss, hypers)

    def near_the_error(gen: torch.Generator) -> Params:
        """Two units hold p - y and y - p, the rest little: about softplus(|p - y|)."""
        out = {}
        for name, shape in (("first", (units, 2)), ("second", (units, units)), ("end", (1, units))):
            draw = 2 * torch.rand(shape, generator=gen, dtype=torch.float64) - 1
            out[f"loss.{name}"] = draw * 0.1 * shape[1] ** -0.5
        out["loss.first"][:2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float32)
        out["loss.second"][0, :2] += 1.0
        out["loss.end"][0, 0] += 2.0
        return out

    return Learned(near_the_error, loss)


def _weighted(form: str, n: int, base: Callable[[Tensor, Tensor], Tensor]) -> Learned:
    if form == "examples":
        meaning = "logit of each training example's weight"
        return Learned(
            lambda _: {"logit": torch.zeros(n, dtype=torch.float64)},
            lambda lam, p, y, at: lam["logit"][at].sigmoid() * base(p, y),
            (Hyper("logit", (n,), meaning=meaning),),
        )

    def drawn(gen: torch.Generator, units: int = 100) -> Params:
        out = {}
        for name, shape in (
            ("hidden", (units, 1)),
            ("hidden_bias", (units,)),
            ("end", (1, units)),
            ("end_bias", (1,)),
        ):
            inputs = 1 if name.startswith("hidden") else units
            draw = 2 * torch.rand(shape, generator=gen, dtype=torch.float64) - 1
            out[f"weight.{name}"] = draw * inputs**-0.5  # as torch's linear layers start
        return out

    return Learned(drawn, lambda lam, p, y, at: weighed(lam, base(p, y)))


def pulls(
    learned: Learned,
    base: Callable[[Tensor, Tensor], Tensor],
    lam: Params,
    prediction: Tensor,
    target: Tensor,
    at: Tensor,
    wrong: Tensor,
) -> dict[str, float]:
    """How hard the learned loss pulls at predictions, as a part of how hard ``base`` does.

    ``effective_step`` over all examples, ``weight_right`` and ``weight_wrong`` over those with
    right and with wrong targets (bool [n]; 0 where there are none): sum g g_0 / sum g_0^2 over the
    slopes in the predictions. Where examples are weighted that is their mean weight, large slopes
    counting more.
    """
    x = {"p": prediction}
    g = autodiff.grad(lambda p: learned.loss(lam, p["p"], target, at).sum(), x)[1]["p"]
    g0 = autodiff.grad(lambda p: base(p["p"], target).sum(), x)[1]["p"]
    both, own = ((a * g0).reshape(len(g0), -1).sum(1).double() for a in (g, g0))

    def ratio(mask: Tensor) -> float:
        size = float(own[mask].sum())
        return float(both[mask].sum()) / size if size > 0 else 0.0

    return {
        "effective_step": ratio(torch.ones_like(wrong)),
        "weight_right": ratio(~wrong),
        "weight_wrong": ratio(wrong),
    }
