"""A quadratic whose initial value is learned, with another minimiser in each episode."""

import torch

from metabench.contract.problem import GRADIENTS, Episode, Problem
from metabench.contract.seeds import generator

OFFERS = GRADIENTS | {"lam_is_initialisation", "episodes"}


class InitialValue(Problem):
    """G = 1/2 (w - c)^T H (w - c), F = 1/2 |w - t|^2, w starts at lam; float64."""

    def __init__(self, dim=3, episodes=1):
        gen = generator(0, "initial")
        root = torch.randn(dim, dim, dtype=torch.float64, generator=gen)
        self.hessian = root @ root.T / dim + torch.eye(dim, dtype=torch.float64) / 4
        self.start = torch.randn(dim, dtype=torch.float64, generator=gen)
        self.episodes_per_step = episodes

    def init_outer(self):
        return {"w": self.start.clone()}

    def init_inner(self, lam, episode):
        return {"w": lam["w"]}

    def inner_loss(self, lam, theta, batch):
        gap = theta["w"] - batch["c"]
        return 0.5 * gap @ self.hessian @ gap

    def outer_loss(self, lam, theta, batch):
        return 0.5 * (theta["w"] - batch["t"]).square().sum()

    def episode(self, split, index):
        gen = generator(1, split, index)
        c, t = torch.randn(2, len(self.start), dtype=torch.float64, generator=gen)
        return Episode({"c": c}, {"t": t}, index)
