"""Costs of suites whose language model is not on this machine: its architecture, without numbers.

The model is built from its sizes on PyTorch's meta device, whose tensors have shapes and no
contents, and the code of a real run is counted there piece by piece: a prompt read, a token
written, a training step, answers judged. How often each is done is as in ``methods/restem.py`` and
``tasks/self_edit_policy.py``. Where derivatives go through the training (self_edit_weights), the
method's own meter says how many of each kind an outer step takes, on the small model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.harness.counting import CPU, Cost, Counted, Counter
from metabench.contract import autodiff
from metabench.contract.method import Context
from metabench.contract.problem import Params
from metabench.contract.seeds import Seeds
from metabench.core.cell import Cell, instances
from metabench.core.registry import solvers
from metabench.tasks.models.language import lora
from metabench.tasks.models.language.causal import Adapter, CausalLM
from metabench.tasks.models.language.lora_peft import PeftDecoder

TASKS = ("self_edit_policy", "self_edit_recipe", "self_edit_weights")

LINE = 8
"""Tokens of an article's title, and of what is asked around a text, assumed."""
INSTRUCTION = 60
"""Tokens of what a policy is asked beside the passage, assumed."""
ANSWER = 8
"""Tokens of an answer, assumed."""
GRADED = 250
"""Tokens of a grader's prompt, assumed."""


