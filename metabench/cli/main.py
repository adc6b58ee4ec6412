"""The command line. Each command checks its words, calls the verb in :mod:`metabench.api`, prints.

Exit codes: 0 all is well, 1 a cell or a check failed or lacks its data or a package, 2 a name, a
value or a file that cannot be (a plug-in that fails on import, a damaged file of published records
too), 130 interrupted. A mistake of the user is one line without a traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from metabench.cli.command import Verb
from metabench.cli.commands import (
    arena,
    comparison,
    costs,
    data,
    inventory,
    jobs,
    leaderboard,
    plugins,
    rank,
    results,
    running,
    store,
    submission,
)
from metabench.cli.options import PLUGIN
from metabench.cli.printing import terminal


class Commands(TyperGroup):
    """Commands whose errors read as one line, and ``--plugin FILE`` wherever it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move every ``--plugin FILE`` before the command."""
        front: list[str] = []
        rest: list[str] = []
        words = iter(args)
        for word in words:
            if word == "--":
                rest += [word, *words]
            elif word == PLUGIN:
                front += [word, *(w for w in (next(words, None),) if w is not None)]
            elif word.startswith(PLUGIN + "="):
                front.append(word)
            else:
                rest.append(word)
        return super().parse_args(ctx, [*front, *rest])

    def make_context(self, *given: Any, **named: Any) -> Any:
        """As click does, which says nothing where it is interrupted."""
        try:
            return super().make_context(*given, **named)
        except KeyboardInterrupt:
            raise _interrupted() from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; say what went wrong and choose the exit code."""
        from metabench.core.errors import MetabenchError, SettingError, SuiteError, UnknownName

        try:
            return super().invoke(ctx)
        except MetabenchError as error:
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
            terminal.say(f"error: {error}{notes}", err=True, color=typer.colors.RED)
            wrong_words = isinstance(error, UnknownName | SettingError | SuiteError)
            raise typer.Exit(2 if wrong_words else 1) from None
        except KeyboardInterrupt:
            raise _interrupted() from None
        except OSError as error:
            if error.filename is None:  # nothing that was named: see metabench.__main__
                raise
            text = f"error: {error.filename}: {error.strerror}"
            terminal.say(text, err=True, color=typer.colors.RED)
            raise typer.Exit(1) from None


def _interrupted() -> typer.Exit:
    typer.secho("interrupted", fg=typer.colors.RED, err=True)
    return typer.Exit(130)


app = typer.Typer(
    cls=Commands,
    help="Benchmarks for meta-learning and bilevel optimisation: from a suite to a table.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store.app, name="store", help="Stores of records: merge them, import published ones.")
app.add_typer(
    data.app,
    name="data",
    help="Data sets: where they are (without a command), fetch them, verify them.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        terminal.say(version("metabench"))
        raise typer.Exit


@app.callback()
def _common(
    ctx: typer.Context,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            PLUGIN,
            metavar="FILE",
            help="A Python file that registers tasks, methods or "
            "solvers. May stand anywhere in a command, and be repeated.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="The version.")
    ] = False,
) -> None:
    from metabench.core.registry import load_plugin, load_plugins

    ctx.obj = plugin or []
    if ctx.invoked_subcommand != "doctor":  # it tries them itself, and says which ones fail
        load_plugins()
        for path in ctx.obj:
            load_plugin(path)


COMMANDS: dict[str, Callable[..., None]] = {
    "list": inventory.list_,
    "show": inventory.show,
    "plan": running.plan,
    "run": running.run,
    "status": running.status,
    "table": results.table,
    "plot": results.plot,
    "report": results.report,
    "publish": results.publish,
    "reproduce": results.reproduce,
    "cost": costs.cost,
    "calibrate": costs.calibrate,
    "arena": arena.arena,
    "rank": rank.rank,
    "leaderboard": leaderboard.leaderboard,
    "compare": comparison.compare,
    "submit": submission.submit,
    "retry": submission.retry,
    "cancel": jobs.cancel,
    "logs": jobs.logs,
    "doctor": inventory.doctor,
    "check": plugins.check,
    "new": plugins.new,
}
"""Name to function, in the order of the help."""

for name, function in COMMANDS.items():
    app.command(name, cls=Verb)(function)
