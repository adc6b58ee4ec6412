"""What the conformance kit runs methods on: a small task, and problems that check calls."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metabench.contract.by_examples.per_example_weights import Gated
from metabench.contract.context import Context, full_batches
from metabench.contract.declared import Evidence
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds, generator
from metabench.contract.task import Task
from metabench.core.costs import Meter
from metabench.core.errors import MetabenchError


class Undeclared(MetabenchError):
    """A method used something of a problem that its ``needs`` do not name."""


@dataclass(frozen=True)
class Sample(Task):
    """A few-shot regression task in float64: a tanh layer and a linear head, three episodes a step.

    ``formulation`` "init": lam is the initial value of all weights; "representation": lam is the
    layer, theta the head. ``batches``: every inner step has a batch of its own.
    """

    formulation: Literal["init", "representation"] = "init"
    batches: bool = False

    registered_name: ClassVar[str] = "sample"
    metric: ClassVar[str] = "loss"
    goal: ClassVar[Literal["max", "min"]] = "min"
    data: ClassVar[tuple[str, ...]] = ()

    @property
    def offers(self) -> frozenset[str]:
        """Derivatives, a head, a module, episodes, and what the formulation brings."""
        initial = self.formulation == "init"
        own = {"lam_is_initialisation"} if initial else {"lam_in_inner_loss"}
        return GRADIENTS | own | {"head", "module", "episodes"}

    def build(self, seeds: Seeds, device: torch.device) -> Problem:
        """The problem; there is nothing to load."""
        return SampleProblem(self, seeds, device)


HEAD = ("head.weight", "head.bias")


class SampleProblem(Problem):
    """Inputs [6, 3], targets [6, 2] a sine of a random projection."""

    episodes_per_step = 3
    head = HEAD

    def __init__(self, task: Sample, seeds: Seeds, device: torch.device) -> None:
        self.task, self.seeds, self.device = task, seeds, device
        net = self.module = nn.Sequential(
            OrderedDict(
                body=nn.Linear(3, 5, dtype=torch.float64, device=device),
                squash=nn.Tanh(),
                head=nn.Linear(5, 2, dtype=torch.float64, device=device),
            )
        )
        gen = generator(seeds.init, "sample")
        self.first: Params = {
            k: (0.5 * torch.randn(v.shape, generator=gen, dtype=torch.float64)).to(device)
            for k, v in net.named_parameters()
        }
        net.load_state_dict(self.first)

    def init_outer(self) -> Params:
        """The first weights, of the layer or of all."""
        whole = self.task.formulation == "init"
        return {k: v.clone() for k, v in self.first.items() if whole or k not in HEAD}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """lam itself, or a head of zeros."""
        if self.task.formulation == "init":
            return {k: lam[k] for k in self.first}
        return {k: torch.zeros_like(self.first[k]) for k in HEAD}

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Mean squared error."""
        weights = theta if self.task.formulation == "init" else {**lam, **theta}
        return (self.outputs(weights, batch["x"]) - batch["y"]).square().mean()

    def outputs(self, weights: Params, x: Tensor) -> Tensor:
        """What ``module`` gives; not by functional_call, which episodes in threads cannot share."""
        hidden = torch.tanh(F.linear(x, weights["body.weight"], weights["body.bias"]))
        return F.linear(hidden, weights["head.weight"], weights["head.bias"])

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """The same on the query set."""
        return self.inner_loss(lam, theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        """A projection of the episode's own, inputs of each role's own."""

        def draw(role: int | str) -> Batch:
            seed = self.seeds.data
            of_episode = generator(seed, split, index)
            of_role = generator(seed, split, index, role)
            way = torch.randn(3, 2, generator=of_episode, dtype=torch.float64)
            x = torch.randn(6, 3, generator=of_role, dtype=torch.float64)
            return {"x": x.to(self.device), "y": torch.sin(x @ way).to(self.device)}

        return Episode(draw if self.task.batches else draw("support"), draw("query"), index)


class Wrapped:
    """A problem that passes everything on; subclasses observe what is asked of it."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def as_problem(self) -> Problem:
        """Itself, to a type checker."""
        return cast(Problem, self)


class Asked(Wrapped):
    """The lam of every outer loss that was evaluated, in order."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.lams: list[Params] = []

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """F, noted."""
        self.lams.append(lam)
        return self._problem.outer_loss(lam, theta, batch)


class Counting(Wrapped):
    """How often each loss is evaluated; once on several episodes or chains is several times."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.calls: Counter[str] = Counter()
        self.meter = Meter()

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """G, counted."""
        self.calls["inner_loss"] += self.meter.weight
        return self._problem.inner_loss(lam, theta, batch)

    def field(self, lam: Params, theta: Params, batch: Batch) -> Params | None:
        """What inner steps follow, counted as G where there is one."""
        found = self._problem.field(lam, theta, batch)
        self.calls["inner_loss"] += 0 if found is None else self.meter.weight
        return found

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """G without its diagonal penalty, counted as G."""
        self.calls["inner_loss"] += self.meter.weight
        return self._problem.unpenalised_loss(lam, theta, batch)

    def loss_of_prediction(
        self, lam: Params, theta: Params, prediction: Tensor, batch: Batch
    ) -> Tensor:
        """G of a given prediction, counted as G."""
        self.calls["inner_loss"] += self.meter.weight
        return self._problem.loss_of_prediction(lam, theta, prediction, batch)

    def example_losses(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Losses of single examples; as many as an inner batch has are one G
        (:meth:`inner_evaluations`)."""
        losses = self._problem.example_losses(lam, theta, batch)
        self.calls["examples"] += len(losses) * self.meter.weight
        return losses

    @property
    def inner_evaluations(self) -> int:
        """How often G was evaluated, also in parts: full batches of them."""
        examples = self.calls["examples"]
        parts = examples // self._problem.examples_per_batch if examples else 0
        return self.calls["inner_loss"] + parts

    def embed(self, lam: Params, batch: Batch) -> Tensor:
        """What a head sees, counted as G: it is differentiated in its place."""
        self.calls["inner_loss"] += self.meter.weight
        return self._problem.embed(lam, batch)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """F, counted."""
        self.calls["outer_loss"] += self.meter.weight
        return self._problem.outer_loss(lam, theta, batch)

    def evidence(self, lam: Params) -> Evidence:
        """Likelihood and prior, counted as F: the evidence is differentiated in its place."""
        self.calls["outer_loss"] += self.meter.weight
        return self._problem.evidence(lam)

    def log_likelihood(self, lam: Params, episode: Episode, actions: Batch) -> Tensor:
        """Of a policy's actions, counted as F: its gradient stands for that of the reward."""
        self.calls["outer_loss"] += self.meter.weight
        return self._problem.log_likelihood(lam, episode, actions)


class Watched(Context):
    """Notes which of the derivatives counted take no evaluation of a loss of their own: those that
    are counted along with the gradient whose graph they go through again."""

    along = 0

    def inner_grad(self, *given: Any, **more: Any) -> Params:
        """As the method asks for it."""
        self._note(more)
        return super().inner_grad(*given, **more)

    def inner_loss(self, *given: Any, **more: Any) -> Tensor:
        """As the method asks for it."""
        self._note(more)
        return super().inner_loss(*given, **more)

    def examples_grad(
        self, lam: Params, theta: Params, examples: Tensor, *, before: int, **more: int
    ) -> Params:
        """As the method asks for it."""
        full = full_batches(self.problem, before, len(examples))
        self._note({name: full * n for name, n in more.items()})
        return super().examples_grad(lam, theta, examples, before=before, **more)

    def _note(self, more: dict[str, Any]) -> None:
        if not self.meter.is_muted:
            again = more.get("hvps", 0) + more.get("mixed_products", 0)
            self.along += again * self.meter.weight


BY_EXAMPLE = {"example_losses", "spectral_risk"}
"""Capabilities that come with losses of single examples."""


class Limited(Wrapped):
    """A problem that has only what ``needs`` names; anything else raises :class:`Undeclared`."""

    def __init__(self, problem: Problem, needs: frozenset[str]) -> None:
        super().__init__(problem)
        self._needs = needs

    def __getattr__(self, name: str) -> Any:
        guarded = {
            "head": {"head"},
            "batch_norms": {"batch_norms"},
            "embedding": {"embed"},
            "base_classes": {"base_classes"},
            "base_batch": {"base_classes"},
            "module": {"module"},
            "hypers": {"search_space", "small_lam"},
            "predict": {"prediction"},
            "loss_of_prediction": {"prediction"},
            "example_count": BY_EXAMPLE,
            "examples_per_batch": BY_EXAMPLE,
            "take": BY_EXAMPLE,
            "example_losses": BY_EXAMPLE,
            "evidence": {"evidence"},
            "sample": {"policy"},
            "log_likelihood": {"policy"},
            "adapted": {"policy"},
            "rewards": {"policy"},
        }
        if name in guarded and not guarded[name] & self._needs:
            raise Undeclared(f"it reads problem.{name} and does not need {sorted(guarded[name])}")
        return super().__getattr__(name)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """G, whose gradient has no derivative unless second derivatives are needed."""
        return self._problem.inner_loss(*self._once(lam, theta), batch)

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """G without its diagonal penalty; likewise."""
        return self._problem.unpenalised_loss(*self._once(lam, theta), batch)

    def _once(self, lam: Params, theta: Params) -> tuple[Params, Params]:
        if "second_order" in self._needs:
            return lam, theta
        return _through(_Once, lam), _through(_Once, theta)

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """F, which has no derivative unless one is needed."""
        if "outer_gradient" not in self._needs:
            lam, theta = _through(_Never, lam), _through(_Never, theta)
        return self._problem.outer_loss(lam, theta, batch)


def _through(function: type[torch.autograd.Function], params: Params) -> Params:
    return {
        k: v.through(function.apply) if isinstance(v, Gated) else function.apply(v)
        for k, v in params.items()
    }


class _Never(torch.autograd.Function):
    """The identity; going back through it is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise Undeclared("it differentiates a loss once more often than its needs say")


class _Once(_Never):
    """The identity; its gradient cannot be differentiated again."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        once: Tensor = _Never.apply(g) if g.requires_grad else g
        return once
