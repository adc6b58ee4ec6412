"""Groups of options become parameters of the commands, in their place and with their defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

from metabench.cli.options import Choice, Jobs, Launch, with_options

NAMES = [f.name for f in fields(Choice)]
LAUNCH = [f.name for f in fields(Launch)]


def test_fields_stand_where_their_group_stood() -> None:
    got = []

    @with_options()
    def command(name: str, choice: Choice, launch: Launch, jobs_after: Jobs = None) -> None:
        """A command."""
        got.append((name, choice, launch, jobs_after))

    shown = inspect.signature(command).parameters
    assert list(shown) == ["name", *NAMES, *LAUNCH, "jobs_after"]
    assert command.__doc__ == "A command." and shown["budget"].default == "laptop"
    defaults = {p.name: p.default for p in shown.values() if p.default is not p.empty}
    command(name="x", **defaults)
    command(name="y", **{**defaults, "budget": "smoke", "ranks": 2, "jobs_after": 3})
    assert got[0] == ("x", Choice(), Launch(), None)
    assert got[1] == ("y", replace(Choice(), budget="smoke"), replace(Launch(), ranks=2), 3)


def test_an_option_that_is_left_out_keeps_its_default() -> None:
    got = []

    @with_options(without="only")
    def command(choice: Choice) -> None:
        got.append(choice)

    shown = inspect.signature(command).parameters
    assert list(shown) == [name for name in NAMES if name != "only"]
    command(**{p.name: p.default for p in shown.values()})
    assert got == [Choice()]
