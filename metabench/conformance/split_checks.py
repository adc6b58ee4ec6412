"""The checks of a task's splits: which examples the outer level learns on, and which judge it."""

from __future__ import annotations

from typing import Any

import torch

from metabench.conformance.derivative_checks import build, splits
from metabench.conformance.harness import NotTested, snapshot, unchanged
from metabench.contract.problem import Batch, Episode, Problem

FEW = 3
"""Episodes of a split that are looked at."""
STEPS = 30
"""Inner batches that are looked at."""


def check_episodes(task: Any) -> None:
    """An episode is a function of seeds, split and index alone, in whatever order it is built."""
    problem = build(task)
    for split in splits(problem):
        n = problem.count(split)
        last = 3 if n is None else min(3, n - 1)
        assert last >= 0, f"split {split!r} has no episode"
        later = snapshot(content(problem.episode(split, last)))
        first = snapshot(content(problem.episode(split, 0)))
        assert unchanged(later, content(problem.episode(split, last))), (
            f"episode {last} of {split!r} is different when asked for again"
        )
        assert unchanged(first, content(build(task).episode(split, 0))), (
            f"episode 0 of {split!r} is different when the problem is built again"
        )
        assert problem.episode(split, last).index == last, "an episode must know its index"
    valid = problem.episode("valid", 0).outer
    # Where training is judged by that too, the problem is a formula, or one set of data by intent.
    differs = not unchanged(snapshot(valid), problem.episode("train", 0).outer)
    for split in problem.evaluations:
        same = differs and unchanged(snapshot(valid), problem.episode(split, 0).outer)
        assert not same, f"episode 0 of {split!r} is judged by the data of episode 0 of 'valid'"


def check_base_batch(task: Any) -> None:
    """A batch of all classes is a function of seeds, step and size, with labels in range."""
    if "base_classes" not in task.offers:
        raise NotTested("it offers no training examples of all classes at once")
    problem, n = build(task), 20
    batch = problem.base_batch(1, n)
    sizes = {k: len(v) for k, v in batch.items()}
    assert set(sizes.values()) == {n}, f"a base batch of {n} has {sizes} examples"
    y = batch["y"]
    assert y.dtype == torch.int64, f"its labels are {y.dtype}, not int64"
    assert int(y.min()) >= 0 and int(y.max()) < problem.base_classes, (
        f"its labels are {int(y.min())} to {int(y.max())}, with {problem.base_classes} base classes"
    )
    held = snapshot(batch)
    assert unchanged(held, build(task).base_batch(1, n)), "it differs when the task is built again"
    assert not unchanged(held, problem.base_batch(2, n)), "it is the same at another step"


def check_unit_embedding(task: Any) -> None:
    """Embeddings have length 1; those that are all zero have none."""
    if "unit_embedding" not in task.offers:
        raise NotTested("it does not say that embeddings have length 1")
    problem = build(task)
    episode = problem.episode("train", 0)
    for batch in (episode.batch(0), episode.outer):
        size = problem.embed(problem.init_outer(), batch).norm(dim=1)
        wrong = size[((size - 1).abs() > 1e-3) & (size != 0)]
        assert not len(wrong), f"an embedding has length {float(wrong[0]):.4g}, not 1"
        assert bool(size.any()), "all embeddings of a batch are zero"


