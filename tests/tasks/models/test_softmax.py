"""The closed-form Hessian, as a product and dense, against dense second derivatives."""

import pytest
import torch
from oracles import F64
from torch.nn import functional as F

from metabench.tasks.models import softmax
from metabench.tasks.models.softmax import SoftmaxHessian, dense_hessian


@pytest.mark.parametrize("block", [2**20, 5 * 4 * 8, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_product_is_the_dense_one(monkeypatch, block, bias):
    monkeypatch.setattr(softmax, "BLOCK_BYTES", block)
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(13, 4, generator=gen, dtype=F64), torch.arange(13) % 3
    theta = {"w": torch.randn(3, 4, generator=gen, dtype=F64)}
    if bias:
        theta["c"] = torch.randn(3, generator=gen, dtype=F64)
    sizes = [v.numel() for v in theta.values()]

    def named(flat):
        parts = flat.split(sizes)
        return {k: p.view(v.shape) for (k, v), p in zip(theta.items(), parts, strict=True)}

    def loss(flat):
        t = named(flat)
        return F.cross_entropy(F.linear(x, t["w"], t.get("c")), y)

    flat = torch.cat([v.reshape(-1) for v in theta.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    product = SoftmaxHessian(x, F.linear(x, theta["w"], theta.get("c")).softmax(1), "w", "c")
    for v in torch.eye(len(flat), dtype=F64):
        found = product(named(v))
        assert list(found) == list(theta)
        expected = hessian @ v
        got = torch.cat([u.reshape(-1) for u in found.values()])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_dense_hessian_of_weighted_losses():
    """With a column of ones for the bias."""
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(13, 4, generator=gen, dtype=F64), torch.arange(13) % 3
    x[:, -1] = 1.0
    w, weights = (torch.rand(*n, generator=gen, dtype=F64) for n in ((3, 4), (13,)))

    def loss(flat):
        return (weights * F.cross_entropy(x @ flat.view(3, 4).T, y, reduction="none")).sum()

    found = dense_hessian(x, (x @ w.T).softmax(1), weights)
    expected = torch.autograd.functional.hessian(loss, w.flatten())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
