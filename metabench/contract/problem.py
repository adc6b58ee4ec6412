"""The contract between a task and a method: what a bilevel problem is.

    min over lam of  E_e [ F_e(lam, theta_e) ],   theta_e (nearly) a minimiser of G_e(lam, .)

Both variables are flat dicts of named tensors. Every function is pure: parameters and a batch in,
a value out; whatever is random is a tensor of the batch. So autograd, forward mode and vmap over
episodes all apply to the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metabench.contract.by_examples.losses import Examples
from metabench.contract.by_examples.spectral import Spectrum
from metabench.contract.declared import Evidence, InnerRule, Moduli, OwnStep

Params = dict[str, Tensor]
"""Named tensors: lam (outer variable) or theta (inner variable)."""

Batch = dict[str, Tensor]
"""Named tensors of data, and of noise where a loss wants some."""


GRADIENTS = frozenset({"outer_gradient", "second_order"})
"""What every hypergradient method needs."""


@dataclass(frozen=True)
class Episode:
    """One inner problem: what its solver trains on and what judges the outcome.

    ``inner`` is one batch for every inner step, or a function of the step that gives the same
    batch whenever it is asked for the same step (recomputation replays it). ``outer`` is the
    batch of the outer loss (validation or query set).
    """

    inner: Batch | Callable[[int], Batch]
    outer: Batch
    index: int = 0
    noise: Sequence[Params] | None = None
    """A noisy solver's draws by inner step, where several episodes at once need them ahead; None:
    they are drawn when asked for (:meth:`metabench.contract.context.Context.noise`)."""

    def batch(self, step: int) -> Batch:
        """The inner batch of inner step ``step``, counted from 0."""
        return self.inner(step) if callable(self.inner) else self.inner


@dataclass(frozen=True)
class Hyper:
    """One named part of lam in words: for plots, search and projections.

    ``low`` and ``high`` bound every entry (None: unbounded); ``log`` says to search on a log
    scale; ``choices`` replaces the bounds where the values are categories (lam then holds the
    index of the choice). ``only_if`` (name of a part with choices, choices): the part counts only
    where that other part has one of these; a search leaves it at its first value elsewhere.
    """

    name: str
    shape: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    meaning: str = ""
    only_if: tuple[str, tuple[Any, ...]] | None = None


class Problem(ABC):
    """A task made ready: data in memory, seeds fixed, on one device.

    Subclasses give the first five functions and override the rest where the defaults are wrong.

    Under the capability ``per_example_lam`` every tensor of a batch has the examples first, both
    losses are means over them, and a lam whose tensors have the n examples of the batch in front,
    [n, *shape], gives each its own. theta may then hold gated tensors
    (:class:`metabench.contract.by_examples.per_example_weights.Gated`): its tensors go into linear
    and convolution operations only.
    """

    carried: bool = False
    """False: every episode starts from :meth:`init_inner`. True: one inner problem, whose theta is
    carried from outer step to outer step."""

    episodes_per_step: int = 1
    """Episodes that one outer step averages over (the meta-batch)."""

    batched_on_cpu: bool = False
    """Whether a CPU, too, is faster with the episodes of a step worked through at once, by vmap."""

    adapted_at_once: int | None = None
    """How many evaluation episodes a CPU adapts by one vmap: several where that is faster, and no
    more than there is memory for. None: as many as a step has with ``batched_on_cpu``, else one."""

    descends_at_once: int = 0
    """How many episodes :meth:`descended` is to take at once; 0: there is no such function."""

    capturable: bool = False
    """Whether its functions do the same operations whatever lam, theta and a batch hold, and read
    no number of them on the host: a GPU can then replay an outer step from a captured graph."""

    evaluations: tuple[str, ...] = ("test",)
    """Names of the final evaluations; each is a split that :meth:`episode` knows."""

    starts_at_lam: bool = False
    """Whether theta starts where lam says and the task does not offer ``lam_is_initialisation``,
    as lam is in the inner loss too: the first step's Hessian product then counts."""

    head: tuple[str, ...] = ()
    """Names in theta of the last layer's parameters (capability ``head``)."""

    batch_norms: tuple[str, ...] = ()
    """Names in theta of the scales and shifts of batch norms (capability ``batch_norms``)."""

    module: nn.Module | None = None
    """The network (capability ``module``); its parameters are named as in theta (or in lam and
    theta together)."""

    hypers: tuple[Hyper, ...] = ()
    """lam in words; names are keys of lam. Leave empty where lam is a network's weights."""

    @abstractmethod
    def init_outer(self) -> Params:
        """The first lam. Same seeds, same values."""

    @abstractmethod
    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """theta_0(lam) for an episode: differentiable in lam where lam enters it (MAML)."""

    @abstractmethod
    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """G(lam, theta) on an inner batch: a scalar tensor."""

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params | None:
        """What inner steps follow in place of the gradient of G, in theta's names; None: that
        gradient.

        Optional (capability ``field``), for games and other problems whose steps descend no loss;
        differentiable in lam and theta. Its Jacobian need not be symmetric. ``inner_loss`` then
        measures how far theta is from an equilibrium, and no method trains with it.
        """
        return None

    def predict(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """What the model says of an inner batch, before the loss (capability ``prediction``).

        inner_loss(lam, theta, batch) is then :meth:`loss_of_prediction` of it: for methods that
        linearise the model and not the loss.
        """
        raise NotImplementedError

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """G of what :meth:`predict` gives: a scalar tensor.

        theta is for terms that are no function of the prediction, such as penalties.
        """
        raise NotImplementedError

    @abstractmethod
    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """F(lam, theta) on an outer batch: a scalar tensor."""

    @abstractmethod
    def episode(self, split: str, index: int) -> Episode:
        """Episode ``index`` (from 0) of a split: "train", "valid", one of ``evaluations``, or
        "selection" where the task has it (:attr:`metabench.contract.task.Task.lacks_selection`).

        A pure function of the seeds, the split and the index. Outer step i uses the training
        episodes i * episodes_per_step and the following.
        """

    def episodes(self, split: str, indices: Sequence[int]) -> list[Episode]:
        """:meth:`episode` of each index; where many at once are cheaper, a task overrides it."""
        return [self.episode(split, i) for i in indices]

    def inner_rule(self, lam: Params) -> InnerRule | None:
        """Step size and solver of the inner steps, where lam sets them; None: it does not.

        Optional: every training by :func:`metabench.contract.method.inner_loop` then follows it. A
        task whose lam does so offers no gradients, unless its inner loss has all of lam."""
        return None

    def own_step(self, lam: Params, theta: Params, batch: Batch) -> OwnStep:
        """One inner step that follows no gradient (capability ``own_step``), without a graph.

        For learners with a rule of their own, such as closed-form inference: every training by
        :func:`metabench.contract.method.inner_loop` then takes it, and no solver. All that the
        learner knows is in theta, and all that is random comes from the batch. ``inner_loss`` then
        measures how well theta does, and no method trains with it.
        """
        raise NotImplementedError

    def prepare(self, lam: Params, episode: Episode, only: Sequence[str] | None = None) -> Episode:
        """The episode with all that its inner steps would compute again and again done once.

        ``only`` names the parts of theta that inner steps will move (None: all). What is done may
        depend on lam, and is then differentiable in it: features of a body that only the outer
        level learns. Losses must give the same values on the episode that comes back.
        """
        return episode

    def prepare_inner(
        self, lam: Params, episode: Episode, only: Sequence[str] | None = None
    ) -> Episode:
        """:meth:`prepare` for an adaptation, which has no use for the outer batch: that may come
        back as it was."""
        return self.prepare(lam, episode, only)

    def embed(self, lam: Params, batch: Batch) -> Tensor:
        """What the linear head theta sees of a batch [n, f] (capability ``embedding``).

        theta is then a weight [classes, f] and a bias [classes], named in this order by
        :meth:`init_inner`, and ``batch["y"]`` int64 [n] are classes. The inner batch of every
        episode has examples of all its classes. Under the capability ``unit_embedding`` each has
        length 1.
        """
        raise NotImplementedError

    base_classes: int = 0
    """How many classes all training episodes draw from (capability ``base_classes``)."""

    def base_batch(self, step: int, size: int) -> Batch:
        """``size`` training examples of any classes (capability ``base_classes``), for
        :meth:`embed`; ``y`` int64 [size] in [0, ``base_classes``). A pure function of the seeds,
        the step and the size."""
        raise NotImplementedError

    def diagonal_penalty(self, lam: Params) -> Params | None:
        """c(lam), where G = :meth:`unpenalised_loss` + 1/2 sum c theta^2; None: not split so.

        For names of theta that have a penalty, each c of a shape that broadcasts to theta's.
        Optional: implicit methods then take this part of every Hessian product by hand, exactly.
        """
        return None

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """G without the term of :meth:`diagonal_penalty`; used only where that gives one
        (:func:`differentiated_loss`)."""
        return self.inner_loss(lam, theta, batch)

    def inner_gradient(
        self, lam: Params, theta: Params, batch: Batch
    ) -> tuple[Tensor, Params] | None:
        """The value of :func:`differentiated_loss` [] and its gradient in theta, derived by hand;
        None: it is left to differentiation. Optional; asked for where nothing differentiates it
        again, and then what differentiation gives. Must work under vmap where episodes do."""
        return None

    def inner_hessian(
        self, lam: Params, theta: Params, batch: Batch
    ) -> Callable[[Params], Params] | None:
        """v -> H v for the Hessian H of :func:`differentiated_loss` in theta, in closed form; None:
        it is left to differentiation. Optional; must work under vmap where episodes do."""
        return None

    def descended(
        self, lam: Params, inner: Sequence[Batch], outer: Batch, rate: float, second_order: bool
    ) -> tuple[Tensor, Params]:
        """Of several episodes, F [E] after a step theta - rate * gradient on each inner batch, from
        ``init_inner(lam)``, and the sum of its gradients in lam, derived by hand. All tensors of
        the batches have a dimension of episodes in front.
        Optional: must be what differentiation gives, to second order or to first."""
        raise NotImplementedError

    def moduli(self, lam: Params) -> Moduli | None:
        """Strong convexity and smoothness of G in theta (capability ``strongly_convex``), the same
        for every episode; None: not known. Optional: solves to an accuracy then say how far theta
        is from the minimiser."""
        return None

    example_count: int = 0
    """How many examples the inner data has (capability ``example_losses``)."""

    @property
    def examples_per_batch(self) -> int:
        """How many of them an inner batch of a training episode has (capability
        ``example_losses``); by default all."""
        return self.example_count

    def take(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The inner batch of these examples, int64 [n] from 0 (capability ``example_losses``).

        Numbers that are random in a batch come from ``generator``; None: always the same ones.
        """
        raise NotImplementedError

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The loss of each example of a batch [n] (capability ``example_losses``).

        Their mean over all examples is :func:`differentiated_loss`: G without its diagonal
        penalty, which methods that sample examples take exactly at every step. Under the
        capability ``spectral_risk`` it is the risk of them that :meth:`spectrum` says.
        """
        raise NotImplementedError

    outer_blocks: int = 0
    """Into how many batches the validation examples fall where a training episode's outer loss is
    that of a few drawn ones: as many in each as are drawn. 0: it is that of all, or they cannot be
    taken by number. Optional."""

    def outer_block(self, b: int) -> Batch:
        """Outer batch ``b`` of the ``outer_blocks``, as :meth:`outer_loss` takes it. The mean of
        their losses is that of the split "valid"."""
        raise NotImplementedError

    def spectrum(self, lam: Params) -> Spectrum | None:
        """The spectral risk of the examples' losses that G is, without its diagonal penalty
        (capability ``spectral_risk``); None: their mean."""
        return None

    def closed_examples(self, lam: Params) -> Examples | None:
        """:meth:`example_losses` and their gradients in all of theta in closed form; None: they are
        left to differentiation. Optional."""
        return None

    def evidence(self, lam: Params) -> Evidence:
        """The likelihood of what :meth:`predict` gives, and the prior (capability ``evidence``).

        ``example_count`` times G is then -log likelihood + 1/2 sum precision theta^2 up to terms
        without theta, and every tensor of a batch has the examples first.
        """
        raise NotImplementedError

    def sample(self, lam: Params, episode: Episode, n: int, generator: torch.Generator) -> Batch:
        """n actions of the policy lam for an episode (capability ``policy``), [n, ...] in every
        name; random by ``generator`` alone.
        """
        raise NotImplementedError

    def log_likelihood(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """log p of each action under the policy [n], differentiable in lam."""
        raise NotImplementedError

    def adapted(self, lam: Params, episode: Episode, actions: Batch) -> Params:
        """theta after the training that each action calls for, [n, ...] in every name; no graph."""
        raise NotImplementedError

    def rewards(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """What each action is worth [n], more is better: theta trained as it says and judged, on
        average over ``trainings_per_reward`` trainings; no graph."""
        raise NotImplementedError

    trainings_per_reward: int = 1
    """How many trainings a reward is the mean of (capability ``policy``)."""

    def evaluations_per_reward(self, episode: Episode) -> int:
        """How many function evaluations a reward takes apart from its trainings, such as the
        verdicts of a model that grades (capability ``policy``)."""
        return 0

    def count(self, split: str) -> int | None:
        """Number of different episodes of a split; None where they never end."""
        return 1 if self.carried else None

    def metrics(self, lam: Params, theta: Params, episode: Episode) -> dict[str, float]:
        """What to report of one adapted episode; by default its outer loss. Never counted as cost.

        Floors that need no learning (nearest neighbour ...) are metrics too.
        """
        return {"loss": float(self.outer_loss(lam, theta, episode.outer))}

    def regret(self, lam: Params, episode: Episode) -> float | None:
        """How much more lam is expected to lose on a training episode than the best lam; None: not
        known. Optional, for a search's report: never counted as cost, and nothing learns of it."""
        return None

    def ranking_metrics(self, ranking: Sequence[Params]) -> dict[str, float]:
        """What a search's report says of its ranking of lam, the best first, where regret is known;
        by default nothing. Never counted as cost."""
        return {}

    def pictures(self, lam: Params, theta: Params, episode: Episode) -> Params:
        """Grey pictures [h, w] in 0..1 of an adapted episode, by name, which a report shows beside
        the numbers; by default none. Kept small: a run keeps those of one test episode."""
        return {}

    def project(self, lam: Params) -> Params:
        """lam moved to the nearest point that the constraints allow (clamped to ``hypers``)."""
        bounds = {h.name: h for h in self.hypers}
        out = dict(lam)
        for name, value in lam.items():
            hyper = bounds.get(name)
            if hyper is not None and (hyper.low is not None or hyper.high is not None):
                out[name] = value.clamp(hyper.low, hyper.high)
        return out


def differentiated_loss(
    problem: Problem, penalty: Params | None
) -> Callable[[Params, Params, Batch], Tensor]:
    """What is left of G to differentiate beside ``penalty``, its :meth:`Problem.diagonal_penalty`:
    all of it where that is None, whatever ``unpenalised_loss`` says."""
    return problem.inner_loss if penalty is None else problem.unpenalised_loss


def count_numbers(params: Mapping[str, Tensor]) -> int:
    """How many scalars there are in all."""
    return sum(value.numel() for value in params.values())
