"""Part "lora": self-edits in bfloat16, several LoRA deltas adapted one at a time and in batches.

The decoder is this project's functional one (``tasks/models/language/lora.py``) at the sizes of
Llama-3.2-1B, with random weights: what a step costs does not depend on them. The same edits adapted
in float32 say what half precision does to where training ends.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu_parts.bench import Bench
from metabench.contract.problem import Params
from metabench.core.registry import solvers
from metabench.run import determinism

RANK, SCALE, LR = 8, 2.0, 1e-3
LOSSES = 0.005
"""Largest difference of a loss after adaptation in bfloat16 from float32's, as a part of it."""
GAIN = 0.05
"""The same of how far adaptation has lowered the loss, as a part of that. Adam's first steps are
the signs of gradients, and near zero rounding flips them."""


def sizes(miniature: bool) -> dict[str, int]:
    """Of the model, and of the edits."""
    if miniature:
        return {
            "layers": 2, "width": 32, "inner": 64, "heads": 4, "groups": 2, "vocabulary": 50,
            "edits": 4, "documents": 2, "tokens": 12, "steps": 3,
        }  # fmt: skip
    return {
        "layers": 16, "width": 2048, "inner": 8192, "heads": 32, "groups": 8, "vocabulary": 128256,
        "edits": 16, "documents": 4, "tokens": 128, "steps": 5,
    }  # fmt: skip


def decoder(s: dict[str, int], device: torch.device) -> Any:
    """A decoder with random weights, float32; its embedding is its head."""
    lora: Any = importlib.import_module("metabench.tasks.models.language.lora")
    causal: Any = importlib.import_module("metabench.tasks.models.language.causal")
    gen = torch.Generator(device).manual_seed(0)
    head = s["width"] // s["heads"]
    narrow = s["groups"] * head
    shapes = {
        "q": (s["width"], s["width"]), "k": (narrow, s["width"]), "v": (narrow, s["width"]),
        "o": (s["width"], s["width"]), "gate": (s["inner"], s["width"]),
        "up": (s["inner"], s["width"]), "down": (s["width"], s["inner"]),
    }  # fmt: skip

    def drawn(*shape: int) -> torch.Tensor:
        return 0.02 * torch.randn(*shape, generator=gen, device=device, dtype=torch.float32)

    ones = torch.ones(s["width"], device=device, dtype=torch.float32)
    weights = {
        "model.embed_tokens.weight": drawn(s["vocabulary"], s["width"]), "model.norm.weight": ones,
    }  # fmt: skip
    for i in range(s["layers"]):
        at = f"model.layers.{i}"
        weights |= {f"{at}.{k}.weight": ones for k in ("input_layernorm",
                                                       "post_attention_layernorm")}  # fmt: skip
        weights |= {f"{at}.{causal.TARGETS[k]}.weight": drawn(*v) for k, v in shapes.items()}
    steps = torch.arange(0, head, 2, device=device, dtype=torch.float32) / head
    return lora.Decoder(
        weights, s["layers"], s["heads"], s["groups"], 1e-5, 500000.0**-steps, 1.0, None
    )


def halved(whole: Any) -> Any:
    """The same decoder in bfloat16."""
    return replace(whole, weights={k: v.bfloat16() for k, v in whole.weights.items()})


class Edits:
    """Texts of random tokens, and where their deltas start."""

    def __init__(self, s: dict[str, int], device: torch.device) -> None:
        self.lora: Any = importlib.import_module("metabench.tasks.models.language.lora")
        self.s = s
        gen = torch.Generator().manual_seed(1)
        shape = (s["edits"], s["documents"], s["tokens"])
        self.ids = torch.randint(s["vocabulary"], shape, generator=gen).to(device)
        self.device = device

    @property
    def tokens(self) -> int:
        """Read in all steps of all edits."""
        s = self.s
        return s["edits"] * s["documents"] * s["tokens"] * s["steps"]

    def starts(self, model: Any, targets: list[str]) -> list[Params]:
        """Deltas in float32: their B is zero."""
        gen = torch.Generator().manual_seed(2)
        out = []
        for _ in range(self.s["edits"]):
            made: Params = {}
            for i in range(model.layers):
                for name in targets:
                    outputs, inputs = model.linear(i, name).shape
                    a = torch.randn(RANK, inputs, generator=gen, dtype=torch.float32)
                    made[f"{i}.{name}.A"] = (a / inputs**0.5).to(self.device)
                    made[f"{i}.{name}.B"] = torch.zeros(
                        outputs, RANK, device=self.device, dtype=torch.float32
                    )
            out.append(made)
        return out

    def loss(self, model: Any, theta: Params, ids: torch.Tensor) -> torch.Tensor:
        """Of several deltas [n]."""
        lost: torch.Tensor = model.surprise(ids, [model.adapter(theta, SCALE)]).mean((-2, -1))
        return lost

    def adapted(self, model: Any, starts: list[Params], at_once: int) -> list[Params]:
        """Deltas after all steps, part by part."""
        parts = []
        for a in range(0, len(starts), at_once):
            ids = self.ids[a : a + at_once]
            parts.append(
                self.lora.adapt(
                    lambda theta, ids=ids: self.loss(model, theta, ids),
                    self.lora.stacked(starts[a : a + at_once]),
                    steps=self.s["steps"], lr=LR, solver=solvers.get("adam")(),
                )
            )  # fmt: skip
        return parts

    @torch.no_grad()
    def losses(self, model: Any, parts: list[Params]) -> torch.Tensor:
        """Of every edit under its own delta [edits], float32 on the CPU."""
        out, a = [], 0
        for theta in parts:
            n = len(next(iter(theta.values())))
            out.append(self.loss(model, theta, self.ids[a : a + n]).float())
            a += n
        return torch.cat(out).cpu()


def run(bench: Bench) -> None:
    """Float32 for reference, then bfloat16 at several batch sizes."""
    s = sizes(bench.miniature)
    with determinism.fixed(bench.device):
        whole = decoder(s, bench.device)
        edits = Edits(s, bench.device)
        starts = edits.starts(whole, ["q", "v"])
        number = sum(v.numel() for v in whole.weights.values())
        about = f"{number / 1e6:.1f} M weights, " + ", ".join(f"{k} {v}" for k, v in s.items())
        before = edits.losses(whole, [edits.lora.stacked([x]) for x in starts])
        some = min(4, s["edits"])
        single = edits.adapted(whole, starts[:some], 1)
        wanted = edits.losses(whole, single)
        bench.row("float32, reference", note=about, loss_before=float(before[:some].mean()),
                  loss_after=float(wanted.mean()))  # fmt: skip
        half = halved(whole)
        del whole
        if bench.cuda:
            torch.cuda.empty_cache()
        alone: float | None = None
        for at_once in sorted({1, some, s["edits"]}):
            name = f"bfloat16, {at_once} at once"
            with bench.part_of(name):
                found = bench.timed(
                    lambda n=at_once: edits.adapted(half, starts, n), warm_ups=1, repeats=5,
                    share=0.25,
                )  # fmt: skip
                after = edits.losses(half, edits.adapted(half, starts, at_once))[:some]
                far = float(((after - wanted).abs() / wanted).max())
                gain = before[:some] - wanted
                lost = float(((after - wanted).abs() / gain.abs()).max())
                rate = 1e3 * edits.tokens / float(found["ms"] or 0)
                alone = alone or rate
                bench.row(
                    name, ok=far <= LOSSES and lost <= GAIN, tokens_per_s=rate,
                    times_one_at_a_time=rate / alone, loss_error=far, gain_error=lost, **found,
                )  # fmt: skip
