"""Any causal model of the library transformers, its low-rank deltas applied by the library peft.

For large models: fused attention, half precision, layers spread over several GPUs, and every
architecture that names its linear maps as Llama does. First derivatives only, no vmap, and one
adaptation after another. peft's modules hold no numbers of ours: the deltas stand in for their
parameters while a model runs (torch.func.functional_call), one thread at a time.
"""

from __future__ import annotations

import importlib
import inspect
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metabench.contract import autodiff
from metabench.contract.problem import Params
from metabench.core.errors import MetabenchError

from .causal import TARGETS, Adapter, Cache, CausalLM


class PeftDecoder(CausalLM):
    """A model of transformers; adapters become peft's, made when first met."""

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()
        self.layers = int(model.config.num_hidden_layers)
        self.context = getattr(model.config, "max_position_embeddings", None)
        self._maps = dict(_named_maps(model))
        self._wrapped: Any = None
        self._names: dict[tuple[Any, ...], str] = {}
        self._active: list[str] | None = None
        self._lock = threading.RLock()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Of the embedding."""
        return self._embedding.device

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self._embedding)

    @property
    def _embedding(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def linear(self, layer: int, target: str) -> Tensor:
        """Weight [outputs, inputs] of a linear map. Raises MetabenchError where there is none."""
        path = self._path(layer, target)
        module = self.model.get_submodule(path)
        weight: Tensor = getattr(module, "base_layer", module).weight
        return weight

    @property
    def _cache_argument(self) -> str:
        """What the model calls its cache: transformers renamed it in 5.24, model by model."""
        known = inspect.signature(self.model.get_decoder().forward).parameters
        return "cache" if "cache" in known else "past_key_values"

    def _path(self, layer: int, target: str) -> str:
        if (layer, target) not in self._maps:
            raise MetabenchError(
                f"a model of type {self.model.config.model_type!r} has no linear map "
                f"{TARGETS[target]!r} in layer {layer}"
            )
        return self._maps[layer, target]

    def adapter(self, deltas: Params, scale: float) -> Adapter:
        """As they are: peft multiplies in the deltas' own type."""
        return Adapter(deltas, scale)

    def hidden(
        self,
        ids: Tensor,
        adapters: Sequence[Adapter] = (),
        cache: Cache | None = None,
        left: Tensor | None = None,
    ) -> Tensor:
        """Last features. Raises MetabenchError under vmap and forward mode."""
        if autodiff.is_functional():
            raise MetabenchError(
                "a model under peft has no vmap and no forward mode: set adapter to 'functional', "
                "or meta_batch to 1"
            )
        sizes = {len(v) for a in adapters for v in a.deltas.values() if v.ndim == 3}
        if not sizes:
            return self._one(ids, adapters, cache, left)
        (m,) = sizes
        kept: list[Cache | None] = [None] * m
        if cache is not None:
            cache += [Cache() for _ in range(m - len(cache))]
            kept = list(cache)
        return torch.stack([
            self._one(ids[j] if ids.ndim == 3 else ids, [_nth(a, j) for a in adapters], kept[j],
                      left)
            for j in range(m)
        ])  # fmt: skip

    def _one(
        self, ids: Tensor, adapters: Sequence[Adapter], cache: Cache | None, left: Tensor | None
    ) -> Tensor:
        """Of one adaptation."""
        more: dict[str, Any] = {"use_cache": cache is not None}
        past = 0
        if cache is not None:
            if not cache:
                cache.append(importlib.import_module("transformers").DynamicCache())
            more[self._cache_argument] = cache[0]
            past = cache[0].get_seq_length()
        if left is not None:
            at = torch.arange(past + ids.shape[-1], device=ids.device) - left[:, None]
            more["attention_mask"] = (at >= 0).long()
            more["position_ids"] = at[:, past:].clamp(min=0)
        with self._lock:
            values = self._in_place(adapters)
            body = self.model.get_decoder()
            found = torch.func.functional_call(body, values, (ids,), {**more, "return_dict": True})
        features: Tensor = found.last_hidden_state
        return features

    def _in_place(self, adapters: Sequence[Adapter]) -> Params:
        """The deltas by the names of peft's parameters in the body, these adapters active."""
        values = Params()
        names = []
        for number, (deltas, scale) in enumerate(adapters):
            name = self._name(number, deltas, scale)
            names.append(name)
            for key, value in deltas.items():
                layer, target, side = key.split(".")
                path = self._path(int(layer), target).removeprefix(self._prefix)
                values[f"{path}.lora_{side}.{name}.weight"] = value
        if self._wrapped is not None and names != self._active:
            self._active = names
            tuner = self._wrapped.base_model
            if names:
                tuner.set_adapter(names)
                tuner.enable_adapter_layers()
            else:
                tuner.disable_adapter_layers()
        return values

    @property
    def _prefix(self) -> str:
        """What the names of the body's modules begin with in the whole model."""
        body = self.model.get_decoder()
        return next(f"{name}." for name, module in self.model.named_modules() if module is body)

    def _name(self, number: int, deltas: Params, scale: float) -> str:
        """Of peft's adapter for deltas of these shapes in this place; made where there is none."""
        paths = sorted({self._path(int(k.split(".")[0]), k.split(".")[1]) for k in deltas})
        rank = next(v for k, v in deltas.items() if k.endswith("A")).shape[0]
        key = (number, rank, scale, tuple(paths))
        if key not in self._names:
            peft: Any = importlib.import_module("peft")
            name = f"metabench{len(self._names)}"
            config = peft.LoraConfig(
                r=rank, lora_alpha=scale * rank, lora_dropout=0.0, target_modules=paths
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are several adapters
                if self._wrapped is None:
                    self._wrapped = peft.get_peft_model(self.model, config, adapter_name=name)
                else:
                    self._wrapped.add_adapter(name, config)
            self.model.requires_grad_(False)
            self._active = None
            self._names[key] = name
        return self._names[key]

    def head(self, x: Tensor) -> Tensor:
        """By the model's own last layer."""
        last = self.model.get_output_embeddings()
        found: Tensor = last(x.to(last.weight.device))
        return found.to(self.device)

    def repeated(self, cache: Cache, n: int) -> Cache:
        """What is kept of one row, n times."""
        for part in cache:
            part.batch_repeat_interleave(n)
        return cache


def _nth(adapter: Adapter, j: int) -> Adapter:
    """One adaptation's deltas; those that all share stay."""
    return Adapter({k: v[j] if v.ndim == 3 else v for k, v in adapter.deltas.items()},
                   adapter.scale)  # fmt: skip


def _named_maps(model: Any) -> list[tuple[tuple[int, str], str]]:
    """(layer, target) and path of every linear map that can have a delta."""
    ends = {path: target for target, path in TARGETS.items()}
    out = []
    for name, module in model.named_modules():
        where, _, rest = name.rpartition("layers.")
        number, _, path = rest.partition(".")
        if where and number.isdigit() and path in ends and hasattr(module, "weight"):
            out.append(((int(number), ends[path]), name))
    return out
