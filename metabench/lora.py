"""A causal language model as a pure function of low-rank deltas: W x + (alpha / r) B A x.

Hu et al.: LoRA, ICLR 2022, arXiv 2106.09685. The frozen base is a dict of tensors and no module, so
that threads can share it, vmap over deltas applies, and many deltas can be adapted at once on one
base. Attention is written out: fused kernels have no second derivative (and none of them is called
here), so a loss may be differentiated as often as a method likes. Llama's architecture and what
differs from it by biases alone (Qwen2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metabench.errors import MetabenchError, UnknownName
from metabench.problem import Params
from metabench.solver import Rate, Solver

TARGETS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Linear maps of a layer that can have a delta, and what checkpoints call them."""

ARCHITECTURES = ("llama", "qwen2")


class Adapter(NamedTuple):
    """Deltas by name, "3.q.A" [r, inputs] and "3.q.B" [outputs, r] for layer 3, and alpha / r.

    A leading dimension of all of them, [n, r, inputs], is that of n adaptations at once.
    """

    deltas: Params
    scale: float


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values [..., groups, tokens, width] of every layer, of the tokens so far."""


@dataclass(frozen=True)
class Decoder:
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weights["model.embed_tokens.weight"].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights["model.embed_tokens.weight"].device

    def logits(
        self, ids: Tensor, adapters: Sequence[Adapter] = (), cache: Cache | None = None
    ) -> Tensor:
        """[..., n, T, vocabulary] of ids [..., n, T], padded on the right if at all.

        Under adapters of m adaptations ids are [m, n, T], or [n, T], the same for each. ``cache``
        holds what came before, is empty at first, and is extended.
        """
        past = cache[0][0].shape[-2] if cache else 0
        x = F.embedding(ids, self.weights["model.embed_tokens.weight"])
        at = torch.arange(past, past + ids.shape[-1], device=ids.device)
        angle = at[:, None].to(self.frequencies) * self.frequencies
        turn = torch.cat([angle, angle], -1)
        cos, sin = (f(turn).mul(self.rotary_scale).to(x.dtype) for f in (torch.cos, torch.sin))
        unseen = at[:, None] < torch.arange(past + ids.shape[-1], device=ids.device)
        for i in range(self.layers):
            before = cache[i] if cache is not None and i < len(cache) else None
            x, now = self._layer(i, x, (cos, sin), unseen, adapters, before)
            if cache is not None:
                cache[i : i + 1] = [now]
        head = "lm_head.weight"
        head = head if head in self.weights else "model.embed_tokens.weight"
        return F.linear(self._norm(x, "model.norm"), self.weights[head])

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
        q = _turned(q.movedim(-4, -2), turn)  # [..., groups, heads of a group, T, width]
        k, v = (y.reshape(*y.shape[:-1], self.groups, -1).movedim(-3, -2) for y in (k, v))
        k = _turned(k, turn)
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        scores = (q @ k.unsqueeze(-3).mT) * q.shape[-1] ** -0.5
        seen = _wide(scores.masked_fill(unseen, -torch.inf)).softmax(-1).to(x.dtype)
        mixed = (seen @ v.unsqueeze(-3)).movedim(-2, -4).flatten(-3)
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
        y = _wide(x)
        y = y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return self.weights[f"{name}.weight"] * y.to(x.dtype)

    def deltas(self, rank: int, targets: Sequence[str], gen: torch.Generator) -> Params:
        """The start of LoRA: A uniform within 1 / sqrt(inputs), B zero, in float32 at least.

        Raises UnknownName for a target that is no key of ``TARGETS``.
        """
        out = Params()
        dtype = torch.promote_types(self.dtype, torch.float32)
        for i in range(self.layers):
            for name in targets:
                if name not in TARGETS:
                    raise UnknownName("target of LoRA", name, TARGETS)
                weight = self.weights[f"model.layers.{i}.{TARGETS[name]}.weight"]
                outputs, inputs = weight.shape
                a = 2 * torch.rand(rank, inputs, generator=gen, dtype=torch.float64) - 1
                out[f"{i}.{name}.A"] = (a * inputs**-0.5).to(self.device, dtype)
                out[f"{i}.{name}.B"] = torch.zeros(outputs, rank, dtype=dtype, device=self.device)
        return out

    def adapter(self, deltas: Params, scale: float) -> Adapter:
        """Deltas in the type of the weights."""
        return Adapter({k: v.to(self.dtype) for k, v in deltas.items()}, scale)

    @torch.no_grad()
    def sample(
        self,
        prompt: Sequence[int],
        n: int,
        tokens: int,
        gen: torch.Generator,
        *,
        adapters: Sequence[Adapter] = (),
        temperature: float = 1.0,
        stop: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """n continuations of one prompt: ids int64 [n, tokens] and what counts of them, [n, tokens]
        of 0 and 1, up to and with the token ``stop``. Temperature 0 is greedy."""
        ids = torch.zeros(n, tokens, dtype=torch.int64, device=self.device)
        counts = torch.zeros(n, tokens, device=self.device)
        given = torch.tensor([list(prompt)] * n, device=self.device)
        cache, going = Cache(), torch.ones(n, dtype=torch.bool, device=self.device)
        for t in range(tokens):
            scores = _wide(self.logits(given, adapters, cache)[:, -1])
            if temperature == 0:
                chosen = scores.argmax(-1)
            else:  # drawn on the CPU: the same draws on every device
                shares = (scores / temperature).softmax(-1).double().cpu()
                edges = shares.cumsum(-1)
                u = torch.rand(n, 1, generator=gen, dtype=torch.float64) * edges[:, -1:]
                chosen = torch.searchsorted(edges, u, right=True)[:, 0].to(self.device)
                chosen = chosen.clamp(max=shares.shape[-1] - 1)
            ids[:, t], counts[:, t] = torch.where(going, chosen, 0), going.to(counts)
            if stop is not None:
                going = going & (chosen != stop)
                if not bool(going.any()):
                    break
            given = chosen[:, None]
        return ids, counts


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
    wide = torch.promote_types(dtype, torch.float32)
    return Decoder(
        weights,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.rms_norm_eps,
        rotary.inv_freq.detach().to(device, wide),
        float(rotary.attention_scaling),
    )


def surprise(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of every token but the first given those before it, [..., n, T - 1]; float32 at
    least."""
    logits = _wide(logits[..., :-1, :])
    likelihoods = logits.log_softmax(-1)
    next_ids = ids[..., 1:, None].expand(*likelihoods.shape[:-1], 1)
    return -likelihoods.gather(-1, next_ids)[..., 0]


def stacked(deltas: Sequence[Params]) -> Params:
    """Several deltas as one, [n, ...]."""
    return {k: torch.stack([d[k] for d in deltas]) for k in deltas[0]}


def adapt(
    loss: Callable[[Params], Tensor], start: Params, *, steps: int, lr: Rate, solver: Solver
) -> Params:
    """Deltas after ``steps`` steps on a loss [n] of n stacked deltas, each on its own entry.

    A loss of stacked deltas has no terms that mix them, and solvers work entry by entry: what comes
    out is what n trainings one after another give, in one pass over the base a step.
    """
    theta, memory = start, solver.init(start)
    for _ in range(steps):
        leaves = {k: v.detach().requires_grad_() for k, v in theta.items()}
        with torch.enable_grad():
            found = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()))
        theta, memory = solver.update(theta, dict(zip(leaves, found, strict=True)), memory, lr)
    return {k: v.detach() for k, v in theta.items()}


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: pairs (j, j + width / 2) turned."""
    cos, sin = turn
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
