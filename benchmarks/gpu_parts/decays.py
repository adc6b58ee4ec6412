"""Part "decays": a decay a weight of a ViT-B, 87 million hyperparameters, in plain steps.

lam = log decays, one for each weight; inner loss = cross-entropy + 1/2 sum exp(lam) theta^2, outer
loss = cross-entropy on other images. Weights and images are random: what a step costs does not
depend on them, and nothing here learns. Fused attention has no second derivative, so attention is
the library's written-out form throughout, in plain steps too.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_parts.bench import MB, Bench, apart
from metabench.contract import autodiff
from metabench.contract.context import Context
from metabench.contract.problem import GRADIENTS, Batch, Episode, Params, Problem
from metabench.contract.seeds import Seeds
from metabench.core.registry import methods, solvers
from metabench.run import determinism

LR = 1e-3
CLASSES = 1000
LOG_DECAY = -7.0
CLOSE = 1e-3
"""Largest difference of the float32 hypergradient with the identity for the inverse Hessian from
-exp(lam) theta grad F, over the largest entry."""

ROWS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("ift, identity", "ift", {"inverse": "identity"}, "sgd"),
    ("ift, Neumann, 3 terms", "ift", {"terms": 3}, "sgd"),
    ("ift, conjugate gradient, 3 terms", "ift", {"terms": 3, "inverse": "cg"}, "sgd"),
    ("ift, Neumann, 10 terms", "ift", {"terms": 10}, "sgd"),
    ("sgld, 5 steps, no noise", "sgld", {"inner_steps": 5, "burn_in": 0.0}, "sgd"),
    ("sgld, 5 steps", "sgld", {"inner_steps": 5, "burn_in": 0.0}, "langevin"),
)
"""Name, method, settings, inner solver; IFT takes one inner step."""


class Block(nn.Module):
    """A transformer's block, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, t, width]."""
        n, t, width = x.shape
        parts = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021), where torchvision's is not there."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, 1000] of images [n, 3, size, size]."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def network(miniature: bool) -> tuple[nn.Module, int, str]:
    """The network, the side of its images, and what it is."""
    torch.manual_seed(0)
    if miniature:
        return ViT(32, 8, 24, 2, 3), 32, "a ViT of two blocks"
    try:
        vision: Any = importlib.import_module("torchvision.models")
    except ImportError:
        return ViT(224, 16, 768, 12, 12), 224, "ViT-B/16, written here"
    net = vision.vit_b_16()
    nn.init.normal_(net.heads.head.weight, std=0.02)  # zeros would stop every gradient below
    return net, 224, "torchvision's vit_b_16"


