"""The commands about what runs cost: cost, calibrate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metabench.cli.command import refuse, typed, with_options
from metabench.cli.options import OF_SUITES, BudgetName, Choice, OneSuite, StorePath
from metabench.cli.printing import terminal
from metabench.cli.printing.cells import tell_bad_files, tell_nothing, title_of
from metabench.cli.printing.costs import print_costs, print_estimates

if TYPE_CHECKING:
    from metabench.api.calibration import ProblemCalibration


@with_options()
def cost(
    choice: Choice,
) -> None:
    """Hours that runs took, by method; what is left; and how good past estimates were."""
    from metabench.api import spending
    from metabench.suites.planning import TO_RUN

    choice.check_store()
    out, kept = terminal.console(), choice.open_store()
    if choice.whole_store:
        refuse(OF_SUITES, "nothing is chosen of a whole store: name a suite")
        records, bad = kept.scan()
        tell_bad_files(bad)
        print_costs(out, kept.place, spending.by_method(records))
    else:
        plans, bad = choice.scanned()
        tell_bad_files(bad)
        for each, planned in plans:
            rows = spending.by_row(planned, TO_RUN)
            print_costs(out, title_of(each, choice.budget), rows)
            tell_nothing(each, planned, kept)
    print_estimates(out, spending.estimates(kept))


def calibrate(
    suite: OneSuite,
    budget: BudgetName = "laptop",
    store: StorePath = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what is known, too.")] = False,
) -> None:
    """Measure what gradients and products cost on a suite's problems, for its table of costs. Of an
    arena what its file says of each problem, or of those of --budget: ``prices`` and
    ``smoothness``; nothing is kept."""
    from metabench import api
    from metabench.api.calibration import calibrate_arena

    if (arena := Choice(suite, budget).arena()) is not None:
        file = suite if suite.endswith(".toml") else f"the file of {suite}"
        refuse(["store"], f"what is measured of an arena is kept in no store, but put into {file}")
        refuse(["again"], "nothing of an arena is kept, so that every call measures all again")
        played = budget if typed("budget") else None
        calibrate_arena(arena, budget=played, listener=_in_the_words_of_a_file)
        return
    found = api.calibrate(
        suite,
        budget=budget,
        store=store,
        again=again,
        listener=lambda what: typer.echo(f"measured {what}", err=True),
    )
    for why in found.without:
        typer.secho(f"no prices: {why}", fg=typer.colors.YELLOW, err=True)
    for one in found.prices:
        of = ", ".join(f"{name} {price:.3g}" for name, price in one.of.items())
        typer.echo(f"{one.task} [{one.key[:8]}]: {of}")


def _in_the_words_of_a_file(found: ProblemCalibration) -> None:
    """Two lines for an arena's file, under the problem's name."""
    of = ", ".join(f"{name} = {price:.2g}" for name, price in found.prices.of.items())
    typer.echo(f"# {found.problem}")
    if found.smoothness is not None:
        typer.echo(f"smoothness = {found.smoothness:.3g}")
    typer.echo(f"prices = {{ {of} }}")
