"""What is asked of a causal language model, whoever computes it: surprise, samples, continuations.

Two forms do: :class:`metabench.tasks.models.language.lora.Decoder`, a pure function that can be
differentiated twice, and :class:`metabench.tasks.models.language.lora_peft.PeftDecoder`, any model
of the library transformers under the library peft. Both are frozen, and take low-rank deltas as
arguments: W x + (alpha / r) B A x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import Params
from metabench.core.errors import UnknownName

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

Cache = list[Any]
"""What a model keeps of the tokens so far, for itself alone to read; empty at first."""


class Adapter(NamedTuple):
    """Deltas by name, "3.q.A" [r, inputs] and "3.q.B" [outputs, r] for layer 3, and alpha / r.

    A leading dimension of all of them, [n, r, inputs], is that of n adaptations at once.
    """

    deltas: Params
    scale: float


class CausalLM(ABC):
    """A frozen model: ids and adapters in, a distribution over the next token out."""

    layers: int
    context: int | None = None
    """Tokens of the longest text that it was made for; None: not known."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where ids go in."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of tokens."""

    @abstractmethod
    def linear(self, layer: int, target: str) -> Tensor:
        """Weight [outputs, inputs] of a linear map; ``target`` is a key of ``TARGETS``."""

    @abstractmethod
    def adapter(self, deltas: Params, scale: float) -> Adapter:
        """Deltas in the type that they are multiplied in."""

    @abstractmethod
    def hidden(
        self,
        ids: Tensor,
        adapters: Sequence[Adapter] = (),
        cache: Cache | None = None,
        left: Tensor | None = None,
    ) -> Tensor:
        """Last features [..., n, T, width] of ids [..., n, T], padded on the right if at all.

        Under adapters of m adaptations ids are [m, n, T], or [n, T], the same for each. ``cache``
        holds what came before, and is extended. ``left`` [n]: how many tokens at the beginning of
        each row are padding, where rows are padded on the left instead.
        """

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """Logits [..., vocabulary] of last features [..., width]."""

    @abstractmethod
    def repeated(self, cache: Cache, n: int) -> Cache:
        """What is kept of one row, n times."""

    def logits(
        self, ids: Tensor, adapters: Sequence[Adapter] = (), cache: Cache | None = None
    ) -> Tensor:
        """[..., n, T, vocabulary] of ids, as :meth:`hidden` takes them."""
        return self.head(self.hidden(ids, adapters, cache))

    def surprise(
        self, ids: Tensor, adapters: Sequence[Adapter] = (), wanted: Tensor | None = None
    ) -> Tensor:
        """-log p [..., n, T - 1] of every token but the first; float32 at least.

        Where ``wanted`` [..., n, T - 1] is 0 nothing is asked, and 0 comes back: the vocabulary,
        most of a small model's work, is gone through for the other tokens alone.
        """
        return self._read(ids, adapters, wanted, _lost)[0]

    def read(
        self, ids: Tensor, adapters: Sequence[Adapter] = (), wanted: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The surprise of every token but the first, and whether it is the likeliest one there
        (where it is wanted), both [..., n, T - 1]."""
        lost, right = self._read(ids, adapters, wanted, _lost, _likeliest)
        return lost, right

    def _read(
        self,
        ids: Tensor,
        adapters: Sequence[Adapter],
        wanted: Tensor | None,
        *ways: Callable[[Tensor, Tensor], Tensor],
    ) -> list[Tensor]:
        """What each way says of logits [..., vocabulary] and the tokens that followed."""
        x = self.hidden(ids, adapters)[..., :-1, :]
        following = ids[..., 1:].expand(x.shape[:-1])
        if wanted is None or autodiff.is_functional():  # under vmap shapes cannot depend on data
            logits = self.head(x)
            return [way(logits, following) for way in ways]
        asked = (wanted > 0).expand(x.shape[:-1])
        logits, following = self.head(x[asked.to(x.device)]), following[asked]
        said = [way(logits, following) for way in ways]
        return [y.new_zeros(asked.shape).masked_scatter(asked, y) for y in said]

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
                weight = self.linear(i, name)
                outputs, inputs = weight.shape
                a = 2 * torch.rand(rank, inputs, generator=gen, dtype=torch.float64) - 1
                out[f"{i}.{name}.A"] = (a * inputs**-0.5).to(weight.device, dtype)
                out[f"{i}.{name}.B"] = torch.zeros(outputs, rank, dtype=dtype, device=weight.device)
        return out

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

        def draw(scores: Tensor) -> Tensor:
            if temperature == 0:
                return scores.argmax(-1)
            # Drawn on the CPU: the same draws on every device.
            shares = (scores / temperature).softmax(-1).double().cpu()
            edges = shares.cumsum(-1)
            u = torch.rand(n, 1, generator=gen, dtype=torch.float64) * edges[:, -1:]
            chosen = torch.searchsorted(edges, u, right=True)[:, 0].to(self.device)
            return chosen.clamp(max=shares.shape[-1] - 1)

        cache = Cache()
        given = torch.tensor([list(prompt)], device=self.device)
        first = self.hidden(given, adapters, cache)[:, -1]  # the prompt is read once
        stops = [] if stop is None else [stop]
        scores = self.head(first).expand(n, -1)
        return self._grown(scores, tokens, draw, stops, adapters, self.repeated(cache, n), None)

    @torch.no_grad()
    def continued(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        adapters: Sequence[Adapter] = (),
        stops: Collection[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Greedy continuations of n prompts: ids and what counts, as :meth:`sample` gives them,
        [n, tokens], or [m, n, tokens] under adapters of m adaptations."""
        longest = max(map(len, prompts))
        left = torch.tensor([longest - len(p) for p in prompts], device=self.device)
        rows = [[0] * (longest - len(p)) + list(p) for p in prompts]
        given = torch.tensor(rows, device=self.device)
        many = [next(iter(a.deltas.values())) for a in adapters]
        if m := [len(v) for v in many if v.ndim == 3]:
            given = given.expand(m[0], -1, -1)
        cache = Cache()
        scores = self.head(self.hidden(given, adapters, cache, left)[..., -1, :])
        return self._grown(
            scores, tokens, lambda x: x.argmax(-1), list(stops), adapters, cache, left
        )

    def _grown(
        self,
        scores: Tensor,
        tokens: int,
        choose: Callable[[Tensor], Tensor],
        stops: list[int],
        adapters: Sequence[Adapter],
        cache: Cache,
        left: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens one by one, from the first one's logits on."""
        shape = scores.shape[:-1]
        ids = torch.zeros(*shape, tokens, dtype=torch.int64, device=self.device)
        counts = torch.zeros(*shape, tokens, device=self.device, dtype=torch.float32)
        going = torch.ones(shape, dtype=torch.bool, device=self.device)
        ends = torch.tensor(stops, dtype=torch.int64, device=self.device)
        for t in range(tokens):
            chosen = choose(wide(scores)).to(self.device)
            ids[..., t], counts[..., t] = torch.where(going, chosen, 0), going.to(counts)
            going = going & ~torch.isin(chosen, ends)
            if t + 1 == tokens or not bool(going.any()):
                break
            x = self.hidden(chosen.unsqueeze(-1), adapters, cache, left)
            scores = self.head(x[..., -1, :])
        return ids, counts


def _lost(logits: Tensor, following: Tensor) -> Tensor:
    """-log p of one token each."""
    return -wide(logits).log_softmax(-1).gather(-1, following.unsqueeze(-1))[..., 0]


def _likeliest(logits: Tensor, following: Tensor) -> Tensor:
    """Whether no token is likelier than the one that followed."""
    return logits.argmax(-1) == following


def wide(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
