"""The checks of a task, each one short function of the task under its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from metabench.conformance.declaration_checks import check_problem_attributes
from metabench.conformance.derivative_checks import (
    build,
    check_batched,
    check_derivatives,
    check_moduli,
    check_second_order,
    check_split,
    splits,
    start,
)
from metabench.conformance.example_checks import (
    check_closed_forms,
    check_evidence,
    check_example_losses,
    check_outer_blocks,
    check_solvers_by_example,
)
from metabench.conformance.harness import NotTested, snapshot, tolerance, unchanged
from metabench.conformance.own_step_checks import check_own_step
from metabench.conformance.search_checks import check_regret, reported
from metabench.conformance.split_checks import (
    check_base_batch,
    check_episodes,
    check_outer_on_validation,
    check_selection,
    check_unit_embedding,
    content,
)
from metabench.contract.by_examples.per_example_weights import Gated
from metabench.contract.problem import count_numbers
from metabench.core.text import type_of
from metabench.hypergradients.search.gradient_free import counts

SMALL = 1000
"""The most numbers of a small lam."""
SEVERAL = 8
"""Training episodes of which one at least differs from seed to seed."""


def check_declarations(task: Any) -> None:
    """metric, goal, data and the task's name say what the harness needs to know."""
    assert isinstance(task.metric, str) and task.metric, "metric must name one of the metrics"
    assert task.goal in ("max", "min"), f"goal is {task.goal!r}; it can be 'max' or 'min'"
    assert isinstance(task.data, tuple), "data must be a tuple of data set names"


def check_problem(task: Any) -> None:
    """No attribute of the problem is a misspelling of one that the contract reads."""
    check_problem_attributes(build(task))


def check_init(task: Any) -> None:
    """lam and theta start as named floating-point tensors without a graph, the same each time."""
    problem = build(task)
    lam, theta, _ = start(problem)
    for what, params in (("lam", lam), ("theta", theta)):
        assert isinstance(params, dict), f"{what} is {type_of(params)}, not a dict"
        for name, value in params.items():
            assert value.is_floating_point(), f"{what}'s {name} is {value.dtype}, not a float"
            assert bool(torch.isfinite(value).all()), f"{what}'s {name} is not finite"
        assert not any(v.requires_grad for v in params.values()), f"{what} starts with a graph"
    held = snapshot((lam, theta))
    for value in lam.values():
        value.add_(1.0)
    assert unchanged(held, start(problem)[:2]), "init_outer gives away a tensor of its own"
    assert unchanged(held, start(build(task))[:2]), "built again from the same seeds, it differs"


def check_seeds(task: Any) -> None:
    """Where training episodes differ from each other, they differ from seed to seed too."""
    problem, other = build(task, 0), build(task, 1)
    n = problem.count("train")
    if n is not None and n < 2:
        raise NotTested("it has one training episode")
    first = snapshot(content(problem.episode("train", 0)))
    if unchanged(first, content(problem.episode("train", 1))):
        return
    # Of a short list of inner problems the first may be the same by chance.
    for i in range(SEVERAL):
        held = snapshot(content(problem.episode("train", i)))
        if not unchanged(held, content(other.episode("train", i))):
            return
    raise AssertionError("episodes are random and do not depend on the seeds")


def check_losses(task: Any) -> None:
    """Both losses are finite scalars, the same when asked again, and change nothing."""
    problem = build(task)
    lam, theta, episode = start(problem)
    held = snapshot((lam, theta, content(episode)))
    for name, loss, batch in (
        ("inner_loss", problem.inner_loss, episode.batch(0)),
        ("outer_loss", problem.outer_loss, episode.outer),
    ):
        value = loss(lam, theta, batch)
        assert value.shape == (), f"{name} has shape {tuple(value.shape)}, not ()"
        assert bool(torch.isfinite(value)), f"{name} at the start is {float(value)}"
        assert torch.equal(value, loss(lam, theta, batch)), f"{name} differs when asked again"
    assert unchanged(held, (lam, theta, content(episode))), "a loss changes what it is given"


def check_initialisation(task: Any) -> None:
    """A method may add names to lam: theta, losses and projection work as before."""
    problem = build(task)
    lam, theta, episode = start(problem)
    more = {**lam, "added by a method": torch.tensor(3.0, dtype=torch.float32)}
    wider = problem.init_inner(more, episode)
    assert list(wider) == list(theta), f"with more names in lam, theta becomes {list(wider)}"
    problem.inner_loss(more, theta, episode.batch(0))
    problem.outer_loss(more, theta, episode.outer)
    assert set(problem.project(more)) == set(more), "project drops names that a method added"


