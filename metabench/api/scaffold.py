"""``metabench new``: a method or a task to start from, in one file that already works."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
from importlib import resources
from pathlib import Path
from string import Template

from metabench.core.errors import MetabenchError, SettingError, UnknownName
from metabench.core.registry import REGISTRIES
from metabench.suites.schema import GROUPS

KINDS = ("method", "task")
CHECK = {"method": "quadratic", "task": "bilevel"}
"""What a new method, or a new task, is first crossed with."""


def new(kind: str, name: str, folder: str | Path = ".") -> Path:
    """Write a "method" or a "task" to start from into ``folder``, as ``name``.py; its path.

    Raises UnknownName for another kind, SettingError for a name that cannot be one or is taken,
    MetabenchError where the file exists already.
    """
    if kind not in KINDS:
        raise UnknownName("template for a", kind, KINDS)
    if keyword.iskeyword(name):
        raise SettingError(
            f"{name!r} cannot be the name of a {kind}: it is a word of Python; "
            f"near: {suggestion(name)}"
        )
    if not name.isidentifier() or not name.isascii():
        near = suggestion(name)
        raise SettingError(
            f"{name!r} cannot be the name of a {kind}: write letters, digits and _, starting with "
            f"a letter{f'; near: {near}' if near else ''}"
        )
    if name.startswith("_"):
        raise SettingError(
            f"{name!r} cannot be the name of a {kind}: files with a leading _ are "
            f"helpers; near: {name.lstrip('_') or kind}"
        )
    for other, registry in REGISTRIES.items():
        if name in registry.names():
            raise SettingError(f"there is a {other} called {name!r} already; near: my_{name}")
    if name in GROUPS:  # a table's row or column could not be told from it
        raise SettingError(
            f"{name!r} cannot be the name of a {kind}: --set {name}.NAME=VALUE means all of them; "
            f"near: my_{name}"
        )
    path = Path(folder) / f"{name}.py"
    if not path.exists() and importlib.util.find_spec(name) is not None:
        raise SettingError(
            f"there is a Python module called {name!r} already, which the file would hide; "
            f"near: my_{name}"
        )
    template = (resources.files("metabench.api") / "templates" / f"{kind}.py.txt").read_text(
        encoding="utf-8"
    )
    called = class_name(name)
    if called in re.findall(r"\w+", template):  # it would hide what the file imports or defines
        called += kind.capitalize()
    text = Template(template).substitute(name=name, class_name=called)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise MetabenchError(f"{path} exists already; it is left as it is") from None
    except OSError as error:
        raise MetabenchError(f"cannot write {path}: {error.strerror}") from None
    return path


def class_name(name: str) -> str:
    """ "my_method" as "MyMethod"."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_") if part)


def suggestion(name: str) -> str:
    """A name like this one that can be one; empty where nothing is left of it."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    plain = plain.strip("_")
    if plain and (plain[0].isdigit() or keyword.iskeyword(plain)):
        plain = f"my_{plain}"
    return plain


def next_commands(kind: str, path: Path) -> list[str]:
    """What to type next; each of them works as it stands."""
    name, file = path.stem, shlex.quote(str(path))
    plugin = f"--plugin {file}"
    cross = {
        "method": f"--task {CHECK['method']} --method {name}",
        "task": f"--task {name} --method {CHECK['task']}",
    }[kind]
    rank = [f"metabench rank {file} --quick"] if kind == "method" else []
    return [
        f"metabench show {name} {plugin}",
        f"metabench check {name} {plugin}",
        f"metabench reproduce {cross} --budget smoke {plugin}",
        *rank,
    ]
