"""A small suite, a method that fails as told, and commands typed in this process."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from metabench.cli.main import app

SUITE = """
title = "Small"
metric = "loss"
goal = "min"
command = "metabench reproduce small.toml"
plots = ["learning"]
[budgets.smoke]
seeds = [0]
outer_steps = 2
eval_every = 1
valid_episodes = 1
test_episodes = 1
[budgets.laptop]
seeds = [0, 1]
outer_steps = 3
eval_every = 1
valid_episodes = 1
test_episodes = 1
[budgets.paper]
seeds = [0]
outer_steps = 4
[[columns]]
id = "one"
task = "quadratic"
[[columns]]
id = "four"
task = "quadratic"
set.task = { dim = 4 }
[[rows]]
id = "reverse"
label = "Unrolling"
method = "bilevel"
chosen = "own"
set.method = { inner_steps = 3 }
[[rows]]
id = "maml"
method = "maml"
chosen = "own"
[[paper]]
row = "reverse"
column = "one"
value = 0.0
source = "closed form"
label = "derived"
"""
BAD_METHOD = '''"""Fails, or not, as told."""
from dataclasses import dataclass
from metabench.core.errors import Diverged
from metabench.contract.gradient_method import GradientMethod
from metabench.core.registry import methods

@methods.register("bad")
@dataclass(frozen=True)
class Bad(GradientMethod):
    """Fails, or not, as told."""
    how: str = "fail"

    @property
    def needs(self):
        return frozenset()

    def step(self, ctx, state):
        if self.how == "sleep":
            import time
            time.sleep(0.02)
            return state, {}
        if self.how == "diverge":
            raise Diverged("the sky fell")
        raise RuntimeError("no way")
'''


class Typed:
    """What a command gave: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def rows(self) -> list[list[str]]:
        return [re.split(r"\s{2,}", line.strip()) for line in self.out.splitlines()]


def metabench(*words: str) -> Typed:
    done = CliRunner().invoke(app, list(words), prog_name="metabench")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Typed(done.exit_code, done.stdout, done.stderr)