@dataclass(frozen=True)
class Sizes:
    """Of a model of Llama's architecture; ``biases`` of q, k and v, as Qwen2 has them."""

    source: str
    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    vocabulary: int
    tied: bool
    biases: bool = False

    @property
    def head_width(self) -> int:
        """Of one head."""
        return self.width // self.heads

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear map of a layer."""
        small = self.groups * self.head_width
        return {
            "q": (self.width, self.width),
            "k": (self.width, small),
            "v": (self.width, small),
            "o": (self.width, self.width),
            "gate": (self.width, self.inner),
            "up": (self.width, self.inner),
            "down": (self.inner, self.width),
        }

    @property
    def parameters(self) -> int:
        """All of them, norms and biases too."""
        layer = sum(a * b for a, b in self.maps.values()) + 2 * self.width
        if self.biases:
            layer += sum(self.maps[name][1] for name in "qkv")
        tables = 1 if self.tied else 2
        return self.layers * layer + tables * self.vocabulary * self.width + self.width


MODELS = {
    "Qwen/Qwen2.5-7B": Sizes(
        "github.com/volcengine/verl, tests/utils/test_flops_counter.py, of Qwen2.5-7B-Instruct, "
        "which has the same architecture; the biases and the untied head from memory",
        28, 3584, 18944, 28, 4, 152064, tied=False, biases=True,
    ),
    "meta-llama/Llama-3.2-1B": Sizes(
        "github.com/kevinstephano/thunder_model_blocks, hf_llama/llama_config.py, a copy of the "
        "config.json of Llama-3.2-1B-Instruct, which has the same architecture",
        16, 2048, 8192, 32, 8, 128256, tied=True,
    ),
}  # fmt: skip
"""Sizes by hub name, each with where they were read."""


def sizes(model: str) -> Sizes:
    """Of a hub name, with or without "-Instruct"; raises KeyError for one that is not known."""
    return MODELS[model.removesuffix("-Instruct")]


@contextmanager
def traced() -> Iterator[None]:
    """Inside, tensors have shapes and no contents."""
    masking: Any = importlib.import_module("transformers.masking_utils")
    # It looks at positions for several texts in one row, which are never there.
    unpacked = mock.patch.object(masking, "find_packed_sequence_indices", lambda positions: None)
    with torch.device("meta"), unpacked:
        yield


def built(known: Sizes, dtype: torch.dtype, form: str) -> CausalLM:
    """The model as a run has it, "peft" or "functional"."""
    transformers: Any = importlib.import_module("transformers")
    kind = "Qwen2" if known.biases else "Llama"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=known.width,
        intermediate_size=known.inner,
        num_hidden_layers=known.layers,
        num_attention_heads=known.heads,
        num_key_value_heads=known.groups,
        vocab_size=known.vocabulary,
        tie_word_embeddings=known.tied,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    if form == "functional":
        return lora.decoder_of(model, dtype, torch.device("meta"))
    return PeftDecoder(model)


def deltas(known: Sizes, rank: int, targets: Sequence[str], many: int | None = None) -> Params:
    """Of zeros, float32; ``many``: of so many adaptations at once."""
    out = Params()
    ahead = () if many is None else (many,)
    for i in range(known.layers):
        for name in targets:
            inputs, outputs = known.maps[name]
            out[f"{i}.{name}.A"] = torch.zeros(*ahead, rank, inputs)
            out[f"{i}.{name}.B"] = torch.zeros(*ahead, outputs, rank)
    return out


def spent(work: Callable[[], Any]) -> Cost:
    """Of a piece of work."""
    with Counter() as counter:
        work()
    return counter.cost


@dataclass(frozen=True)
class Pieces:
    """What a run is put together from, on one model; adapters: the policy's, then theta's."""

    known: Sizes
    lm: CausalLM
    dtype: torch.dtype

    def texts(self, *shape: int) -> Tensor:
        """Ids."""
        return torch.zeros(*shape, dtype=torch.int64)

    def written(
        self, n: int, prompt: int, tokens: int, adapters: Sequence[Adapter], *, shared: bool
    ) -> Cost:
        """n continuations of a prompt that they share, and is read once, or of one each; then a
        token at a time. Every token costs what the one in the middle does."""
        lm = self.lm

        @torch.no_grad()
        def read(length: int) -> list[Any]:
            cache: list[Any] = []
            lm.head(lm.hidden(self.texts(1 if shared else n, length), adapters, cache)[:, -1])
            return lm.repeated(cache, n) if shared else cache

        @torch.no_grad()
        def write(cache: list[Any]) -> None:
            lm.head(lm.hidden(self.texts(n, 1), adapters, cache)[:, -1])

        cache = read(prompt + tokens // 2)
        return spent(lambda: read(prompt)) + spent(lambda: write(cache)) * tokens

    def trained(self, documents: int, tokens: int, policy: Adapter | None, theta: Params) -> Cost:
        """A pass over so many documents of as many tokens each: loss, gradient, and a step."""
        ids = self.texts(1, documents, tokens)

        def term(moved: Params) -> Tensor:
            own = [] if policy is None else [policy]
            return self.lm.surprise(ids, [*own, self.lm.adapter(moved, 1.0)]).sum((-2, -1))

        solver = solvers.get("adam")()
        return spent(lambda: lora.adapt(term, theta, steps=1, lr=1e-3, solver=solver))

    @torch.no_grad()
    def _judged(self, n: int, tokens: int, read: int, adapters: Sequence[Adapter]) -> None:
        x = self.lm.hidden(self.texts(n, tokens), adapters)
        self.lm.head(x[..., -read:, :])

    def judged(self, n: int, tokens: int, adapters: Sequence[Adapter], read: int = ANSWER) -> Cost:
        """n questions answered: what their answers' tokens are worth."""
        return spent(lambda: self._judged(n, tokens, read, adapters))

    def cloned(self, prompt: int, tokens: int, lam: Params) -> Cost:
        """The gradient of log p of one self-edit."""
        ids = self.texts(1, prompt + tokens)

        def loss(moved: Params) -> Tensor:
            x = self.lm.hidden(ids, [self.lm.adapter(moved, 1.0)])[:, -tokens - 1 : -1]
            return self.lm.head(x).float().log_softmax(-1).sum()

        return spent(lambda: autodiff.grad(loss, lam))


@lru_cache(maxsize=8)
def _pieces(model: str, dtype: str, form: str) -> Pieces:
    known, kind = sizes(model), getattr(torch, dtype)
    return Pieces(known, built(known, kind, form), kind)


