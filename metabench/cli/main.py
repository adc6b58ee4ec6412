"""The command line. Each command checks its words, calls the verb in :mod:`metabench.api`, prints.

Exit codes: 0 all is well, 1 a cell or a check failed or lacks its data or a package, 2 a name, a
value or a file that cannot be, 130 interrupted. A mistake of the user is one line without a
traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from metabench.cli import (
    arena_commands,
    comparison_command,
    data_printing,
    leaderboard_commands,
    printing,
    rank_commands,
    suite_commands,
)
from metabench.cli import cluster_commands as cluster
from metabench.cli.options import StorePath, Verb, typed_path
from metabench.core.text import counted

if TYPE_CHECKING:
    from metabench.store.merge import Merged

PLUGIN = "--plugin"


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
            printing.say(f"error: {error}{notes}", err=True, color=typer.colors.RED)
            wrong_words = isinstance(error, UnknownName | SettingError | SuiteError)
            raise typer.Exit(2 if wrong_words else 1) from None
        except KeyboardInterrupt:
            raise _interrupted() from None
        except OSError as error:
            if error.filename is None:  # nothing that was named: see metabench.__main__
                raise
            text = f"error: {error.filename}: {error.strerror}"
            printing.say(text, err=True, color=typer.colors.RED)
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
data_app = typer.Typer()
store_app = typer.Typer(no_args_is_help=True)
app.add_typer(store_app, name="store", help="Stores of records: merge them, import published ones.")
app.add_typer(
    data_app,
    name="data",
    help="Data sets: where they are (without a command), fetch them, verify them.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        printing.say(version("metabench"))
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


@app.command("list", cls=Verb)
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="tasks, methods, solvers, suites or arenas; all without.")
    ] = None,
) -> None:
    """Tasks, methods, solvers, suites and arenas, a line each; "list suites" adds papers, the data
    that is needed and whether it is here, and what published runs took."""
    from metabench.core.catalogue import listing

    out, found = printing.console(), listing(kind.removesuffix("s") if kind else None)
    if kind is not None and "suite" in found:
        from metabench.suites.listing import listed_suites

        printing.print_suites(out, listed_suites())
        return
    printing.print_listing(out, found)
    if kind is None:
        printing.prose(
            out, "\npapers of suites, the data they need, and times: metabench list suites"
        )


@app.command(cls=Verb)
def show(
    name: Annotated[str, typer.Argument(help="Its name, or the path of a .toml file.")],
    kind: Annotated[
        str | None, typer.Option("--kind", help="task, method, solver, suite or arena.")
    ] = None,
) -> None:
    """What a task, method, solver, suite or arena is: settings with defaults, needs, source."""
    from metabench import api

    printing.print_descriptions(printing.console(), api.show(name, kind))


for verb in (
    suite_commands.plan,
    suite_commands.run,
    suite_commands.status,
    suite_commands.table,
    suite_commands.plot,
    suite_commands.report,
    suite_commands.publish,
    suite_commands.reproduce,
    suite_commands.cost,
    suite_commands.calibrate,
    arena_commands.arena,
    rank_commands.rank,
    leaderboard_commands.leaderboard,
    comparison_command.compare,
    cluster.submit,
    cluster.retry,
    cluster.cancel,
    cluster.logs,
):
    app.command(cls=Verb)(verb)


@app.command(cls=Verb)
def doctor(
    ctx: typer.Context, store: StorePath = None, profile: cluster.MaybeCluster = None
) -> None:
    """Versions, devices, data, a cluster; what is missing, and the command that repairs it."""
    from metabench.api.examination import examine
    from metabench.core.errors import SettingError
    from metabench.store.store import Store

    if profile is not None:
        if ctx.obj:
            raise SettingError(f"{PLUGIN}: plug-ins are tried on this machine: leave out --cluster")
        from metabench.cluster import probe
        from metabench.cluster.profile import load

        findings = probe.examine(load(profile), Store(store))
    else:
        findings = examine(Store(store), ctx.obj)
    printing.print_findings(printing.console(), findings)
    raise typer.Exit(int(any(f.bad for f in findings)))


@app.command(cls=Verb)
def check(
    name: Annotated[str, typer.Argument(help="A method or a task, often from a --plugin.")],
) -> None:
    """Check a method or a task against every promise of the contract."""
    from metabench import api

    failed = 0
    for what, how, untested in api.check(name):
        if untested:
            printing.say(f"-       {what}: not tested: {untested}")
        elif how:
            failed += 1
            printing.say(f"FAILED  {what}: {how}", color=typer.colors.RED)
        else:
            printing.say(f"ok      {what}")
    printing.say(
        f"{name} fails {counted(failed, 'check')}" if failed else f"{name} passes every check"
    )
    raise typer.Exit(int(failed > 0))


@app.command(cls=Verb)
def new(
    kind: Annotated[str, typer.Argument(help="method or task.")],
    name: Annotated[str, typer.Argument(help="Its name, which is also the name of its file.")],
) -> None:
    """Write a method or a task to start from: it runs at once, and passes the checks."""
    from metabench.api.scaffold import new, next_commands

    path = new(kind, name)
    printing.say(f"wrote {path}; next:")
    for command in next_commands(kind, path):
        printing.say(f"    {command}")


@data_app.callback(invoke_without_command=True)
def _data(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        data_list()


@data_app.command("list", cls=Verb)
def data_list() -> None:
    """Every data set that is known: where it is, or what brings it; source, licence, sizes,
    checksums, and what to copy to a machine without network."""
    from metabench.datasets import locate

    data_printing.print_data(printing.console(), locate.status())


@data_app.command("fetch", cls=Verb)
def data_fetch(
    name: Annotated[str, typer.Argument(help="A data set.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", parser=typed_path("--to"), metavar="DIR", help="Instead of the cache."
        ),
    ] = None,
) -> None:
    """Download a data set, check it and unpack it; goes on with what has come already."""
    from metabench.datasets import fetch

    with data_printing.downloading(printing.console(stderr=True)) as progress:
        folder = fetch.fetch(name, to=to, progress=progress)
    printing.say(f"{name} is in {folder}")


@data_app.command("verify", cls=Verb)
def data_verify(
    name: Annotated[
        str | None, typer.Argument(help="A data set; without, all that are here.")
    ] = None,
) -> None:
    """Check every file of a data set against its size and checksum."""
    from metabench import api

    verdicts = api.data_verify(name)
    data_printing.print_verdicts(printing.console(), verdicts)
    raise typer.Exit(int(any(v.wrong for v in verdicts)))


@store_app.command("merge", cls=Verb)
def store_merge(
    sources: Annotated[
        list[Path],
        typer.Argument(parser=typed_path("STORE"), metavar="STORE...", help="Folders of stores."),
    ],
    into: Annotated[
        Path,
        typer.Option(
            "--into", parser=typed_path("--into"), metavar="DIR", help="The store to add to."
        ),
    ],
) -> None:
    """Copy what one store lacks from others; results that differ are told, and not copied."""
    from metabench.store.merge import merge
    from metabench.store.store import Store

    merged = merge([Store(path) for path in sources], Store(into))
    _tell_merged(merged)


@store_app.command("import", cls=Verb)
def store_import(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Published records: results/*/*/records.jsonl.gz."),
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            "--into",
            parser=typed_path("--into"),
            metavar="DIR",
            envvar="METABENCH_STORE",
            show_default="results/runs",
            help="The store to add to.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the files and count; write nothing.")
    ] = False,
) -> None:
    """Put published records into a store, for table, plot and report to work with; what the store
    has already stays, and results that differ are told."""
    from metabench.store.merge import merge
    from metabench.store.published import Published
    from metabench.store.store import Store

    _tell_merged(merge([Published(file) for file in files], Store(into), dry_run=dry_run))


def _tell_merged(merged: Merged) -> None:
    for text in (*merged.conflicts, *merged.bad):
        printing.say(str(text), err=True, color=typer.colors.RED)
    for text in merged.running:
        printing.say(f"{text}: is being run, left alone")
    printing.say(str(merged))
    raise typer.Exit(int(bool(merged.conflicts or merged.bad)))
