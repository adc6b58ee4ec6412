"""A finite sum of quadratics with lam in every term: what SABA is compared on."""

from __future__ import annotations

import torch
from oracles import F64
from torch import Tensor

from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import generator


class FiniteSum(Problem):
    """l_i(lam, w) = 1/2 w' A_i w - w' (B_i lam + b_i) for w [m], lam [n]; A_i = diag(s d_i), whose
    mean is diag(s) with s from ``least`` to 1; F = 1/2 |w - c|^2 + 1/20 |lam|^2.

    ``batch``: examples of a training episode's inner batch, drawn uniformly among the blocks; None:
    all of them. ``penalty``: c = e^lam_0 on all of w is a part of G that is no example's.
    ``judges``: F is the mean of so many terms, each with a c of its own, one drawn for each episode
    of training; 0: one term.
    """

    carried = True

    def __init__(
        self,
        seed: int = 0,
        *,
        examples: int = 256,
        m: int = 20,
        n: int = 5,
        least: float = 0.1,
        batch: int | None = None,
        penalty: bool = False,
        judges: int = 0,
    ) -> None:
        gen = generator("finite sum", seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=gen, dtype=F64)

        self.example_count, self.batch, self.seed, self.penalty = examples, batch, seed, penalty
        d = 2 * torch.rand(examples, m, generator=gen, dtype=F64)
        s = torch.linspace(least, 1.0, m, dtype=F64)
        common = s[:, None] * normal(m, n) / m**0.5
        self.data = {
            "A": s * d / d.mean(0),
            "B": common + 0.5 * normal(examples, m, n) / m**0.5,
            "b": s * normal(m) + normal(examples, m),
        }
        self.c, self.w0, self.lam0 = normal(m), normal(m), normal(n)
        self.outer_blocks, apart = judges, normal(judges, m)
        self.each_c = self.c + apart - (apart.mean(0) if judges else 0.0)

    @property
    def examples_per_batch(self) -> int:
        return self.batch or self.example_count

    def init_outer(self) -> Params:
        return {"lam": self.lam0.clone()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        return {"w": self.w0.clone()}

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        return {k: v[indices] for k, v in self.data.items()}

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        w = theta["w"]
        curved = 0.5 * (batch["A"] * w.square()).sum(1)
        return curved - (batch["B"] @ lam["lam"] + batch["b"]) @ w

    def diagonal_penalty(self, lam: Params) -> Params | None:
        return {"w": lam["lam"][0].exp()} if self.penalty else None

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        return self.example_losses(lam, theta, batch).mean()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        c = self.diagonal_penalty(lam)
        more = 0.0 if c is None else 0.5 * (c["w"] * theta["w"].square()).sum()
        return self.unpenalised_loss(lam, theta, batch) + more

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        gap = (theta["w"] - batch["c"]).square().sum()
        return 0.5 * gap + 0.05 * lam["lam"].square().sum()

    def episode(self, split: str, index: int) -> Episode:
        outer, size = {"c": self.c}, self.batch
        if self.outer_blocks and split == "train":
            gen = generator("finite sum", self.seed, "judge", index)
            outer = self.outer_block(int(torch.randint(self.outer_blocks, (), generator=gen)))
        if size is None:
            return Episode(self.take(torch.arange(self.example_count)), outer, index)

        def drawn(step: int) -> Batch:
            gen = generator("finite sum", self.seed, "batch", index, step)
            b = int(torch.randint(self.example_count // size, (), generator=gen))
            return self.take(torch.arange(b * size, (b + 1) * size))

        return Episode(drawn, outer, index)

    def outer_block(self, b: int) -> Batch:
        return {"c": self.each_c[b]}

    def exact(self, lam: Params) -> Tensor:
        """The hypergradient [n] at the exact minimiser, without a penalty."""
        a, b = self.data["A"].mean(0), self.data["B"].mean(0)
        w = (b @ lam["lam"] + self.data["b"].mean(0)) / a
        return (b / a[:, None]).T @ (w - self.c) + 0.1 * lam["lam"]
