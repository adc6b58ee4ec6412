"""A graph isomorphism network as a pure function of named parameters.

Xu, Hu, Leskovec, Jegelka: How Powerful are Graph Neural Networks?, ICLR 2019; with edges' kinds
beside the neighbours' features, and the centre's features beside the mean over nodes, as in Hu et
al.: Strategies for Pre-training Graph Neural Networks, ICLR 2020. Differs: layer norm (Ba, Kiros,
Hinton, 2016) for batch norm, so that a graph's features do not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract.problem import Params

from ..data.ppi import Cut
from .encoders import Shapes


@dataclass(frozen=True)
class GIN:
    """``layers`` of a sum over neighbours and oneself, then two linear layers; ReLU after each but
    the last. All nodes start alike."""

    kinds: int
    width: int = 300
    layers: int = 5

    @property
    def feature_size(self) -> int:
        """The mean over nodes, and the centre."""
        return 2 * self.width

    def shapes(self) -> Shapes:
        """``node.weight`` and ``layer{i}.*``; the last kind of an edge is that of oneself."""
        d = self.width
        out: Shapes = {"node.weight": (1, d)}
        for i in range(self.layers):
            at = f"layer{i}."
            out |= {f"{at}edge.weight": (d, self.kinds + 1), f"{at}edge.bias": (d,)}
            out |= {f"{at}wide.weight": (2 * d, 2 * d), f"{at}wide.bias": (2 * d,)}
            out |= {f"{at}norm.{k}": (2 * d,) for k in ("scale", "shift")}
            out |= {f"{at}narrow.weight": (d, 2 * d), f"{at}narrow.bias": (d,)}
        return out

    def features(
        self, params: Params, cut: Cut, prefix: str = "", keep: Tensor | None = None
    ) -> Tensor:
        """[graphs, 2 width]; parameters' names have ``prefix`` in front.

        ``keep`` [layers, nodes, width] multiplies what each layer gives: dropout.
        """
        p = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        ones = torch.ones_like(cut.incoming[:, :1])
        # An edge's kinds go through a linear layer and are summed: summing first is the same.
        edges = torch.cat([cut.incoming[:, :-1], ones], 1)
        degree = cut.incoming[:, -1:] + ones
        h = p["node.weight"].expand(len(cut.graph), -1)
        for i in range(self.layers):
            at = f"layer{i}."
            near = h.index_add(0, cut.target, h[cut.source])
            along = F.linear(edges, p[f"{at}edge.weight"]) + degree * p[f"{at}edge.bias"]
            wide = torch.cat([near, along], 1)
            wide = F.linear(wide, p[f"{at}wide.weight"], p[f"{at}wide.bias"])
            norm = (p[f"{at}norm.scale"], p[f"{at}norm.shift"])
            wide = F.relu(F.layer_norm(wide, wide.shape[1:], *norm))
            h = F.linear(wide, p[f"{at}narrow.weight"], p[f"{at}narrow.bias"])
            if i < self.layers - 1:
                h = F.relu(h)
            if keep is not None:
                h = h * keep[i]
        return torch.cat([means(h, cut), h[cut.centre]], 1)


def means(h: Tensor, cut: Cut) -> Tensor:
    """[graphs, d]: mean over each graph's nodes of h [nodes, d]."""
    total = h.new_zeros(len(cut.size), h.shape[1]).index_add(0, cut.graph, h)
    return total / cut.size[:, None]
