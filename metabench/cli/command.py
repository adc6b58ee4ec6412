"""A command of the command line: its help, what of it was typed, and options that come as one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Any, cast, get_type_hints

from typer.core import TyperCommand

from metabench.core.text import unwrapped, without_markup

_RUNNING: ContextVar[Any] = ContextVar("_RUNNING", default=None)


class Verb(TyperCommand):
    """A command of which :func:`typed` can tell, while it runs, what was typed. Newer typer has a
    click of its own, so that ``click.get_current_context`` knows of no command. Its help is its
    function's docstring, wrapped anew and without markup."""

    def __init__(self, *given: Any, help: str | None = None, **named: Any) -> None:
        told = None if help is None else without_markup(unwrapped(help))
        super().__init__(*given, help=told, **named)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        before = _RUNNING.set(ctx)
        try:
            return super().invoke(ctx)
        finally:
            _RUNNING.reset(before)


def running() -> Any:
    """The context of the command that runs; None where none does."""
    return _RUNNING.get()


def typed(*names: str) -> list[str]:
    """Which of these parameters of the running command stand on its command line, as options are
    written. A default, or a value from the environment, was not typed for this command."""
    context = running()
    sources = {} if context is None else {n: context.get_parameter_source(n) for n in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]


def refuse(names: Iterable[str], why: str) -> None:
    """Raise SettingError for the first of these parameters that was typed where it has no use."""
    from metabench.core.errors import SettingError

    if given := typed(*names):
        raise SettingError(f"{given[0]}: {why}")


Command = Callable[..., None]


def with_options(*, without: str = "") -> Callable[[Command], Command]:
    """Decorator: where a command has a parameter that is a dataclass, the command line has the
    fields of that dataclass as options, but for ``without``, which keeps its default."""

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        shown: list[Parameter] = []
        groups: dict[str, tuple[type, list[str]]] = {}
        for parameter in signature(function).parameters.values():
            kind = hints[parameter.name]
            if is_dataclass(kind):
                inside = get_type_hints(kind, include_extras=True)
                taken = [f for f in fields(kind) if f.name != without]
                groups[parameter.name] = (cast(type, kind), [f.name for f in taken])
                shown += [
                    Parameter(
                        f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=inside[f.name]
                    )
                    for f in taken
                ]
            else:
                shown.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))

        @functools.wraps(function)
        def command(**given: Any) -> None:
            for name, (kind, taken) in groups.items():
                given[name] = kind(**{field: given.pop(field) for field in taken})
            function(**given)

        command.__annotations__ = {p.name: p.annotation for p in shown}
        command.__signature__ = Signature(shown)  # type: ignore[attr-defined]
        return command

    return decorate
