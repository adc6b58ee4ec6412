"""The covariance over groups of samples against the textbook formula."""

import pytest
import torch
from oracles import F64

from metabench.hypergradients.langevin.estimators import Comoment


@pytest.mark.parametrize("groups", [[50], [1] * 50, [7, 1, 30, 12]])
def test_grouping_does_not_matter_and_nothing_cancels(groups):
    gen = torch.Generator().manual_seed(0)
    x = 1e6 + torch.randn(50, generator=gen, dtype=F64)
    y = {"a": -1e6 + torch.randn(50, 2, 3, generator=gen, dtype=F64) + x[:, None, None],
         "b": torch.randn(50, generator=gen, dtype=F64)}  # fmt: skip
    found, at = Comoment(), 0
    for m in groups:
        found.add(x[at : at + m], {k: v[at : at + m] for k, v in y.items()})
        at += m
    for k, v in found.covariance().items():
        flat = y[k].reshape(50, -1)
        centred = (flat - flat.mean(0)) * (x - x.mean())[:, None]
        expected = (centred.sum(0) / 49).reshape(y[k].shape[1:])
        torch.testing.assert_close(v, expected, rtol=1e-8, atol=1e-8)


def test_one_sample_has_no_covariance():
    found = Comoment()
    found.add(torch.ones(1), {"a": torch.ones(1, 2)})
    with pytest.raises(ValueError, match="needs two samples, there are 1"):
        found.covariance()
