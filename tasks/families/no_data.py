"""What toy problems share: losses without data, so that every episode is the same."""

from __future__ import annotations

import torch

from metabench.contract.problem import Episode, Problem


class NoData(Problem):
    """A subclass sets ``device``."""

    device: torch.device

    def episode(self, split: str, index: int) -> Episode:
        """The same one always: its batches hold nothing."""
        none = {"none": torch.zeros(1, dtype=torch.float64, device=self.device)}
        return Episode(none, none, index)

    def count(self, split: str) -> int | None:
        """One."""
        return 1