def check_hypers(task: Any) -> None:
    """``hypers`` fit lam, conditions name choices, a search space is bounded on every side."""
    problem = build(task)
    lam = problem.init_outer()
    for hyper in problem.hypers:
        assert hyper.name in lam, f"hyper {hyper.name!r} is no name of lam ({', '.join(lam)})"
        shape = tuple(lam[hyper.name].shape)
        assert shape == hyper.shape, f"hyper {hyper.name!r} says {hyper.shape}, lam has {shape}"
        assert not hyper.log or (hyper.low or 0) > 0, f"log scale of {hyper.name!r} needs low > 0"
        counts(hyper, problem.hypers, lam)  # refuses a condition on what is no choice
    if "search_space" in task.offers:
        assert problem.hypers, "it offers a search space and describes no part of lam (hypers)"
        for hyper in problem.hypers:
            bounded = hyper.low is not None and hyper.high is not None
            assert bounded or hyper.choices, f"hyper {hyper.name!r} has no bounds to search between"
    if "small_lam" in task.offers:
        n = count_numbers(lam)
        assert n <= SMALL, f"it offers a small lam; lam has {n} numbers"


def check_project(task: Any) -> None:
    """Projecting twice is projecting once, keeps names and shapes, and leaves the first lam."""
    problem = build(task)
    lam = problem.init_outer()
    assert unchanged(snapshot(lam), problem.project(lam)), "the first lam is outside its bounds"
    for far in (-1e3, 1e3):
        away = {k: v + far for k, v in lam.items()}
        held = snapshot(away)
        once = problem.project(away)
        assert unchanged(held, away), "project changes what it is given"
        assert {k: v.shape for k, v in once.items()} == {k: v.shape for k, v in lam.items()}
        assert unchanged(snapshot(once), problem.project(once)), (
            "projecting twice is not projecting once"
        )
        for hyper in problem.hypers:
            value = once[hyper.name]
            assert hyper.low is None or float(value.min()) >= hyper.low, f"{hyper.name} below low"
            assert hyper.high is None or float(value.max()) <= hyper.high, f"{hyper.name} over high"


def check_parts(task: Any) -> None:
    """A head, batch norms and a module that are offered carry the names and shapes of theta and
    lam."""
    problem = build(task)
    lam, theta, _ = start(problem)
    for what, names in (("head", problem.head), ("batch_norms", problem.batch_norms)):
        if what in task.offers:
            assert names, f"it offers {what!r} and names no part of theta for it"
            unknown = [k for k in names if k not in theta]
            assert not unknown, f"{what} names {unknown}, which theta does not have"
    if "module" in task.offers:
        assert problem.module is not None, "it offers a module and has none"
        known = {**lam, **theta}
        for name, value in problem.module.named_parameters():
            assert name in known, f"the module's {name} is neither in theta nor in lam"
            assert known[name].shape == value.shape, f"the module's {name} has shape {value.shape}"
    for word in ("episodes", "lam_is_initialisation"):
        contradicts = problem.carried and word in task.offers
        assert not contradicts, f"it offers {word!r} and carries one theta along"
    nothing_but = bool(problem.hypers) and all(h.choices for h in problem.hypers)
    assert nothing_but == ("choices" in task.offers), (
        f"it {'offers' if 'choices' in task.offers else 'does not offer'} 'choices', and "
        f"{'all' if nothing_but else 'not all'} parts of its lam are choices"
    )


def check_prediction(task: Any) -> None:
    """The inner loss is the loss of the model's prediction."""
    if "prediction" not in task.offers:
        raise NotTested("it offers no prediction")
    problem = build(task)
    lam, theta, episode = start(problem)
    batch = episode.batch(0)
    whole = problem.inner_loss(lam, theta, batch)
    made = problem.loss_of_prediction(lam, theta, problem.predict(lam, theta, batch), batch)
    gap = float((whole - made).abs() / (1 + whole.abs()))
    assert gap <= tolerance(theta), f"the loss of the prediction is {gap:.1e} from the inner loss"


def check_best_response(task: Any) -> None:
    """A task with one minimiser to learn has one inner problem."""
    if "best_response" not in task.offers:
        raise NotTested("it offers no best response to learn")
    problem = build(task)
    n, m = problem.count("train"), problem.episodes_per_step
    assert (n, m) == (1, 1), (
        f"it offers a best response to learn, with {n or 'endless'} training episodes, {m} a step"
    )


