"""Where tasks, methods and inner solvers are found: folders, installed packages, plug-in files.

Listing reads file names and docstrings; a module is imported only when its entry is asked for,
so that ``metabench list`` never pays for torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

from metabench.core.environment import garbage
from metabench.core.errors import (
    MetabenchError,
    SettingError,
    SuiteError,
    UnknownName,
    WrongPath,
)
from metabench.core.text import listed, one_line

T = TypeVar("T")
Finds = Literal["any", "spawned", "this"]
"""Processes that find a registered name."""
_PLUGIN = "metabench_plugin_"
"""Before the name of a plug-in file, as a module."""


@dataclass(frozen=True)
class Entry:
    """One registered name: where it comes from and what its author says of it in a line."""

    name: str
    origin: str
    summary: str


class Registry:
    """Names of one kind, each backed by a dataclass of settings.

    Built-ins are the files of ``package`` (file name = registered name). Third parties declare
    entry points in ``group``; a single file can be added with :func:`load_plugin`. ``base`` is the
    full name of the class that all of them derive from.
    """

    def __init__(self, kind: str, package: str, group: str, base: str = "builtins.object") -> None:
        self.kind, self.package, self.group, self.base = kind, package, group, base
        self._classes: dict[str, type] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: make the dataclass known as ``name``.

        Raises :class:`MetabenchError` if another module has already taken the name, a built-in
        that nobody has asked for yet included: the cells of the two would have the same keys. Also
        if the class does not derive from ``base``, or lacks a function that it must have.
        """

        def add(cls: type[T]) -> type[T]:
            if self.base not in {f"{c.__module__}.{c.__qualname__}" for c in cls.__mro__}:
                base = f"metabench.{self.base.rpartition('.')[2]}"
                raise MetabenchError(
                    f"{self.kind} {name!r}: class {cls.__name__} does not derive from {base}; "
                    f"write: class {cls.__name__}({base})"
                )
            given = getattr(
                cls, "unfinished", lambda: sorted(getattr(cls, "__abstractmethods__", ()))
            )
            if lacks := given():
                raise MetabenchError(
                    f"{self.kind} {name!r}: class {cls.__name__} lacks {listed(lacks)}"
                )
            known = self._classes.get(name)
            taken = f"{self.package}.{name}" if name in self._files() else cls.__module__
            taken = taken if known is None else known.__module__
            if taken != cls.__module__:
                raise MetabenchError(
                    f"two {self.kind}s are called {name!r}: {taken} and {cls.__module__}"
                )
            self._classes[name] = cls
            cls.registered_name = name  # type: ignore[attr-defined]
            return cls

        return add

    def names(self) -> list[str]:
        """Every name that can be asked for, sorted; imports nothing."""
        return sorted(self._files() | self._points().keys() | self._classes.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._classes or self.is_built_in(name) or name in self._points()

    def is_built_in(self, name: str) -> bool:
        """Whether a name is of a file of metabench, which goes before all others; imports
        nothing."""
        return not name.startswith("_") and self.file(name).is_file()

    def file(self, name: str) -> Path:
        """The file of a name of metabench's own."""
        return self._folder() / f"{name}.py"

    def entries(self) -> list[Entry]:
        """Name, origin and one-line summary of each, sorted by name; imports no built-in."""
        files, points = self._files(), self._points()
        folder = self._folder()
        out = []
        for name in self.names():
            if name in self._classes:
                doc = self._classes[name].__doc__ or ""
                origin = self._origins.get(name) or ("built-in" if name in files else "plug-in")
                if name in points and name not in files:
                    origin = _package_of(points[name])
            elif name in files:
                doc, origin = _module_doc(folder / f"{name}.py"), "built-in"
            else:
                doc, origin = _point_doc(points[name]), _package_of(points[name])
            out.append(Entry(name, origin, doc.strip().split("\n", 1)[0]))
        return out

    def clashes(self) -> dict[str, list[str]]:
        """Names that several packages declare, or one beside a built-in, with who has them."""
        files = self._files()
        out: dict[str, list[str]] = {}
        for point in _declared(self.group):
            out.setdefault(point.name, []).append(_package_of(point))
        known = {n: (["metabench"] if n in files else []) + sorted(who) for n, who in out.items()}
        return {name: who for name, who in sorted(known.items()) if len(who) > 1}

    def get(self, name: str) -> type:
        """The dataclass registered as ``name``; raises :class:`UnknownName` with near names.

        A built-in goes before what a package declares. Raises :class:`MetabenchError` where two
        packages declare the name.
        """
        if name in self._classes:
            return self._classes[name]
        if name in self._files():
            with garbage.uncollected():
                importlib.import_module(f"{self.package}.{name}")
            if name not in self._classes:
                raise MetabenchError(
                    f"{self.package}.{name} does not register a {self.kind} called {name!r}"
                )
        elif name in (points := self._points()):
            if name in (clashes := self.clashes()):
                who = " and ".join(clashes[name])
                raise MetabenchError(f"two {self.kind}s are called {name!r}: of {who}")
            with _imported(f"{self.kind} {name!r} from {_package_of(points[name])}"):
                found = points[name].load()
            self.register(name)(found)
        else:
            raise UnknownName(self.kind, name, self.names())
        return self._classes[name]

    def found_by(self, name: str) -> Finds:
        """Which processes find a name: "any", as what is installed or loaded by ``--plugin``;
        "spawned", those that import the program of this one again; "this", no other one."""
        if name in self._files() or name in self._points() or name not in self._classes:
            return "any"
        module = self._classes[name].__module__
        if module.startswith(_PLUGIN):
            return "any"
        there = sys.modules.get("__main__" if module == "__mp_main__" else module)
        if there is not None and getattr(there, "__file__", None):
            return "spawned"
        return "this"

    def _folder(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None
        return Path(next(iter(spec.submodule_search_locations)))

    def _files(self) -> set[str]:
        return {f.stem for f in self._folder().glob("*.py") if not f.stem.startswith("_")}

    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in _declared(self.group)}


def _declared(group: str) -> Iterable[EntryPoint]:
    """The entry points of a group."""
    places = tuple((place, _changed(place)) for place in sys.path)
    found: Iterable[EntryPoint] = _all_declared(places).select(group=group)
    return found


@lru_cache(maxsize=1)
def _all_declared(places: tuple[tuple[str, int], ...]) -> Any:  # its type depends on Python's
    """Every entry point of every package, read once as long as no folder of ``places`` changes."""
    return entry_points()


def _changed(place: str) -> int:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _point_doc(point: EntryPoint) -> str:
    """Docstring of the module behind an entry point, read from its file without importing it."""
    if point.dist is not None:
        relative = Path(*point.module.split("."))
        for candidate in (relative.with_suffix(".py"), relative / "__init__.py"):
            path = Path(str(point.dist.locate_file(str(candidate))))
            if path.is_file():
                return _module_doc(path)
    return ""


_DOCSTRING = re.compile(
    rb'(?:\s|#[^\n]*\n)*r?"""(?:[^"\\]|\\.|"(?!""))*"""(?=[ \t]*\r?\n)', re.DOTALL
)
"""What a module usually begins with: to read no more is ten times faster."""


def _module_doc(path: Path) -> str:
    try:
        text = path.read_bytes()
        if (first := _DOCSTRING.match(text)) is not None:
            text = first[0]
        return ast.get_docstring(ast.parse(text)) or ""
    except (OSError, SyntaxError) as error:
        return f"(cannot be read: {error})"


_CONTRACT = "metabench.contract"
tasks = Registry("task", "metabench.tasks", "metabench.tasks", f"{_CONTRACT}.task.Task")
methods = Registry("method", "metabench.methods", "metabench.methods", f"{_CONTRACT}.method.Method")
solvers = Registry("solver", "metabench.solvers", "metabench.solvers", f"{_CONTRACT}.solver.Solver")
trackers = Registry(
    "tracker", "metabench.trackers", "metabench.trackers", "metabench.run.tracking.Tracker"
)
REGISTRIES = {"task": tasks, "method": methods, "solver": solvers}
_registered: dict[Path, list[tuple[str, str]]] = {}
"""Plug-in file to kind and name of what its import registered."""


def task(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a frozen dataclass of settings known as the task ``name``.

        @task("denoising")
        @dataclass(frozen=True)
        class Denoising: ...

    :class:`metabench.Task` says what it must have. Raises MetabenchError where another module has
    taken the name.
    """
    return tasks.register(name)


def method(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a frozen dataclass of settings known as the method ``name``.

    As :func:`task`; :class:`metabench.Method` says what it must have, and most derive from
    :class:`metabench.GradientMethod`.
    """
    return methods.register(name)


def solver(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a frozen dataclass of constants known as the inner solver ``name``.

    As :func:`task`; :class:`metabench.Solver` says what it must have.
    """
    return solvers.register(name)


def tracker(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a class known as the tracker ``name``, for ``--log NAME``.

    As :func:`task`; :class:`metabench.Tracker` says what it must have.
    """
    return trackers.register(name)


def load_plugin(path: str | Path) -> None:
    """Import one Python file for what it registers (``--plugin FILE``, ``METABENCH_PLUGINS``).

    Raises WrongPath where there is no such file, where other processes could not be told of its
    path, or where it cannot be imported or registered: with the line and the reason; the error
    itself is the cause.
    """
    path = Path(path).resolve()
    if not os.path.isfile(path) or path.suffix != ".py":
        why = "is a folder" if os.path.isdir(path) else "is not called NAME.py"
        raise WrongPath(
            f"no plug-in file {str(path)!r}" + (f": it {why}" if os.path.exists(path) else "")
        )
    if os.pathsep in str(path):
        raise WrongPath(
            f"plug-in {str(path)!r}: its path has {os.pathsep!r} in it, which separates paths "
            "in METABENCH_PLUGINS: rename it"
        )
    name = f"{_PLUGIN}{path.stem}"
    known = sys.modules.get(name)
    if known is not None:
        if Path(str(known.__file__)) != path:
            raise WrongPath(f"two plug-in files are called {path.stem!r}")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = _known()
    try:
        with _imported(f"plug-in {path}", str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _registered[path] = [each for each in _known() if each not in before]
    # Child processes find the same plug-ins through the environment.
    listed = [p for p in os.environ.get("METABENCH_PLUGINS", "").split(os.pathsep) if p]
    if str(path) not in listed:
        os.environ["METABENCH_PLUGINS"] = os.pathsep.join([*listed, str(path)])


def registered_by(path: str | Path) -> list[tuple[str, str]]:
    """Kind and name of what the import of a plug-in file registered, in the order of kinds; what a
    built-in module registered on the way is not the file's. Raises as
    :func:`load_plugin`, which it calls."""
    load_plugin(path)
    return _registered[Path(path).resolve()]


def _known() -> list[tuple[str, str]]:
    return [
        (kind, name)
        for kind, registry in REGISTRIES.items()
        for name, cls in registry._classes.items()
        if not cls.__module__.startswith(f"{registry.package}.")
    ]


@contextmanager
def _imported(what: str, file: str = "") -> Iterator[None]:
    """Turn what goes wrong on importing somebody's module into a MetabenchError, of a ``file`` into
    a WrongPath: the last line of it that was run, the reason, and what there is to import of
    metabench."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except MetabenchError as error:
        if not file or isinstance(error, UnknownName | SettingError | SuiteError):
            raise
        raise WrongPath(str(error)) from error
    except BaseException as error:  # sys.exit is no way to be imported either
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == file]
        said = one_line(str(error))
        if not isinstance(error, ImportError | SyntaxError):
            said = f"{type(error).__name__}: {said}"
        if isinstance(error, ImportError) and (error.name or "").startswith("metabench"):
            public = ", ".join(dir(sys.modules["metabench"]))
            said += f"; plug-ins can import from metabench: {public}"
        kind = WrongPath if file else MetabenchError
        raise kind(f"{what}{''.join(lines[-1:])}: {said}") from error


def load_plugins() -> None:
    """Import every file that ``METABENCH_PLUGINS`` names."""
    for path in os.environ.get("METABENCH_PLUGINS", "").split(os.pathsep):
        if path:
            load_plugin(path)
