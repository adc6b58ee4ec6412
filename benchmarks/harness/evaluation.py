"""Adaptation at evaluation, one episode after another and several by one vmap, in one process.

A case is a row and column of a suite at a budget. Both ways, and the loop with a network of the
library's operations, as other packages have it, take turns on the same test episodes at the first
state, with one thread, and are timed in CPU seconds, so that other work on the machine does the
least harm; it still takes caches and memory bandwidth. Beside them stands the floor, the
convolutions alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import turns
from benchmarks.harness.floors import Convolutions

AGREE = 1e-3
"""Largest difference of the mean loss between the two ways, relative; in float32 a ReLU that flips
is seen. The library's batch norm has errors of its own, and its loss is shown, not judged."""


@dataclass(frozen=True)
class Case:
    """One row of a suite, at one of its columns."""

    suite: str
    row: str
    column: str
    budget: str = "laptop"

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.row}-{self.column}"


CASES = (
    *(
        Case("omniglot", row, column)
        for row in ("maml", "anil", "reptile", "bilevel")
        for column in ("5w1s", "5w5s")
    ),
    *(Case("quickstart", row, "5w5s") for row in ("maml", "bilevel", "protonet", "fixed")),
    *(Case("few-shot-cifarfs", row, "5w1s") for row in ("maml", "anil", "bilevel")),
)


@contextmanager
def of_the_library() -> Iterator[None]:
    """Networks by the library's convolution, batch norm and loss, which autograd differentiates."""
    from unittest import mock

    from torch.nn import functional as F

    from metabench.tasks.models import networks

    def batch_norm(x: Any, scale: Any, shift: Any) -> Any:
        return F.batch_norm(x, None, None, scale, shift, training=True)

    with (
        mock.patch.object(networks.fused, "applies", lambda *_, **__: False),
        mock.patch.object(networks, "batch_norm", batch_norm),
    ):
        yield


def convolutions(task: Any, images: int, size: list[int], steps: int) -> Any:
    """A function that does the convolutions of one episode's adaptation in ``steps`` that move the
    body; with 0 those of its features."""
    import torch

    case = {"net": task.downsample, "size": size[-1], "channels": size[0], "filters": task.filters}
    times = [(steps or 1, steps, steps)] * 4
    work = Convolutions.of(case, images, times, torch.float32)
    return lambda: [f() for f in work]


def measure(case: Case, episodes: int, repeats: int) -> dict:
    """CPU ms an episode of each way and of what is around it, peak bytes of tensors, and how far
    the two ways' results are apart."""
    import torch

    from metabench.contract.context import Context
    from metabench.contract.seeds import Seeds
    from metabench.core.cell import instances
    from metabench.hypergradients.tensor_memory import Footprint
    from metabench.suites import loading

    torch.set_num_threads(1)
    items = loading.load(case.suite).cells(case.budget)
    cell = next(i.cell for i in items if (i.row, i.column) == (case.row, case.column))
    task, method, solver, budget = instances(cell)
    seeds = Seeds.of(cell.seed)
    problem = task.build(seeds, torch.device("cpu"))
    chosen = problem.adapted_at_once or 1
    # Where the rule says one after another, what it turns down is measured.
    most = chosen if chosen > 1 else min(8, episodes)

    def context(at_once: int) -> Context:
        return Context(problem, solver, seeds, task.offers, budget=budget, adapted_at_once=at_once)

    ways = {"loop": context(1), "vmap": context(most)}
    state = method.init(ways["loop"])
    steps = method.inner_steps if method.test_steps is None else method.test_steps
    some = problem.episodes("test", range(episodes))

    def adapted(ctx: Context, some: list) -> list:
        def each(part):
            def one(episode):
                return method.adapt(ctx, state, episode)

            if len(part) == 1:
                return [one(part[0])]
            return ctx.at_once(one, part, steps=max(1, steps or 0))

        with ctx.uncounted():
            return ctx.in_chunks(each, some, ctx.adapted_at_once or 1)

    def judged(thetas: list) -> list:
        return [problem.metrics(state.lam, t, e) for t, e in zip(thetas, some, strict=True)]

    names = "library", "loop", "vmap", "draw", "metrics", "floor"
    times: dict[str, list[float]] = {name: [] for name in names}

    def timed(name: str, f, keep: bool):
        began = time.process_time()
        out = f()
        if keep:
            times[name].append((time.process_time() - began) * 1e3 / episodes)
        return out

    (theta,) = adapted(ways["loop"], some[:1])
    body = [k for k in theta if k.startswith("conv")]
    moves = any(not torch.equal(theta[k], state.lam[k]) for k in body)
    inner = some[0].batch(0)["x"]
    least = convolutions(task, len(inner), list(inner.shape[1:]), (steps or 0) if moves else 0)
    thetas = {}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, ctx in ways.items():
            thetas[name] = timed(name, partial(adapted, ctx, some), turn > 0)
        with of_the_library():
            thetas["library"] = timed("library", partial(adapted, ways["loop"], some), turn > 0)
        timed("floor", lambda: [least() for _ in some], turn > 0)
        timed("draw", lambda: problem.episodes("test", range(episodes)), turn > 0)
        found = timed("metrics", partial(judged, thetas["vmap"]), turn > 0)

    peaks = {}
    for name, ctx in ways.items():
        with Footprint() as held:
            adapted(ctx, some[: ctx.adapted_at_once])
        peaks[name] = int(held.peak)
    each = [judged(thetas["loop"]), judged(thetas["library"]), found]
    losses = [sum(x["loss"] for x in one) for one in each]
    library_gap, gap = (abs(x - losses[0]) / max(abs(losses[0]), 1e-30) for x in losses[1:])
    return {
        "case": asdict(case),
        "images": len(inner),
        "size": list(inner.shape[1:]),
        "queries": len(some[0].outer["y"]),
        "steps": steps or 0,
        "filters": task.filters,
        "downsample": task.downsample,
        "chosen": chosen,
        "at_once": most,
        "ms": {name: [min(t), median(t), max(t)] for name, t in times.items()},
        "peak_bytes": peaks,
        "gap": gap,
        "library_gap": library_gap,
        "agrees": gap <= AGREE,
    }


