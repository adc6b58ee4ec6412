"""The commands for authors of methods and tasks: new, check."""

from __future__ import annotations

from typing import Annotated

import typer

from metabench.cli.printing import terminal
from metabench.core.text import counted


def check(
    name: Annotated[str, typer.Argument(help="A method or a task, often from a --plugin.")],
) -> None:
    """Check a method or a task against every promise of the contract."""
    from metabench import api

    failed = 0
    for what, how, untested in api.check(name):
        if untested:
            terminal.say(f"-       {what}: not tested: {untested}")
        elif how:
            failed += 1
            terminal.say(f"FAILED  {what}: {how}", color=typer.colors.RED)
        else:
            terminal.say(f"ok      {what}")
    terminal.say(
        f"{name} fails {counted(failed, 'check')}" if failed else f"{name} passes every check"
    )
    raise typer.Exit(int(failed > 0))


def new(
    kind: Annotated[str, typer.Argument(help="method or task.")],
    name: Annotated[str, typer.Argument(help="Its name, which is also the name of its file.")],
) -> None:
    """Write a method or a task to start from: it runs at once, and passes the checks."""
    from metabench.api.scaffold import new, next_commands

    path = new(kind, name)
    terminal.say(f"wrote {path}; next:")
    for command in next_commands(kind, path):
        terminal.say(f"    {command}")
