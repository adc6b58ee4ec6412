"""Where the time of a suite of self-edits goes, and how long the suite will take.

    python -m benchmarks.self_edit_parts seal-knowledge --budget laptop
    python -m benchmarks.self_edit_parts seal-knowledge seal-prompts --budget laptop --cpu

Each different setting of a row is measured once on one core, warm: drawing the actions of one
passage, training and rewarding them, a gradient of the M-step, and one evaluation (an action
drawn, trained on and judged). A cell is then rounds x passages x (draw + reward + M-steps), and
evaluations. ``--cpu`` takes processor seconds, for a machine that does other work meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from metabench.contract.method import Context, State
from metabench.contract.seeds import Seeds, generator
from metabench.core.cell import instances
from metabench.suites import loading as suites

PARTS = ("draw", "reward", "m_step", "evaluation")


def main() -> int:
    """Measure, and print a line a row and the suite's seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--budget", default="laptop")
    parser.add_argument("--columns", type=int, help="measure the first ones, for all")
    parser.add_argument("--set", default="{}", help="task settings over the suite's, as JSON")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", help="also write the numbers to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if given.cpu else time.perf_counter
    out = []
    for name in given.suites:
        suite = suites.load(name)
        seeds = suite.budget(given.budget).seeds
        chosen = [c.id for c in suite.columns][: given.columns]
        total, known = 0.0, dict[str, dict[str, float]]()
        for item in suite.cells(given.budget, seeds=seeds[:1]):
            if item.column not in chosen:
                continue
            item.cell.task_settings.update(json.loads(given.set))
            row = measured(item.cell, known, clock)
            row |= {"suite": name, "row": item.row, "column": item.column}
            total += row["cell"]
            out.append(row)
            told = ", ".join(f"{part} {row[part]:.2f}" for part in PARTS if part in row)
            print(
                f"{name} {item.row}/{item.column}: {row['cell']:.0f} s a seed ({told})", flush=True
            )
        total *= len(seeds) * len(suite.columns) / len(chosen)
        print(
            f"{name} --budget {given.budget}: {total / 60:.1f} minutes of one core, and the model"
        )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"settings": vars(given), "rows": out}, file, indent=1)
    return 0


def measured(
    cell: Any, known: dict[str, dict[str, float]], clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of each part, and of the cell."""
    task, method, solver, budget = instances(cell)
    rounds = budget.outer_steps
    asks = [cell.task_settings, cell.method_settings, rounds > 0]
    key = json.dumps(asks, sort_keys=True)
    if key not in known:
        problem = task.build(Seeds.of(cell.seed), torch.device("cpu"))
        ctx = Context(problem, solver, Seeds.of(cell.seed), task.offers, budget=budget)
        known[key] = parts(ctx, method, clock, learns=rounds > 0)
    found = known[key]
    judged = budget.test_episodes + budget.valid_episodes * (rounds // budget.eval_every + 1)
    seconds = judged * found["evaluation"]
    if rounds:
        seconds += rounds * task.meta_batch * (found["draw"] + found["reward"])
        seconds += rounds * task.meta_batch * method.epochs * found["m_step"]
    return {**found, "cell": seconds}


def parts(
    ctx: Context, method: Any, clock: Callable[[], float], *, learns: bool
) -> dict[str, float]:
    """Seconds of each part, on the first training and the first test passage."""
    problem, out = ctx.problem, dict[str, float]()
    state: State = method.init(ctx)
    judge = problem.episode("test", 0)
    method.adapt(ctx, state, judge)  # buffers, and whatever is made at first use

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = clock()
        done = work()
        out[name] = clock() - begun
        return done

    def evaluation() -> None:
        theta = method.adapt(ctx, state, judge)
        with torch.no_grad():
            problem.metrics(state.lam, theta, judge)

    timed("evaluation", evaluation)
    if learns:
        e, lam = problem.episode("train", 0), state.lam
        gen = generator("seconds")
        actions = timed("draw", lambda: problem.sample(lam, e, method.samples, gen))
        timed("reward", lambda: problem.rewards(lam, e, actions))
        first = {k: v[:1] for k, v in actions.items()}
        timed("m_step", lambda: method.slope(ctx, lam, (e, first)))
    return out


if __name__ == "__main__":
    sys.exit(main())
