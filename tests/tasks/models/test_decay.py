"""The norm of a penalty's mixed derivative against the whole matrix."""

import pytest
import torch
from oracles import F64

from metabench.tasks.models.decay import mixed_norm


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1), (4, 3), (1, 3)])
def test_it_is_the_spectral_norm_of_the_whole_derivative(shape):
    gen = torch.Generator().manual_seed(0)
    lam, w = (
        torch.randn(shape, generator=gen, dtype=F64),
        torch.randn(4, 3, generator=gen, dtype=F64),
    )
    whole = torch.func.jacrev(lambda p: p.exp() * w)(lam).reshape(12, -1)
    norm = float(torch.linalg.matrix_norm(whole, 2))
    assert mixed_norm(lam.exp(), w) == pytest.approx(norm, rel=1e-12)
