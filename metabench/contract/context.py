"""What the harness hands to a method: the problem, the inner solver, counters, episodes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import add
from typing import Any, Literal

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.declared import Evidence
from metabench.contract.inner_gradient import inner_value_and_gradient
from metabench.contract.parallel.at_once import Graphs, Stack, beside
from metabench.contract.parallel.process_group import ProcessGroup
from metabench.contract.parallel.threads import joined, spread
from metabench.contract.problem import Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.solver import Rate, Solver
from metabench.core.cell import Budget
from metabench.core.costs import Counts, Meter
from metabench.core.registry import solvers

Each = Callable[[Callable[[Episode], Any]], Any]
"""From a function of an episode to its results for several, stacked."""


@dataclass
class Context:
    """The problem, the inner solver, counters, and how episodes are worked through.

    ``step`` is the number of outer steps done; ``horizon`` the number planned (None where the
    budget is set in something else). ``engine`` says how episodes are worked through: "loop" (one
    after another, over ``workers`` Python threads) or "vmap" (all at once, ``chunk`` at a time).
    """

    problem: Problem
    solver: Solver
    seeds: Seeds
    offers: frozenset[str]
    meter: Meter = field(default_factory=Meter)
    budget: Budget = field(default_factory=Budget)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0
    engine: Literal["loop", "vmap"] = "loop"
    workers: int = 1
    chunk: int | None = None
    adapted_at_once: int | None = None
    """How many episodes an evaluation adapts by one vmap; None: as many as a step has under "vmap",
    else one."""
    group: ProcessGroup = field(default_factory=ProcessGroup)
    """The processes that share the episodes of a step with this one."""
    graphs: Graphs | None = None
    """Where steps are captured (under "vmap"), for this problem and solver alone; None: nowhere."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Choices made along the way that a reader of the record should know (memory mode ...); kept in
    checkpoints. Plain JSON values."""
    _ahead: tuple[int, list[Episode] | Exception] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def horizon(self) -> int | None:
        """Planned number of outer steps."""
        return self.budget.outer_steps

    @property
    def progress(self) -> float | None:
        """The part of the budget that is spent, 0 to 1; None where nothing but time limits it."""
        used = {**self.meter.counts.as_dict(), "outer_steps": self.step}
        parts = self.budget.spent(used, but=["seconds"])
        return min(1.0, max(parts)) if parts else None

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Inside, what this thread does, and what it hands to others by :meth:`over_episodes`,
        does not count as cost: evaluation."""
        with self.meter.muted():
            yield

    def training_episodes(self, step: int | None = None) -> list[Episode]:
        """The training episodes of this outer step, or of ``step``."""
        m, step = self.problem.episodes_per_step, self.step if step is None else step
        if self._ahead is not None and self._ahead[0] == step:
            (_, drawn), self._ahead = self._ahead, None
            if isinstance(drawn, Exception):
                raise drawn
            return drawn
        return self.problem.episodes("train", range(step * m, step * m + m))

    def draw_ahead(self) -> None:
        """Draw the training episodes of the next step, while a device still works at this one's.

        They are the same ones, for an episode is a function of its address alone. An error is
        kept for the step that asks for them.
        """
        step = self.step + 1
        if self.horizon is None or step < self.horizon:
            try:
                self._ahead = step, self.training_episodes(step)
            except Exception as error:
                self._ahead = step, error

    def inner_grad(
        self,
        lam: Params,
        theta: Params,
        batch: Batch,
        *,
        create_graph: bool = True,
        only: Sequence[str] | None = None,
        hvps: int = 0,
        mixed_products: int = 0,
    ) -> Params:
        """Gradient of G in theta (in the names of ``only``); counted as one inner gradient.

        A caller that differentiates it again says how many products with its derivative in theta
        (``hvps``) and in lam (``mixed_products``) that takes; they are counted along. The part of a
        diagonal penalty (:meth:`Problem.diagonal_penalty`) is taken by hand.
        """
        self.meter.add(inner_gradients=1, hvps=hvps, mixed_products=mixed_products)
        return inner_value_and_gradient(
            self.problem, lam, theta, batch, create_graph=create_graph, only=only
        )[1]

    def own_step(self, lam: Params, theta: Params, batch: Batch) -> Params:
        """theta after an inner step of the problem's own (:meth:`Problem.own_step`), and no graph;
        counted as what it says that it cost."""
        lam, theta, batch = autodiff.detach(lam), autodiff.detach(theta), autodiff.detach(batch)
        moved, costs = self.problem.own_step(lam, theta, batch)
        self.meter.add(**costs)
        return moved

    def inner_value_and_grad(
        self, lam: Params, theta: Params, batch: Batch
    ) -> tuple[Tensor, Params]:
        """G, and its gradient in theta as :meth:`inner_grad` counts it; both without a graph."""
        self.meter.add(inner_gradients=1)
        value, g = inner_value_and_gradient(self.problem, lam, theta, batch, create_graph=False)
        penalty = self.problem.diagonal_penalty(lam)
        if penalty is not None:
            parts = [(c * theta[k].square()).sum() for k, c in penalty.items()]
            value = value + 0.5 * torch.stack(parts).sum().detach()
        return value, g

    def examples_grad(
        self,
        lam: Params,
        theta: Params,
        examples: Tensor,
        *,
        before: int,
        hvps: int = 0,
        mixed_products: int = 0,
    ) -> Params:
        """Gradient in theta of the sum of the losses of ``examples``, int64 [n], over the number of
        all; it can be differentiated again, and has no part of a diagonal penalty.

        Counted in whole inner batches (:attr:`Problem.examples_per_batch`), as those that become
        full with these after ``before`` others; ``hvps`` and ``mixed_products`` of each are counted
        along.
        """
        full = full_batches(self.problem, before, len(examples))
        self.meter.add(inner_gradients=full, hvps=full * hvps, mixed_products=full * mixed_products)
        batch, n = self.problem.take(examples), self.problem.example_count
        return autodiff.grad(
            lambda t: self.problem.example_losses(lam, t, batch).sum() / n,
            theta,
            create_graph=True,
        )[1]

    def inner_loss(self, lam: Params, theta: Params, batch: Batch, *, hvps: int = 0) -> Tensor:
        """G, for a caller that differentiates it once: counted as one inner gradient, and as
        ``hvps`` Hessian products where that derivative is differentiated again."""
        self.meter.add(inner_gradients=1, hvps=hvps)
        return self.problem.inner_loss(lam, theta, batch)

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch, *, hvps: int = 0
    ) -> Tensor:
        """G of a prediction, as :meth:`inner_loss`; ``hvps`` products with the predictions'
        Jacobian in theta were taken to make it."""
        self.meter.add(inner_gradients=1, hvps=hvps)
        return self.problem.loss_of_prediction(lam, theta, prediction, batch)

    def embed(self, lam: Params, batch: Batch) -> Tensor:
        """Embeddings of a batch [n, f], for a caller that differentiates them once: counted as one
        inner gradient, for it goes through the same network."""
        self.meter.add(inner_gradients=1)
        return self.problem.embed(lam, batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """F, for a caller that differentiates it once: counted as one outer gradient."""
        self.meter.add(outer_gradients=1)
        return self.problem.outer_loss(lam, theta, batch)

    def outer_value(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """F without a graph; counted as one function evaluation."""
        self.meter.add(function_evaluations=1)
        return self.problem.outer_loss(lam, theta, batch).detach()

    def rewards(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """What each of n actions is worth [n]; counted: its trainings, and what grades them."""
        n, problem = len(next(iter(actions.values()))), self.problem
        self.meter.add(
            trainings=n * problem.trainings_per_reward,
            function_evaluations=n * problem.evaluations_per_reward(episode),
        )
        return problem.rewards(lam, episode, actions)

    def log_likelihood(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """log p of each action [n], for a caller that differentiates it once: counted as one outer
        gradient."""
        self.meter.add(outer_gradients=1)
        return self.problem.log_likelihood(lam, episode, actions)

    def inner_rule(self, lam: Params, lr: Rate) -> tuple[Solver, Rate]:
        """The inner solver and step size at lam: the cell's and ``lr``, where lam sets neither
        (:meth:`Problem.inner_rule`)."""
        rule = self.problem.inner_rule(lam)
        if rule is None:
            return self.solver, lr
        own: Any = self.solver if rule.solver is None else solvers.get(rule.solver)()
        solver: Solver = replace(own, **rule.constants)
        return solver, lr if rule.rate is None else rule.rate

    def evidence(self, lam: Params, *, products: int) -> Evidence:
        """Likelihood and prior, for a caller that differentiates the evidence of one batch once:
        counted as one outer gradient, and ``products`` with the predictions' Jacobian as Hessian
        products."""
        self.meter.add(outer_gradients=1, hvps=products)
        return self.problem.evidence(lam)

    def noise(self, episode: Episode, step: int, like: Params) -> Params | None:
        """Standard normal draws for inner step ``step`` of an episode, in the shapes of ``like``
        (the whole theta, or several stacked); None where the inner solver takes none.

        A pure function of the method's seed, the episode's index and the step: resumed and
        recomputed steps see the same noise.
        """
        return self._drawn(episode, step, like) if self.solver.noisy else None

    def _drawn(self, episode: Episode, step: int, like: Params) -> Params:
        if episode.noise is not None:
            return episode.noise[step]
        gen = generator(self.seeds.method, "noise", episode.index, step)
        return {
            k: torch.randn(v.shape, generator=gen, dtype=v.dtype).to(v.device)
            for k, v in like.items()
        }

    def over_episodes(
        self,
        f: Callable[[Episode], Any],
        episodes: Sequence[Episode],
        *,
        steps: int = 1,
        threads: bool = True,
    ) -> list[Any]:
        """f of every episode, in order; f returns nested dicts or named tuples of tensors, without
        a graph (between ranks it is lost).

        Under the "vmap" engine f runs once on all episodes, with torch.func derivatives;
        ``steps`` says how many inner batches of each it may ask for. Otherwise it runs once an
        episode, on Python threads where there are several workers: results do not depend on how
        many, nor on how many ranks share the episodes.
        """
        return self.share(f, episodes, lambda f, some: self._worked(f, some, steps, threads))

    def share(
        self,
        f: Callable[[Any], Any],
        items: Sequence[Any],
        work: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]] | None = None,
    ) -> list[Any]:
        """f of every item, in order, the ranks taking turns; costs and notes are those of one
        process. ``work`` goes through the items of a rank (None: one after another)."""
        work = work or (lambda f, some: [f(item) for item in some])
        if not self.group.divides(items):
            return work(f, items)
        counts, notes = self.meter.counts.as_dict(), dict(self.notes)

        def also() -> tuple[dict[str, int], dict[str, Any]]:
            new = {k: v for k, v in self.notes.items() if k not in notes or notes[k] != v}
            return self.meter.counts.as_dict(), new

        found, more = self.group.share(work, f, items, also)
        self.meter.grow(counts, [after for after, _ in more])
        for _, new in more:
            self.notes.update(new)
        return found

    def _worked(
        self, f: Callable[[Episode], Any], episodes: Sequence[Episode], steps: int, threads: bool
    ) -> list[Any]:
        if self.engine == "vmap" and len(episodes) > 1:
            return self._batched(f, episodes, steps)
        return self._spread(f, episodes) if threads else [f(episode) for episode in episodes]

    def in_chunks(
        self,
        f: Callable[[Sequence[Episode]], Any],
        episodes: Sequence[Episode],
        size: int,
        join: Callable[[Any, Any], Any] = add,
    ) -> Any:
        """What f gives for ``size`` episodes at a time, joined in order as it comes (lists: end to
        end). Threads and ranks take chunks: results depend on neither."""
        chunks = [episodes[i : i + size] for i in range(0, len(episodes), size)]
        if self.group.divides(chunks):
            return joined(join, iter(self.share(f, chunks, self._spread)))
        return joined(join, spread(f, chunks, self.workers, self.meter))

    def _spread(self, f: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(spread(f, items, self.workers, self.meter))

    def at_once(
        self, f: Callable[[Episode], Any], episodes: Sequence[Episode], *, steps: int
    ) -> list[Any]:
        """f of all these episodes by one vmap, whatever the engine; ``steps`` as in
        :meth:`over_episodes`."""
        return self._stacked(episodes, steps).each(f, self.meter)

    def _batched(
        self, f: Callable[[Episode], Any], episodes: Sequence[Episode], steps: int
    ) -> list[Any]:
        stack = self._stacked(episodes, steps)
        cuts = stack.cut(self.chunk or len(episodes))
        return [one for some in cuts for one in some.each(f, self.meter)]

    def replays(self, method: Any) -> bool:
        """Whether steps of a method are replayed from a captured graph."""
        can = method.capturable and self.problem.capturable and not self.solver.by_examples
        return self.graphs is not None and self.engine == "vmap" and can

    def replayed(
        self,
        name: Hashable,
        f: Callable[[Any, Each], Any],
        given: Any,
        episodes: Sequence[Episode],
        *,
        steps: int,
    ) -> Any:
        """f(``given``, each) for these episodes, captured the first time and replayed then.

        It counts and notes the same each time. What comes back is overwritten by the next call
        under ``name``, which stands for f and for all that it closes over.
        """
        assert self.graphs is not None
        stack = self._stacked(episodes, steps)
        meter, notes, fresh = self.meter, dict(self.notes), Meter()

        def whole(inputs: Any) -> Any:
            tensors, parts = inputs
            fresh.counts = Counts()  # of the last of several runs that a capture takes
            some = stack.with_parts(parts)
            return autodiff.detach_tree(f(tensors, lambda one: some.mapped(one, fresh)))

        def also() -> tuple[dict[str, int], dict[str, Any]]:
            new = {k: v for k, v in self.notes.items() if k not in notes or notes[k] != v}
            return fresh.counts.as_dict(), new

        self.meter = fresh
        try:
            out, (counts, new) = self.graphs(name, whole, (given, stack.parts), also)
        finally:
            self.meter = meter
        self.meter.add(**counts)
        self.notes.update(new)
        return out

    def _stacked(self, episodes: Sequence[Episode], steps: int) -> Stack:
        return Stack.of(episodes, steps, self._noise_ahead(episodes, steps))

    def _noise_ahead(self, episodes: Sequence[Episode], steps: int) -> list[Params]:
        """The noise of every inner step, stacked over episodes: vmap cannot draw by address."""
        if not self.solver.noisy:
            return []
        with torch.no_grad():
            lam = self.problem.init_outer()
            like = [self.problem.init_inner(lam, e) for e in episodes]
        each = list(zip(episodes, like, strict=True))
        return [beside([self._drawn(e, t, x) for e, x in each]) for t in range(steps)]


def full_batches(problem: Problem, before: int, more: int) -> int:
    """How many inner batches of examples become full where ``more`` come to ``before`` others."""
    size = problem.examples_per_batch
    return (before + more) // size - before // size
