"""A sparse design matrix as part of a batch: products with it, differentiable any number of times.

torch's own product with a CSR matrix turns the matrix for every derivative; here a batch holds the
matrix and its transpose, both by rows.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metabench.contract.problem import Batch

NAMES = ("starts", "columns", "values", "back_starts", "back_columns", "back_values")


def batch_of(matrix: Any, device: torch.device, dtype: torch.dtype) -> Batch:
    """The parts of a scipy CSR matrix [n, d] and of its transpose, as named tensors."""
    out: Batch = {}
    for prefix, one in (("", matrix), ("back_", matrix.T.tocsr())):
        out[f"{prefix}starts"] = torch.from_numpy(one.indptr.astype(np.int64)).to(device)
        out[f"{prefix}columns"] = torch.from_numpy(one.indices.astype(np.int64)).to(device)
        out[f"{prefix}values"] = torch.from_numpy(one.data).to(device, dtype)
    return out


def product(batch: Batch, w: Tensor) -> Tensor:
    """X w for w [d] or [d, c], with the matrix of a batch that :func:`batch_of` made."""
    out: Tensor = _Product.apply(*(batch[k] for k in NAMES), w)
    return out


def _csr(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    shape = (len(starts) - 1, width)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(Sparse CSR tensor|Sparse invariant)", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


class _Product(torch.autograd.Function):
    """X w from the six parts and w; derivatives are products with X and its transpose again."""

    @staticmethod
    def forward(*given: Tensor) -> Tensor:
        return _csr(given[0], given[1], given[2], len(given[3]) - 1) @ given[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.parts = inputs[:-1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        turned = *ctx.parts[3:], *ctx.parts[:3]
        return *[None] * 6, _Product.apply(*turned, g)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        out: Tensor = _Product.apply(*ctx.parts, tangents[-1])
        return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Tensor) -> tuple[Tensor, int]:
        """Every w of the batch as further columns."""
        assert in_dims[:-1] == (None,) * 6 and in_dims[-1] is not None
        moved = given[-1].movedim(in_dims[-1], -1)
        flat = moved.reshape(len(moved), -1)
        found = _Product.apply(*given[:-1], flat)
        return found.reshape(-1, *moved.shape[1:]), moved.dim() - 1