def show(found: dict) -> None:
    """The case as text."""
    case, ms = found["case"], {name: t[1] for name, t in found["ms"].items()}
    around = ms["draw"] + ms["metrics"]
    says = "taken" if found["chosen"] > 1 else "NOT taken: the rule says one after another"
    print(
        f"\n{case['suite']} {case['row']} {case['column']}: {found['downsample']} net, "
        f"{found['filters']} filters, images {'x'.join(map(str, found['size']))}; "
        f"{found['images']} in an inner step, {found['steps']} steps, {found['queries']} queries"
    )
    said = {
        "library": "the library's",
        "loop": "one after another",
        "vmap": f"{found['at_once']} at once",
    }
    for name, what in said.items():
        least, middle, most = found["ms"][name]
        peak = found["peak_bytes"].get(name)
        print(
            f"  {what:18s} {middle:8.2f} ms an episode ({least:.2f} to {most:.2f})"
            + (f"   peak {peak / 1e6:6.1f} MB" if peak else "")
        )
    own = ms["vmap"] if found["chosen"] > 1 else ms["loop"]
    print(
        f"  floor: convolutions alone {ms['floor']:.2f} ms; the library's / floor "
        f"{ms['library'] / ms['floor']:.2f}x, what is taken / floor {own / ms['floor']:.2f}x"
    )
    print(
        f"  against the library's: {ms['library'] / own:.2f}x; with drawing ({ms['draw']:.2f} ms) "
        f"and metrics ({ms['metrics']:.2f} ms) {(ms['library'] + around) / (own + around):.2f}x"
    )
    print(
        f"  at once / one after another: {ms['loop'] / ms['vmap']:.2f}x, {says}; losses "
        f"{found['gap']:.0e} apart"
        + ("" if found["agrees"] else ": DO NOT AGREE")
        + f", the library's {found['library_gap']:.0e}"
    )


def main(names: list[str], episodes: int, repeats: int, out: Path | None, note: str) -> int:
    """Measure the cases whose names match; 1 where the two ways disagree, 2 where none matches."""
    import fnmatch

    cases = [c for c in CASES if any(fnmatch.fnmatch(c.name, p) for p in names)]
    if not cases:
        print("\n".join(c.name for c in CASES))
        return 2
    about = {**turns.machine(), "conditions": note}
    print(
        f"{about['processor']}, {about['cores']} cores, torch {about['torch']}; CPU milliseconds "
        f"an episode, medians of {repeats}, {episodes} test episodes at the first state, one thread"
        + (f"; {note}" if note else "")
    )
    results = []
    for case in cases:
        results.append(measure(case, episodes, repeats))
        show(results[-1])
        if out is not None:
            out.write_text(json.dumps({"machine": about, "cases": results}, indent=1) + "\n")
    return 0 if all(found["agrees"] for found in results) else 1
