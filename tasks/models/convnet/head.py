"""Linear layer and mean cross-entropy: values, gradients and their tangents, by hand.

Any leading dimensions, the same in all arguments, count independent classifiers. f features
[..., n, k], w and b the layer [..., classes, k] and [..., classes], p the softmax and
e = (p - onehot) / n, the loss's gradient in the logits, [..., n, classes].
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def forward(f: Tensor, labels: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss [...], p and e."""
    logp = F.log_softmax((f @ w.mT).add_(b.unsqueeze(-2)), -1)
    where = labels.unsqueeze(-1)
    value = logp.gather(-1, where).squeeze(-1).mean(-1).neg_()
    p = logp.exp_()
    e = p.scatter_add(-1, where, p.new_full((1,), -1.0).expand(where.shape))
    return value, p, e.div_(labels.shape[-1])


def backward(g: Tensor, f: Tensor, e: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in w, b and f of g times the loss; g is [...]."""
    go = g[..., None, None] * e
    return go.mT @ f, go.sum(-2), go @ w


def product(
    g: Tensor, f: Tensor, p: Tensor, e: Tensor, w: Tensor, *, along: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along tangents of f, w and b: the tangent of the loss, and those of :func:`backward` at a
    fixed g."""
    df, v_w, v_b = along
    do = (df @ w.mT).add_(v_b.unsqueeze(-2)).add_(f @ v_w.mT)
    dg = (e * do).sum((-2, -1))
    g = g[..., None, None]
    pdo = p * do
    dgo = (pdo - p * pdo.sum(-1, keepdim=True)).mul_(g / f.shape[-2])
    go = g * e
    return dg, (dgo.mT @ f).add_(go.mT @ df), dgo.sum(-2), (dgo @ w).add_(go @ v_w)