def check_full_batch(task: Any) -> None:
    """The training episodes of every outer step are the same, each with one inner batch."""
    if "full_batch" not in task.offers:
        raise NotTested("it does not say that all steps have the same inner problems")
    problem = build(task)
    n, m = problem.count("train"), problem.episodes_per_step
    assert n == m, (
        f"every step is to have the same episodes; there are {n or 'endless'}, {m} a step"
    )
    for i in range(m):
        now, later = (problem.episode("train", i + steps * m) for steps in (0, 1))
        held = snapshot((now.batch(0), now.outer))
        assert unchanged(held, (later.batch(1), later.outer)), (
            f"training episode {i} is another one at the second step, or its inner batch changes"
        )


def check_per_example(task: Any) -> None:
    """Both losses are means over examples, each with its own lam; so may theta's rows differ."""
    if "per_example_lam" not in task.offers:
        raise NotTested("it offers no lam for each example")
    problem = build(task)
    lam, theta, episode = start(problem)
    gen = torch.Generator().manual_seed(0)
    n, allowed = 4, tolerance(theta)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    lams = [problem.project({k: v + 0.1 * drawn(*v.shape).to(v) for k, v in lam.items()})
            for _ in range(n)]  # fmt: skip
    each = {k: torch.stack([one[k] for one in lams]) for k in lam}
    gated: dict[str, Any] = {
        k: Gated(v, torch.ones_like(v), 0.1 * drawn(n, len(v)).to(v)) for k, v in theta.items()
    }
    for name, loss, batch in (
        ("inner_loss", problem.inner_loss, episode.batch(0)),
        ("outer_loss", problem.outer_loss, episode.outer),
    ):
        batch = {k: v[:n] for k, v in batch.items()}
        one_by_one = [
            loss(lams[i], {k: v.of(i) for k, v in gated.items()},
                 {k: v[i : i + 1] for k, v in batch.items()})
            for i in range(n)
        ]  # fmt: skip
        expected = torch.stack(one_by_one).mean()
        gap = float((loss(each, gated, batch) - expected).abs() / (1 + expected.abs()))
        assert gap <= allowed, f"{name} with a lam an example is {gap:.1e} from one after another"


def check_metrics(task: Any) -> None:
    """Every evaluation gives the task's metric, what is declared, and only finite numbers."""
    problem = build(task)
    named = problem.evaluations if task.evaluations is None else task.evaluations
    assert set(named) == set(problem.evaluations), (
        f"it says that its evaluations are {list(named)}; they are {list(problem.evaluations)}"
    )
    for split in splits(problem)[1:]:
        lam, theta, episode = start(problem, split)
        held = snapshot((lam, theta, content(episode)))
        with torch.no_grad():
            metrics = problem.metrics(lam, theta, episode)
        assert unchanged(held, (lam, theta, content(episode))), "metrics changes what it is given"
        assert task.metric in metrics, f"metrics of {split!r} are {list(metrics)}: no {task.metric}"
        said = (*metrics, *reported(problem)) if task.metrics is None else task.metrics
        assert set(said) == {*metrics, *reported(problem)}, (
            f"it says that its metrics are {list(said)}; {split!r} gives {list(metrics)}, and a "
            f"search's report {reported(problem)}"
        )
        for name, value in metrics.items():
            assert math.isfinite(value), f"metric {name!r} on {split!r} is {value}"


def check_prepare(task: Any) -> None:
    """A prepared episode gives the same losses."""
    problem = build(task)
    lam, theta, episode = start(problem)
    choices = [None, problem.head] if "head" in task.offers else [None]
    for only in choices:
        ready = problem.prepare(lam, episode, only)
        inner = problem.prepare_inner(lam, episode, only).batch(0)
        for name, loss, one, other in (
            ("inner_loss", problem.inner_loss, episode.batch(0), ready.batch(0)),
            ("inner_loss", problem.inner_loss, episode.batch(0), inner),
            ("outer_loss", problem.outer_loss, episode.outer, ready.outer),
        ):
            gap = float((loss(lam, theta, one) - loss(lam, theta, other)).abs())
            assert gap <= tolerance(theta), f"{name} of a prepared episode is {gap:.1e} away"


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_declarations,
    check_problem,
    check_init,
    check_episodes,
    check_base_batch,
    check_unit_embedding,
    check_seeds,
    check_losses,
    check_derivatives,
    check_second_order,
    check_split,
    check_moduli,
    check_own_step,
    check_initialisation,
    check_hypers,
    check_project,
    check_parts,
    check_prediction,
    check_best_response,
    check_full_batch,
    check_per_example,
    check_example_losses,
    check_closed_forms,
    check_outer_blocks,
    check_solvers_by_example,
    check_evidence,
    check_metrics,
    check_regret,
    check_prepare,
    check_batched,
    check_outer_on_validation,
    check_selection,
)
