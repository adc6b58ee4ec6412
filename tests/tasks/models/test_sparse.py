"""Products with a sparse matrix against the dense ones, and all their derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from metabench.tasks.models import sparse

F64 = torch.float64


@pytest.fixture
def both():
    draw = np.random.default_rng(3)
    matrix = scipy.sparse.csr_array(draw.normal(size=(7, 5)) * (draw.random((7, 5)) < 0.4))
    batch = sparse.batch_of(matrix, torch.device("cpu"), F64)
    return batch, torch.from_numpy(matrix.toarray())


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_values_and_derivatives_of_every_order(both, shape):
    batch, dense = both
    w = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sparse.product(batch, w), dense @ w)
    w.requires_grad_()
    f = lambda w: sparse.product(batch, w).tanh()  # noqa: E731
    assert torch.autograd.gradcheck(f, (w,))
    assert torch.autograd.gradgradcheck(f, (w,))
    assert torch.autograd.gradcheck(f, (w,), check_forward_ad=True, check_backward_ad=False)


def test_under_torch_func(both):
    batch, dense = both
    many = torch.randn(4, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    f = torch.func.vmap(lambda w: sparse.product(batch, w))
    torch.testing.assert_close(f(many), torch.einsum("nd,bdc->bnc", dense, many))
    loss = lambda w: sparse.product(batch, w).tanh().square().sum()  # noqa: E731
    plain = lambda w: (dense @ w).tanh().square().sum()  # noqa: E731
    w = many[0]
    torch.testing.assert_close(torch.func.hessian(loss)(w), torch.func.hessian(plain)(w))
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(loss))(many), torch.func.vmap(torch.func.grad(plain))(many)
    )
