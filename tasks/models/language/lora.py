"""A causal language model as a pure function of low-rank deltas: W x + (alpha / r) B A x.

Hu et al.: LoRA, ICLR 2022, arXiv 2106.09685. The frozen base is a dict of tensors and no module, so
that threads can share it, vmap over deltas applies, and many deltas can be adapted at once on one
base. Attention is written out: fused kernels have no second derivative (and none of them is called
here), so a loss may be differentiated as often as a method likes. Llama's architecture and what
differs from it by biases alone (Qwen2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.contract import autodiff
from metabench.contract.problem import Params
from metabench.contract.solver import Solver
from metabench.core.errors import MetabenchError

from .causal import TARGETS, Adapter, Cache, CausalLM, wide

ARCHITECTURES = ("llama", "qwen2")

Term = Callable[[Params], Tensor]


@dataclass(frozen=True)
class Decoder(CausalLM):
    """A frozen decoder: ``weights`` by their names in a checkpoint, and its sizes.

    ``groups`` is the number of key and value heads; ``frequencies`` [width / 2] are those of the
    rotary positions, and ``rotary_scale`` what their cosines are multiplied by.
    """

    weights: Mapping[str, Tensor]
    layers: int
    heads: int
    groups: int
    eps: float
    frequencies: Tensor
    rotary_scale: float = 1.0
    context: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weights["model.embed_tokens.weight"].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights["model.embed_tokens.weight"].device

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.weights["model.embed_tokens.weight"])

    def linear(self, layer: int, target: str) -> Tensor:
        """Weight [outputs, inputs] of a linear map."""
        return self.weights[f"model.layers.{layer}.{TARGETS[target]}.weight"]

    def hidden(
        self,
        ids: Tensor,
        adapters: Sequence[Adapter] = (),
        cache: Cache | None = None,
        left: Tensor | None = None,
    ) -> Tensor:
        """Last features; ``cache`` holds keys and values [..., groups, tokens, width] by layer."""
        past = cache[0][0].shape[-2] if cache else 0
        x = F.embedding(ids, self.weights["model.embed_tokens.weight"])
        at = torch.arange(past, past + ids.shape[-1], device=ids.device)
        so_far = torch.arange(past + ids.shape[-1], device=ids.device)
        unseen = at[:, None] < so_far
        if left is not None:
            padding = so_far < left[:, None, None]
            # Padding sees itself: a softmax over nothing would be no number.
            unseen = (unseen | (padding & (at[:, None] != so_far)))[:, None, None]
            at = (at - left[:, None]).clamp(min=0)[:, None]
        angle = at.unsqueeze(-1).to(self.frequencies) * self.frequencies
        turn = torch.cat([angle, angle], -1)
        cos, sin = (f(turn).mul(self.rotary_scale).to(x.dtype) for f in (torch.cos, torch.sin))
        for i in range(self.layers):
            before = cache[i] if cache is not None and i < len(cache) else None
            x, now = self._layer(i, x, (cos, sin), unseen, adapters, before)
            if cache is not None:
                cache[i : i + 1] = [now]
        return self._norm(x, "model.norm")

    def head(self, x: Tensor) -> Tensor:
        """By the weights of its own, or by those of the embedding."""
        head = "lm_head.weight"
        head = head if head in self.weights else "model.embed_tokens.weight"
        return F.linear(x, self.weights[head])

    def repeated(self, cache: Cache, n: int) -> Cache:
        """Keys and values of one row, n times."""
        return [tuple(x.expand(n, *x.shape[1:]) for x in pair) for pair in cache]

    def _layer(
        self,
        i: int,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        unseen: Tensor,
        adapters: Sequence[Adapter],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = self._norm(x, f"model.layers.{i}.input_layernorm")
        q, k, v = (self._linear(i, name, h, adapters) for name in "qkv")
        q = q.reshape(*q.shape[:-1], self.groups, self.heads // self.groups, -1)
        q = q.movedim(-4, -2)  # [..., groups, heads of a group, T, width]
        q = _turned(q, (turn[0].unsqueeze(-3), turn[1].unsqueeze(-3)))
        k, v = (y.reshape(*y.shape[:-1], self.groups, -1).movedim(-3, -2) for y in (k, v))
        k = _turned(k, turn)
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        # The heads of a group stand one below another: no copy of k and v for each of them.
        several = q.shape[-3:-1]
        scores = (q.flatten(-3, -2) @ k.mT).unflatten(-2, several) * q.shape[-1] ** -0.5
        seen = wide(scores.masked_fill(unseen, -torch.inf)).softmax(-1).to(x.dtype)
        mixed = (seen.flatten(-3, -2) @ v).unflatten(-2, several).movedim(-2, -4).flatten(-3)
        x = x + self._linear(i, "o", mixed, adapters)
        h = self._norm(x, f"model.layers.{i}.post_attention_layernorm")
        gate, up = (self._linear(i, name, h, adapters) for name in ("gate", "up"))
        return x + self._linear(i, "down", F.silu(gate) * up, adapters), (k, v)

    def _linear(self, i: int, name: str, x: Tensor, adapters: Sequence[Adapter]) -> Tensor:
        where = f"model.layers.{i}.{TARGETS[name]}"
        out = F.linear(x, self.weights[f"{where}.weight"], self.weights.get(f"{where}.bias"))
        for deltas, scale in adapters:
            if f"{i}.{name}.A" in deltas:
                a, b = deltas[f"{i}.{name}.A"].mT, deltas[f"{i}.{name}.B"].mT
                if a.ndim == 3:
                    a, b = a.unsqueeze(-3), b.unsqueeze(-3)
                out = out + scale * (x @ a) @ b
        return out

    def _norm(self, x: Tensor, name: str) -> Tensor:
        y = wide(x)
        y = y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return self.weights[f"{name}.weight"] * y.to(x.dtype)

    def adapter(self, deltas: Params, scale: float) -> Adapter:
        """Deltas in the type of the weights."""
        return Adapter({k: v.to(self.dtype) for k, v in deltas.items()}, scale)


def decoder_of(model: Any, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The function that a model of the library transformers computes.

    Raises MetabenchError for an architecture other than ``ARCHITECTURES``.
    """
    config = model.config
    known = config.model_type in ARCHITECTURES and config.hidden_act == "silu"
    if not known or getattr(config, "use_sliding_window", False):
        raise MetabenchError(
            f"a model of type {config.model_type!r} (activation {config.hidden_act!r}) has no "
            f"functional form here; there is one for {', '.join(ARCHITECTURES)} with full attention"
        )
    weights = {k: v.detach().to(device, dtype) for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    rotary = model.model.rotary_emb
    precise = torch.promote_types(dtype, torch.float32)
    return Decoder(
        weights,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.rms_norm_eps,
        rotary.inv_freq.detach().to(device, precise),
        float(rotary.attention_scaling),
        getattr(config, "max_position_embeddings", None),
    )


def surprise(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of every token but the first given those before it, [..., n, T - 1]; float32 at
    least."""
    logits = wide(logits[..., :-1, :])
    likelihoods = logits.log_softmax(-1)
    next_ids = ids[..., 1:, None].expand(*likelihoods.shape[:-1], 1)
    return -likelihoods.gather(-1, next_ids)[..., 0]


def stacked(deltas: Sequence[Params]) -> Params:
    """Several deltas as one, [n, ...]."""
    return {k: torch.stack([d[k] for d in deltas]) for k in deltas[0]}


@dataclass(frozen=True)
class Step:
    """What one step of several trainings descends on."""

    terms: Sequence[Term]
    """Losses [m] whose sum is taken of each; they are differentiated one by one, so that one graph
    is held at a time."""
    rows: Sequence[int] | None = None
    """Which of the n trainings take this step, m of them: the others are over; None: all."""
    share: Tensor | None = None
    """What the step size is multiplied by, of each of the n trainings [n]; None: 1."""


def adapt(
    loss: Term | Sequence[Term], start: Params, *, steps: int, lr: float | Tensor, solver: Solver
) -> Params:
    """Deltas after ``steps`` steps on a loss [n] of n stacked deltas, each on its own entry.

    A loss of stacked deltas has no terms that mix them, and solvers work entry by entry: what comes
    out is what n trainings one after another give, in one pass over the base a step. A loss given
    as a sequence is their sum.
    """
    terms = [loss] if callable(loss) else list(loss)
    return adapt_by([Step(terms)] * steps, start, lr=lr, solver=solver)


def adapt_by(
    steps: Iterable[Step],
    start: Params,
    *,
    lr: float | Tensor,
    solver: Solver,
    clip: float | None = None,
) -> Params:
    """As :func:`adapt`, with losses that differ from step to step. A training that has left out a
    step must leave out all that follow: solvers count the steps of all together. ``lr`` is one
    number, or [n, 1, 1]. ``clip``: the largest norm of a training's gradient, which is scaled down
    to it; None: any.
    """
    theta, memory = start, solver.init(start)
    for step in steps:
        rows = None if step.rows is None else list(step.rows)
        leaves = {
            k: (v if rows is None else v[rows]).detach().requires_grad_() for k, v in theta.items()
        }
        found: list[Tensor] = []
        for term in step.terms:
            with torch.enable_grad():
                new = torch.autograd.grad(term(leaves).sum(), list(leaves.values()))
            found = [a + b for a, b in zip(found, new, strict=True)] if found else list(new)
        gradient = dict(zip(leaves, found, strict=True))
        if clip is not None:
            gradient = autodiff.clip_norm(gradient, clip, batch=1)
        rate = lr if step.share is None else lr * step.share[:, None, None]
        if rows is None:
            theta, memory = solver.update(theta, gradient, memory, rate)
            continue
        whole = {k: torch.zeros_like(v) for k, v in theta.items()}
        for k, v in gradient.items():
            whole[k][rows] = v
        moved, memory = solver.update(theta, whole, memory, rate)
        # A solver with momentum would move what is over, too.
        theta = {k: v.detach().clone() for k, v in theta.items()}
        for k, v in moved.items():
            theta[k][rows] = v[rows].detach()
    return {k: v.detach() for k, v in theta.items()}


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: pairs (j, j + width / 2) turned."""
    cos, sin = turn
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin
