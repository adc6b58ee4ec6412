"""Weights that differ from example to example by a factor on each row, without being built.

MacKay, Vicol, Lorraine, Duvenaud, Grosse: Self-Tuning Networks, ICLR 2019, arXiv 1903.03088,
section 3: W_i = W0 + diag(g_i) W1 for example i costs two products, not one a example,

    W_i x_i = W0 x_i + g_i * (W1 x_i),    b_i = b0 + g_i * b1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.core.errors import MetabenchError


class Gated(Tensor):
    """A parameter [rows, ...] that is ``base + gate[i] * slope``, row by row, for example i.

    ``base`` and ``slope`` have the parameter's shape, ``gate`` is [examples, rows]. It can be the
    weight or the bias of a linear map or a convolution over a batch with the examples first; any
    other operation raises MetabenchError. Nothing of the shape [examples, rows, ...] is made.
    """

    base: Tensor
    slope: Tensor
    gate: Tensor

    @staticmethod
    def __new__(cls, base: Tensor, slope: Tensor, gate: Tensor) -> Gated:
        """A shell with the parameter's shape around the three."""
        shell: Gated = Tensor._make_wrapper_subclass(
            cls, base.shape, dtype=base.dtype, device=base.device
        )
        shell.base, shell.slope, shell.gate = base, slope, gate
        return shell

    def __init__(self, base: Tensor, slope: Tensor, gate: Tensor) -> None:
        """As said of the class."""

    def through(self, f: Callable[[Tensor], Tensor]) -> Gated:
        """With ``f`` applied to the three tensors."""
        return Gated(f(self.base), f(self.slope), f(self.gate))

    def of(self, example: int) -> Tensor:
        """The parameter of one example, built."""
        gate = self.gate[example].view(-1, *[1] * (self.base.dim() - 1))
        return self.base + gate * self.slope

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Linear maps and convolutions by two products each; questions of shape and type."""
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **kwargs)
        if func in _QUESTIONS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        raise MetabenchError(
            f"weights that differ from example to example cannot go into {name}: "
            "linear and convolution operations take them"
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Nothing comes so far down."""
        raise MetabenchError(f"weights that differ from example to example cannot go into {func}")


_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_QUESTIONS = (
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "requires_grad")),
    Tensor.dim,
    Tensor.size,
    Tensor.numel,
)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    def product(w: Tensor) -> Tensor:
        return F.linear(x, w)

    def rows(v: Tensor) -> Tensor:  # [..., rows] beside outputs [..., rows]
        return v if v.dim() == 1 else v.view(v.shape[0], *[1] * (x.dim() - 2), -1)

    return _gated(product, rows, weight, bias)


def _convolution(
    convolve: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any
) -> Tensor:
    space = [1] * (x.dim() - 2)

    def product(w: Tensor) -> Tensor:
        out: Tensor = convolve(x, w, None, *how, **named)
        return out

    def rows(v: Tensor) -> Tensor:
        return v.view(-1, *space) if v.dim() == 1 else v.view(*v.shape, *space)

    return _gated(product, rows, weight, bias)


def _gated(
    product: Callable[[Tensor], Tensor],
    rows: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    if isinstance(weight, Gated):
        y = product(weight.base) + rows(weight.gate) * product(weight.slope)
    else:
        y = product(weight)
    if isinstance(bias, Gated):
        return y + rows(torch.addcmul(bias.base, bias.gate, bias.slope))
    return y if bias is None else y + rows(bias)
