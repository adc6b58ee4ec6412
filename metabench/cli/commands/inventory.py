"""The commands about what there is: list, show, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from metabench.cli.options import PLUGIN, AnyPath, MaybeCluster
from metabench.cli.printing import terminal
from metabench.cli.printing.inventory import (
    print_descriptions,
    print_findings,
    print_listing,
    print_suites,
)


def list_(
    kind: Annotated[
        str | None, typer.Argument(help="tasks, methods, solvers, suites or arenas; all without.")
    ] = None,
) -> None:
    """Tasks, methods, solvers, suites and arenas, a line each; "list suites" adds papers, the data
    that is needed and whether it is here, and what published runs took."""
    from metabench.core.catalogue import listing

    out, found = terminal.console(), listing(kind.removesuffix("s") if kind else None)
    if kind is not None and "suite" in found:
        from metabench.suites.listing import listed_suites

        print_suites(out, listed_suites())
        return
    print_listing(out, found)
    if kind is None:
        terminal.prose(
            out, "\npapers of suites, the data they need, and times: metabench list suites"
        )


def show(
    name: Annotated[str, typer.Argument(help="Its name, or the path of a .toml file.")],
    kind: Annotated[
        str | None, typer.Option("--kind", help="task, method, solver, suite or arena.")
    ] = None,
) -> None:
    """What a task, method, solver, suite or arena is: settings with defaults, needs, source."""
    from metabench import api

    print_descriptions(terminal.console(), api.show(name, kind))


def doctor(ctx: typer.Context, store: AnyPath = None, profile: MaybeCluster = None) -> None:
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
    print_findings(terminal.console(), findings)
    raise typer.Exit(int(any(f.bad for f in findings)))
