"""Area under the ROC curve: how well scores rank positives above negatives."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(scores: Tensor, positive: Tensor) -> float:
    """The chance that a positive scores above a negative, ties counting half; 0.5 for scores that
    say nothing.

    ``scores`` [n], ``positive`` bool [n]. Raises ValueError where all are of one kind.
    """
    from scipy.stats import rankdata  # a second, which whoever only asks for settings is spared

    n = int(positive.sum())
    others = len(positive) - n
    if n == 0 or others == 0:
        raise ValueError(f"no ROC curve: {n} positives and {others} negatives")
    ranks = torch.from_numpy(rankdata(scores.double().cpu().numpy()))
    above = float(ranks[positive.cpu()].sum()) - n * (n + 1) / 2
    return above / (n * others)


def macro_auroc(logits: Tensor, labels: Tensor) -> float:
    """Mean over classes of :func:`auroc`, each class's probability against all others.

    ``logits`` [n, classes], ``labels`` int64 [n]. Classes that no label, or every label, is of have
    no curve and are left out. Raises ValueError where that leaves none.
    """
    every = torch.arange(logits.shape[1], device=labels.device)
    one_hot = (labels[:, None] == every).double()
    return multilabel_auroc(logits.double().softmax(1), one_hot)


def multilabel_auroc(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of :func:`auroc`, each class by itself.

    ``scores`` [n, classes], ``labels`` [n, classes]: 1, 0 or, where it is not known, NaN. Classes
    without a positive or without a negative are left out. Raises ValueError where that leaves none.
    """
    found = []
    for score, label in zip(scores.unbind(1), labels.unbind(1), strict=True):
        known = ~label.isnan()
        positive = label[known] > 0
        if 0 < int(positive.sum()) < len(positive):
            found.append(auroc(score[known], positive))
    if not found:
        raise ValueError("no ROC curve: all labels are of one class")
    return sum(found) / len(found)