class Decays(Problem):
    """One training of the network, carried from step to step."""

    carried = True

    def __init__(self, net: nn.Module, side: int, images: int, device: torch.device) -> None:
        self.net = net.to(device).train()
        gen = torch.Generator().manual_seed(1)
        self.batches = [
            {
                "x": torch.randn(images, 3, side, side, generator=gen).to(device),
                "y": torch.randint(CLASSES, (images,), generator=gen).to(device),
            }
            for _ in range(2)
        ]

    def init_outer(self) -> Params:
        """One log decay a weight."""
        return {k: torch.full_like(v, LOG_DECAY) for k, v in self.net.named_parameters()}

    def init_inner(self, lam: Params, episode: Episode) -> Params:
        """The network's own first weights."""
        return {k: v.detach() for k, v in self.net.named_parameters()}

    def fit(self, theta: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(functional_call(self.net, theta, (batch["x"],)), batch["y"])

    def diagonal_penalty(self, lam: Params) -> Params:
        """exp(lam)."""
        return {k: v.exp() for k, v in lam.items()}

    def unpenalised_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Cross-entropy alone."""
        return self.fit(theta, batch)

    def inner_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Cross-entropy and decays."""
        decays = [(lam[k].exp() * v.square()).sum() for k, v in theta.items()]
        return self.fit(theta, batch) + 0.5 * torch.stack(decays).sum()

    def outer_loss(self, lam: Params, theta: Params, batch: Batch) -> Tensor:
        """Cross-entropy on the other images."""
        return self.fit(theta, batch)

    def episode(self, split: str, index: int) -> Episode:
        """Always the same images."""
        return Episode(self.batches[0], self.batches[1], index)


class Plain:
    """A step of gradient descent on the same loss, in torch alone."""

    def __init__(self, problem: Decays) -> None:
        lam = problem.init_outer()
        self.decay = [v.exp() for v in lam.values()]
        self.problem, self.lam = problem, lam
        self.theta = {k: v.clone().requires_grad_() for k, v in problem.net.named_parameters()}

    def __call__(self) -> None:
        weights = list(self.theta.values())
        loss = self.problem.fit(self.theta, self.problem.batches[0])
        grads = list(torch.autograd.grad(loss, weights))
        with torch.no_grad():
            torch._foreach_add_(grads, torch._foreach_mul(weights, self.decay))
            torch._foreach_add_(weights, grads, alpha=-LR)


def run(bench: Bench) -> None:
    """The plain step, the check, and every row."""
    net, side, kind = network(bench.miniature)
    images = 2 if bench.miniature else 16
    with determinism.fixed(bench.device), sdpa_kernel(SDPBackend.MATH):
        problem = Decays(net, side, images, bench.device)
        number = sum(p.numel() for p in net.parameters())
        held = sum(p.numel() * p.element_size() for p in net.parameters())
        step = Plain(problem)
        plain = bench.timed(step, share=0.05)
        del step
        bench.row("plain step", note=f"{kind}, batches of {images}, float32", numbers=number,
                  weights_mb=held / MB, **plain)  # fmt: skip
        with bench.part_of("identity for the inverse, against its formula"):
            check(bench, problem)
        for name, method, settings, solver in ROWS:
            with bench.part_of(name):
                step_of(bench, problem, name, method, settings, solver, plain)


def context(bench: Bench, problem: Decays, solver: str) -> Context:
    """With that inner solver."""
    offers = GRADIENTS | {"lam_in_inner_loss", "inner_loss", "best_response"}
    return Context(problem, solvers.get(solver)(), Seeds.of(0), offers, device=bench.device)


def check(bench: Bench, problem: Decays) -> None:
    """-exp(lam) theta grad_theta F, by torch alone."""
    ctx = context(bench, problem, "sgd")
    method = methods.get("ift")(inner_steps=0, inverse="identity")
    lam, episode = problem.init_outer(), problem.episode("train", 0)
    theta = problem.init_inner(lam, episode)
    found = method.hypergradient(ctx, lam, theta, episode)
    _, v = autodiff.grad(lambda t: problem.fit(t, episode.outer), theta)
    wanted = {k: -(lam[k].exp() * theta[k] * v[k]) for k in lam}
    gap = apart(found.grad, wanted)
    bench.row("identity for the inverse, against its formula", ok=gap <= CLOSE, error=gap)


def step_of(
    bench: Bench, problem: Decays, name: str, method: str, settings: dict[str, Any], solver: str,
    plain: dict[str, Any],
) -> None:  # fmt: skip
    """Time and memory of outer steps of one row."""
    given = {"inner_lr": LR, "outer_lr": 1e-3, "outer_solver": "sgd", **settings}
    if method == "ift":
        given = {"inner_steps": 1, **given}
        if given.get("inverse", "neumann") == "neumann":
            given |= {"growth_limit": 1e9}
        if given.get("inverse") == "cg":
            given |= {"indefinite": "truncate"}
    made = methods.get(method)(**given)
    ctx = context(bench, problem, solver)
    state = made.init(ctx)

    def step() -> None:
        nonlocal state
        state, _ = made.step(ctx, state)
        ctx.step += 1

    found = bench.timed(step, warm_ups=1, repeats=5, share=0.2)
    finite = all(bool(torch.isfinite(v).all()) for v in state.lam.values())
    ratio = float(found["ms"] or 0) / float(plain["ms"])
    memory = None
    if found["peak_mb"] is not None:
        memory = found["peak_mb"] / plain["peak_mb"]
    note = "noise is drawn on the host, number by number" if solver == "langevin" else ""
    bench.row(name, ok=finite, note=note, inner_steps=made.inner_steps, plain_steps=ratio,
              times_plain_memory=memory, **found)  # fmt: skip
