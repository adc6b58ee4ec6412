"""What a method is given: the problem, and how its episodes are worked through.

One after another ("loop"), all at once by vmap ("vmap"), or by vmap with each outer step replayed
from a captured CUDA graph ("graph").
"""

from __future__ import annotations

from typing import Literal

from metabench.contract.context import Context
from metabench.contract.parallel.at_once import Graphs, cuda_graph
from metabench.contract.parallel.process_group import ProcessGroup
from metabench.contract.problem import Problem
from metabench.contract.seeds import Seeds
from metabench.core.cell import Cell
from metabench.core.errors import SettingError
from metabench.run.options import Parts, RunOptions


def context(
    cell: Cell,
    parts: Parts,
    problem: Problem,
    seeds: Seeds,
    options: RunOptions,
    group: ProcessGroup,
) -> Context:
    """What the method is given of the problem, the engine chosen. Raises SettingError where a graph
    is asked for and cannot be captured."""
    task, method, solver, budget = parts
    spread = problem.episodes_per_step > 1
    cuda = options.device.type == "cuda"
    engine: Literal["loop", "vmap"] = "vmap" if options.engine == "vmap" else "loop"
    if options.engine == "graph":
        check_capturable(cell, parts, problem, options, group)
        engine = "vmap"
    elif not method.batched or solver.by_examples:
        engine = "loop"
    elif options.engine == "auto":
        pays = cuda or problem.batched_on_cpu
        engine = "vmap" if pays and spread else "loop"
    return Context(
        problem,
        solver,
        seeds,
        task.offers,
        budget=budget,
        device=options.device,
        engine=engine,
        workers=group.agree(options.workers if spread and not cuda else 1),
        adapted_at_once=adapted_at_once(problem, options),
        group=group,
        graphs=Graphs(cuda_graph) if options.engine == "graph" else None,
    )


def adapted_at_once(problem: Problem, options: RunOptions) -> int:
    """How many episodes an evaluation adapts by one vmap, where the method can: that it trains in
    another way, or on other episodes, does not matter."""
    together = problem.episodes_per_step
    at_once = problem.adapted_at_once
    if options.engine == "loop":
        return 1
    if options.engine != "auto" or options.device.type == "cuda":
        return together
    if at_once is not None:
        return at_once
    return together if problem.batched_on_cpu else 1


def check_capturable(
    cell: Cell, parts: Parts, problem: Problem, options: RunOptions, group: ProcessGroup
) -> None:
    """Raise SettingError, naming what is in the way of a captured graph."""
    _, method, solver, _ = parts
    name = cell.method
    for fine, why in (
        (options.device.type == "cuda", f"needs a CUDA device, not {options.device}"),
        (group.world == 1, "needs one process, and no further ranks"),
        (problem.episodes_per_step > 1, "needs several episodes an outer step"),
        (method.batched and not solver.by_examples, f"needs {name} over vmap"),
        (method.capturable, f"needs a capturable method, which {name} is not here"),
        (problem.capturable, f"needs a capturable task, which {cell.task} is not"),
    ):
        if not fine:
            raise SettingError(f'engine "graph" {why}; "vmap" is the same without a graph')


def named(ctx: Context) -> str:
    """How episodes are worked through: "loop", "vmap", or "graph"."""
    return ctx.engine if ctx.graphs is None else "graph"
