"""Whether the command line takes a command: it is parsed, and nothing is run."""

from __future__ import annotations

import shlex

import typer

from metabench.cli.main import app

COMMAND = typer.main.get_command(app)
VERBS = COMMAND.commands  # type: ignore[attr-defined]


def parsed(command: str) -> None:
    """Fail where the command line would refuse the words of a command."""
    _, *words = shlex.split(command, comments=True)
    place, info = COMMAND, "metabench"
    while True:
        with place.make_context(info, [*words], resilient_parsing=False) as context:
            rest = [*context._protected_args, *context.args]
            if not hasattr(place, "resolve_command"):
                return
            name, found, words = place.resolve_command(context, rest)
            assert name is not None and found is not None, command
            place, info = found, name
