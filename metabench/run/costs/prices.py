"""Measuring what each count costs on a problem, in inner gradients.

A count says how often something was done; methods that use different things are compared by what
those take on the problem at hand. Each is timed alone, in turn with the others so that a busy
moment of the machine falls on all of them, and the median over rounds is what it costs. On a CPU
with one thread that is CPU time, which other processes do not stretch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from metabench.contract import autodiff
from metabench.contract.problem import GRADIENTS, Params, Problem
from metabench.contract.seeds import Seeds
from metabench.core import settings
from metabench.core.errors import NotApplicable
from metabench.run import determinism
from metabench.store.prices import Prices

ROUNDS = 9
LONGEST = 20.0
"""Seconds after which no further round begins, from the third on."""
SHORTEST = 0.005
"""Seconds that a measured piece takes at least: shorter operations are repeated in it."""
POWERS = 50
"""Products of a power iteration: enough for two digits, which a range of step sizes needs."""


def measure(task: Any, device: torch.device | None = None, *, seed: int = 0) -> Prices:
    """The prices of a task's problem. Raises NotApplicable where it has no gradients to count in,
    DataMissing."""
    device = device or torch.device("cpu")
    if "outer_gradient" not in task.offers:
        raise NotApplicable(f"{task.registered_name} has no gradients to measure costs in")
    seeds = Seeds.of(seed)
    with determinism.fixed(device):
        problem = task.build(seeds, device)
        threads = determinism.intra_op_threads(problem.episodes_per_step > 1)
        torch.set_num_threads(threads)
        determinism.seed_globals(seeds.method, device)
        seconds = _timed(operations(problem, second_order=task.offers >= GRADIENTS), device)
    inner = seconds["inner_gradients"]
    return Prices(
        task.registered_name,
        settings.values(task),
        {name: round(taken / inner, 4) for name, taken in seconds.items()},
        inner,
        str(determinism.facts()["machine"].get("processor", "")),
        threads,
        str(torch.__version__),
    )


def smoothness(task: Any, device: torch.device | None = None, *, seed: int = 0) -> float:
    """L: the largest absolute eigenvalue of the inner Hessian at the first (lam, theta), by power
    iteration from a random vector. Steps of plain descent are stable below 2 / L there.

    Raises NotApplicable where the task has no second derivatives, DataMissing.
    """
    device = device or torch.device("cpu")
    if not task.offers >= GRADIENTS:
        raise NotApplicable(f"{task.registered_name} has no second derivatives in the inner loss")
    seeds = Seeds.of(seed)
    with determinism.fixed(device):
        problem = task.build(seeds, device)
        determinism.seed_globals(seeds.method, device)
        lam = problem.init_outer()
        episode = problem.prepare(lam, problem.episode("train", 0))
        theta = autodiff.detach(problem.init_inner(lam, episode))
        leaf = autodiff.leaf(theta)
        loss = problem.inner_loss(lam, leaf, episode.batch(0))
        gradient = torch.autograd.grad(loss, [*leaf.values()], create_graph=True)
        curved = [i for i, g in enumerate(gradient) if g.requires_grad]
        v, length = [torch.randn_like(g) for g in gradient], 0.0  # its length is gone after a step
        for _ in range(POWERS if curved else 0):
            found = torch.autograd.grad(
                [gradient[i] for i in curved],
                [*leaf.values()],
                [v[i] for i in curved],
                retain_graph=True,
                materialize_grads=True,
            )
            length = float(autodiff.norm(dict(zip(leaf, found, strict=True))))
            if not length:
                break
            v = [x / length for x in found]
    return length


def operations(problem: Problem, *, second_order: bool = True) -> dict[str, Callable[[], object]]:
    """One of each count on the first training episode, at the first values: what the meter counts
    as one, done once."""
    lam = problem.init_outer()
    episode = problem.prepare(lam, problem.episode("train", 0))
    theta = autodiff.detach(problem.init_inner(lam, episode))
    inner, outer = episode.batch(0), episode.outer

    def value() -> object:
        with torch.no_grad():
            return problem.inner_loss(lam, theta, inner)

    def outer_gradient() -> object:
        both = {"lam": lam, "theta": theta}
        leaves = {k: autodiff.leaf(v) for k, v in both.items()}
        loss = problem.outer_loss(leaves["lam"], leaves["theta"], outer)
        flat = [x for part in leaves.values() for x in part.values()]
        return torch.autograd.grad(loss, flat, allow_unused=True) if loss.requires_grad else None

    out: dict[str, Callable[[], object]] = {
        "inner_gradients": lambda: autodiff.grad(
            lambda p: problem.inner_loss(lam, p, inner), theta
        ),
        "outer_gradients": outer_gradient,
        "function_evaluations": value,
    }
    if not second_order or problem.field(lam, theta, inner) is not None:
        return out
    # Products are counted beside the gradient that they differentiate, so its graph is ready.
    leaf, of = autodiff.leaf(theta), autodiff.leaf(lam)
    loss = problem.inner_loss(of, leaf, inner)
    names = list(leaf)
    first = torch.autograd.grad(loss, [leaf[k] for k in names], create_graph=True)
    around = [torch.randn_like(leaf[k], dtype=leaf[k].dtype) for k in names]
    moving = [(g, v) for g, v in zip(first, around, strict=True) if g.requires_grad]

    def product(wanted: Params) -> Callable[[], object]:
        grads, vectors = [g for g, _ in moving], [v for _, v in moving]
        at = [*wanted.values()]
        return lambda: torch.autograd.grad(grads, at, vectors, retain_graph=True, allow_unused=True)

    if moving:
        out |= {"hvps": product(leaf), "mixed_products": product(of)}
    return out


def _timed(pieces: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Median seconds of each piece once; call with the number of threads set."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter

    def taken(piece: Callable[[], object], n: int) -> float:
        start = clock()
        for _ in range(n):
            piece()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (clock() - start) / n

    repeats = {}
    for name, piece in pieces.items():
        taken(piece, 2)
        repeats[name] = max(1, round(SHORTEST / max(taken(piece, 1), 1e-9)))
    found: dict[str, list[float]] = {name: [] for name in pieces}
    begun = time.perf_counter()
    for n in range(ROUNDS):
        if n >= 3 and time.perf_counter() - begun > LONGEST:
            break
        for name, piece in pieces.items():
            found[name].append(taken(piece, repeats[name]))
    return {name: statistics.median(values) for name, values in found.items()}