def check_outer_on_validation(task: Any) -> None:
    """``outer_on_validation`` says whether training is judged by validation examples, as far as
    the outer batches of a few episodes show it. Where the split "valid" is the training part
    (nothing was cut off), no examples validate."""
    problem = build(task)
    learned, judged = (outer_batches(problem, split) for split in ("train", "valid"))
    share = found(learned, judged)
    if share is None:
        raise NotTested("the outer batches hold no examples")
    said = task.outer_on_validation
    if not said and "outer_gradient" not in task.offers:
        inner = [problem.episode("train", 0).batch(step) for step in range(STEPS)]
        trained = found(judged, inner) if judged[0].keys() <= inner[0].keys() else None
        assert trained is None or trained >= 0.5, (
            f"it offers no outer loss, and {trained:.0%} of the examples of 'valid' are trained on"
        )
        raise NotTested("it offers no outer loss: 'valid' is the training part")
    # Half: a row of few values can be in two parts by chance.
    assert said or share < 0.5, (
        f"{share:.0%} of the examples that judge training are among those of 'valid': "
        "set outer_on_validation = True"
    )
    assert not said or share >= 0.5, (
        f"outer_on_validation is True, but {share:.0%} of the examples that judge training are "
        "among those of 'valid'"
    )


def check_selection(task: Any) -> None:
    """Where a task says that it has the split "selection", no other split has its examples."""
    if why := task.lacks_selection:
        raise NotTested(f"it has no split 'selection': {why}")
    problem = build(task)
    lam = problem.init_outer()
    first = problem.episode("selection", 0)
    metrics = problem.metrics(lam, problem.init_inner(lam, first), first)
    assert task.metric in metrics, f"{task.metric!r} is not measured on 'selection'"
    own = outer_batches(problem, "selection")
    # What fine-tunes on every split is no example of any.
    shared = {k for k, v in problem.episode("valid", 0).outer.items() if equal(v, own[0].get(k))}
    own = [{k: v for k, v in batch.items() if k not in shared} for batch in own]
    others = {split: outer_batches(problem, split) for split in ("valid", *problem.evaluations)}
    inner = [problem.episode("train", 0).batch(step) for step in range(STEPS)]
    # Pre-training may see examples without their labels, those that validate among them.
    if first.outer.keys() <= inner[0].keys():
        others["train"] = inner
    for split, batches in others.items():
        share = found(own, batches)
        assert split == "train" or share is not None, "no example of 'selection' can be told"
        # A table may hold the same row twice.
        assert share is None or share < 0.02, (
            f"{share:.0%} of the examples of 'selection' are among those of {split!r}"
        )


def equal(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    """Whether two tensors are the same, the other one perhaps not there."""
    return b is not None and a.shape == b.shape and torch.equal(a, b)


def outer_batches(problem: Problem, split: str) -> list[Batch]:
    """Those of the first episodes of a split."""
    n = problem.count(split)
    return [problem.episode(split, i).outer for i in range(FEW if n is None else min(FEW, n))]


def found(some: list[Batch], among: list[Batch]) -> float | None:
    """The part of the examples of ``some`` that ``among`` has too: rows of the tensor with the
    most different rows that both have. None where there is no tensor of two numbers."""
    a, b = some[0], among[0]
    names = [
        k
        for k in a
        if k in b and a[k].dim() and a[k].numel() > 1 and a[k].shape[1:] == b[k].shape[1:]
    ]
    if not names:
        return None
    # Masks and labels are alike in many examples: what tells examples apart is asked for.
    name = max(names, key=lambda k: (len({*rows(a[k])}), a[k].is_floating_point(), a[k].numel()))
    known = set().union(*(examples(batch, name) for batch in among))
    asked = [row for batch in some for row in examples(batch, name)]
    return sum(row in known for row in asked) / len(asked)


def examples(batch: Batch, name: str) -> list[bytes]:
    """The rows of a tensor, each with the batch's single numbers: which text its questions are
    about, for example."""
    of = b"".join(rows(x[None])[0] for _, x in sorted(batch.items()) if not x.dim())
    return [row + of for row in rows(batch[name])]


def rows(x: torch.Tensor) -> list[bytes]:
    """The bytes of each row of a tensor [n, ...]."""
    flat = x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8)
    return [row.tobytes() for row in flat.numpy()]


def content(episode: Episode) -> Any:
    """Two inner batches and the outer one."""
    return [episode.batch(0), episode.batch(1), episode.outer]