def counted(cell: Cell) -> tuple[Counted, list[str]]:
    """The cost of a cell, and what is to be said of it."""
    task, method, _, budget = instances(cell)
    known = sizes(task.model)
    notes = [f"sizes of {task.model}: {known.source}"]
    with traced():
        if cell.task == "self_edit_weights":
            return _weights(cell, task, known), [*notes, PASSES]
        return _rewarded(cell, task, method, budget), [*notes, LONGEST]


LONGEST = (
    f"self-edits: every text is as long as its setting allows, titles have {LINE} tokens and "
    f"answers {ANSWER}, a policy's instruction {INSTRUCTION}, a grader's prompt {GRADED}; a recipe "
    "has every augmentation and the mean number of epochs"
)
PASSES = (
    "self_edit_weights: derivatives are counted by the method's own meter on the small model, each "
    "priced at full size; texts are as long as their setting allows"
)


def _rewarded(cell: Cell, task: Any, method: Any, budget: Any) -> Counted:
    """A policy: rounds of draw, train, judge, and the M-step; evaluations of the same."""
    at = _pieces(task.model, task.dtype, task.adapter)
    writes = cell.task == "self_edit_policy"
    theta = deltas(at.known, task.rank, task.targets, 1)
    lam: Params = deltas(at.known, task.policy_rank, task.policy_maps) if writes else {}
    policy = at.lm.adapter(lam, 1.0) if writes else None
    own = [] if policy is None else [policy]
    both = [*own, at.lm.adapter(theta, 1.0)]
    learns = cell.method == "restem"

    if writes:
        longest, turns = task.sample_tokens, task.adapt_epochs
        drawn = longest
    else:
        turns = sum(task.epochs) / len(task.epochs)
        drawn = task.edit_tokens * len(task.augmentations)
    if not learns:
        turns, drawn = method.inner_steps, 0
    lines = task.documents - 1 if drawn else 0
    length = min(task.edit_tokens, -(-drawn // lines) + LINE) if lines else 0
    size = task.documents_a_step or 1 + lines
    passes = [(1, task.edit_tokens)]  # documents and tokens of each in an epoch
    for first in range(0, 1 + lines, size):
        rest = min(size, 1 + lines - first) - (first == 0)
        whole, left = divmod(rest, task.documents_at_once)
        passes += [(task.documents_at_once, length)] * whole + [(left, length)] * bool(left)
    epoch = Cost()
    for some in dict.fromkeys(passes):
        epoch += at.trained(*some, policy, theta) * passes.count(some)
    training = epoch * turns if turns else Cost()

    judged = at.judged(task.questions, task.question_tokens, both)
    if task.grader is not None:
        alone = [*own, at.lm.adapter(deltas(at.known, task.rank, task.targets), 1.0)]
        graded = at.written(
            task.questions, task.question_tokens, task.answer_tokens, alone, shared=False
        )
        judge = _pieces(task.grader, task.grader_dtype, "peft")
        graded += judge.judged(task.questions, GRADED, [], read=1)
        judged = judged + graded
    prompt = INSTRUCTION + task.edit_tokens

    step = Cost()
    if budget.outer_steps:
        if writes:
            step += at.written(method.samples, prompt, task.sample_tokens, own, shared=True)
        repeats = getattr(task, "repeats", 1)
        step += (training + judged) * (method.samples * repeats)
        if writes:
            step += at.cloned(prompt, task.sample_tokens, lam) * method.epochs
        step = step * task.meta_batch
    evaluation = training + judged
    if writes and learns:
        evaluation += at.written(1, prompt, task.sample_tokens, own, shared=True)
    looks = 1 + -(-budget.outer_steps // budget.eval_every)
    evaluations = {
        "valid": (evaluation, float(looks * budget.valid_episodes)),
        "test": (evaluation, float(budget.test_episodes)),
    }
    numbers = 4 * sum(x.numel() for x in (*theta.values(), *lam.values()))
    fixed = at.known.parameters * at.dtype.itemsize
    if task.grader is not None:
        fixed += sizes(task.grader).parameters * getattr(torch, task.grader_dtype).itemsize
    # Deltas with Adam's two moments.
    return Counted(step, float(budget.outer_steps), evaluations, fixed + 3.0 * numbers, 0.0)


def _weights(cell: Cell, task: Any, known: Sizes) -> Counted:
    """Derivatives by kind, each priced once."""
    at = _pieces(task.model, task.dtype, "functional")
    theta = deltas(known, task.rank, task.targets)
    scale = torch.ones(len(task.edits))
    edits = at.texts(len(task.edits), task.edit_tokens)
    asked = at.texts(task.questions, task.question_tokens)
    lm = at.lm

    def inner(moved: Params) -> Tensor:
        lost = lm.surprise(edits, [lm.adapter(moved, 1.0)])
        return (lost.sum(-1) * scale).sum()

    def outer(moved: Params) -> Tensor:
        x = lm.hidden(asked, [lm.adapter(moved, 1.0)])
        return lm.head(x[:, -ANSWER:]).log_softmax(-1).sum()

    gradient = spent(lambda: autodiff.grad(inner, theta))
    leaves = {k: v.requires_grad_() for k, v in deltas(known, task.rank, task.targets).items()}
    with Counter() as counter:
        loss = inner(leaves)
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        with Counter() as second:
            torch.autograd.grad(first, list(leaves.values()), [torch.ones_like(g) for g in first])
    product = replace(second.cost, peak=counter.cost.peak)
    of_answers = spent(lambda: autodiff.grad(outer, theta))
    value = at.judged(task.questions, task.question_tokens, [lm.adapter(theta, 1.0)])

    counts, adapting = _meter(cell)
    # Unrolling gets both products of a step from one pass.
    products = counts["hvps"]
    if counts["mixed_products"] != products:
        products += counts["mixed_products"]
    step = gradient * counts["inner_gradients"] + product * products
    step += of_answers * counts["outer_gradients"] + value * counts["function_evaluations"]
    _, method, _, budget = instances(cell)
    kept = 1e9 * getattr(method, "memory_budget_gb", 0.0)
    together = replace(step, peak=task.meta_batch * step.peak + kept)
    evaluation = gradient * adapting + value
    looks = 1 + -(-(budget.outer_steps or 0) // budget.eval_every)
    evaluations = {
        "valid": (evaluation, float(looks * budget.valid_episodes)),
        "test": (evaluation, float(budget.test_episodes)),
    }
    numbers = 4 * sum(x.numel() for x in theta.values())
    fixed = known.parameters * at.dtype.itemsize + 3.0 * numbers
    # Flops and traffic of all episodes; operations of one, for all run at once.
    n = task.meta_batch
    whole = Cost(together.flops * n, together.ops, together.traffic * n, together.peak)
    return Counted(whole, float(budget.outer_steps or 0), evaluations, fixed, 0.0)


def _meter(cell: Cell) -> tuple[dict[str, int], int]:
    """Counts of an outer step of one episode, by the method's own meter on the small model, and
    the inner gradients of an evaluation."""
    small = {"model": "tinylm_260k", "rank": 1, "targets": ["q"], "meta_batch": 1}
    short = {"questions": 1, "question_tokens": 32, "edit_tokens": 16}
    cell = replace(cell, task_settings={**cell.task_settings, **small, **short})
    with torch.device(CPU):
        task, method, solver, budget = instances(cell)
        seeds = Seeds.of(cell.seed)
        problem = task.build(seeds, CPU)
        ctx = Context(problem, solver, seeds, task.offers, budget=budget)
        state = method.init(ctx)
        before = ctx.meter.counts.as_dict()
        if budget.outer_steps:
            method.step(ctx, state)
        between = ctx.meter.counts.as_dict()
        method.adapt(ctx, state, problem.episode("test", 0))
        after = ctx.meter.counts.as_dict()
    step = {k: between[k] - before[k] for k in before}
    return step, after["inner_gradients"] - between["inner_gradients"]
