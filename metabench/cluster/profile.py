"""What a site is like: one TOML file, checked; nothing else in the code knows a partition."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from metabench.core import settings, toml
from metabench.core.errors import SettingError, UnknownName

FOLDER = "METABENCH_CLUSTERS"
"""A folder of the user's own profiles (default: ~/.config/metabench/clusters)."""
SHORTEST = 11
"""Minutes: Slurm may send its warning up to a minute early, and a shorter job is nothing but start
and end."""

Whole = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]

_NEEDED = frozenset({"output", "error", "signal", "array", "job-name", "open-mode", "comment"})
"""sbatch keys that are no site's to set."""
_SETTINGS = {
    "time": "time",
    "mem": "memory_gb",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "gres": "gres",
    "nodes": "nodes",
    "ntasks-per-node": "ranks",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "requeue": "requeue",
    "no-requeue": "requeue",
}
"""sbatch keys to the settings that say the same, by which jobs are planned, too."""


@dataclass(frozen=True)
class Profile:
    """A cluster, or a way of using one. Only ``partition``, ``account`` and the like must be right;
    the rest has defaults that work on most sites.
    """

    name: str = ""
    description: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: int | str = 240
    """The longest a job may be: minutes, "4:00:00" or "1-12:00:00"; more than ten minutes."""
    most_time: int | str = 0
    """Up to where time grows after a time-out, never above what the partition allows; 0: up to
    four times ``time``."""
    signal_seconds: Annotated[int, Field(ge=10)] = 180
    """How long before the end a job is warned; it then keeps checkpoints and requeues itself."""
    requeue: bool = True
    cpus: Whole = 4
    memory_gb: Positive = 16.0
    most_memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """Up to where memory grows after an out-of-memory; 0: up to four times ``memory_gb``."""
    gpus: Annotated[int, Field(ge=0)] = 0
    gres: str = ""
    """Instead of ``gpus``: "shard:1", "gpu:1g.10gb:1"."""
    at_once: Whole = 1
    """Cells that a job runs beside each other, each in a process of its own."""
    ranks: Whole = 1
    """Processes that share the episodes of one cell, for cells too large for one: tasks of the job,
    each with ``cpus`` cores and one of the node's GPUs, spread evenly over ``nodes``."""
    nodes: Whole = 1
    """Nodes of a job; ``gpus`` (or ``gres``) and ``memory_gb`` are of each."""
    memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the GPU's memory, for each process."""
    parallel: Whole = 32
    """Jobs at a time, over all arrays of a submission."""
    most_jobs: Whole = 1000
    """Jobs that the site lets one user have waiting and running."""
    max_array: Whole | None = None
    """Tasks of an array; None: the cluster is asked."""
    pack_minutes: Positive = 45.0
    """Work that one job should have where costs are known."""
    checkpoint_seconds: Positive = 120.0
    query_seconds: Annotated[float, Field(ge=0)] = 60.0
    """The least time between two questions to the scheduler."""
    growth: Annotated[float, Field(ge=1)] = 2.0
    """Factor on memory or time for a cell that ran out of it."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job: modules, conda."""
    python: str = ""
    """The command that starts Python on a node, a container's perhaps; "": the launcher's."""
    data: str = ""
    """METABENCH_DATA on the nodes."""
    keep_env: list[str] = field(default_factory=list)
    """Variables of the launcher that travel besides those that jobs are known to need."""
    trusted: list[str] = field(default_factory=list)
    """Users and groups that may write in the folders above a submission: they could run code as
    you."""
    shared: list[str] = field(default_factory=list)
    """Folders that nodes see under the same path; empty: judged by the kind of file system."""
    slurm_conf: str = ""
    """SLURM_CONF where it is not set and not in the usual place."""
    srun_args: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """Verbatim sbatch keys."""

    def __post_init__(self) -> None:
        if self.minutes < SHORTEST:
            raise ValueError(
                f"time {self.time!r} is {self.minutes} minutes: give {SHORTEST} or more, because a "
                "shorter job cannot be told from one that ran out of time"
            )
        if self.signal_seconds >= 60 * self.minutes / 2:
            raise ValueError(f"signal_seconds {self.signal_seconds} leaves no time to work")
        if self.gpus and self.gres:
            raise ValueError(f"give gpus ({self.gpus}) or gres ({self.gres!r}), not both")
        if self.ranks % self.nodes:
            raise ValueError(
                f"ranks {self.ranks} on nodes {self.nodes}: give each node as many (ranks a "
                "multiple of nodes)"
            )
        if self.ranks > 1 and self.at_once > 1:
            raise ValueError(
                f"at_once {self.at_once} with ranks {self.ranks}: ranks work on one cell at a time"
            )
        if self.most_time:
            minutes(self.most_time, "most_time")
        try:
            words = shlex.split(self.command())
        except ValueError as error:
            raise ValueError(f"python {self.python!r}: {str(error).lower()}") from None
        if not words:
            raise ValueError(f"python {self.python!r}: there is no program in it")
        for given in sorted(self.extra):
            key = given.replace("_", "-")
            if key in _NEEDED:
                raise ValueError(f"extra cannot set {given}: logs and requeueing depend on it")
            if key in _SETTINGS:
                raise ValueError(f"extra cannot set {given}: it is the setting {_SETTINGS[key]}")

    @property
    def minutes(self) -> int:
        """``time`` in minutes."""
        return minutes(self.time)

    @property
    def most_minutes(self) -> int:
        """Up to where time may grow."""
        return max(self.minutes, minutes(self.most_time) if self.most_time else 4 * self.minutes)

    @property
    def most_memory(self) -> float:
        """GB up to where memory may grow."""
        return max(self.memory_gb, self.most_memory_gb or 4 * self.memory_gb)

    @property
    def tasks(self) -> int:
        """Ranks on each node."""
        return self.ranks // self.nodes

    @property
    def wants_gpu(self) -> bool:
        """Whether its jobs get a GPU or a part of one."""
        return bool(self.gpus) or self.gres.startswith(("gpu", "shard", "mps"))

    def command(self) -> str:
        """The shell words that start Python on a node."""
        return self.python or shlex.quote(sys.executable)


def minutes(time: int | str, name: str = "time") -> int:
    """Minutes of a Slurm time: a number of minutes, "H:MM:SS", "D-H:MM:SS", "MM:SS" or "D-H".

    Raises ValueError for anything else, which ``name`` names.
    """
    text = str(time).strip()
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"{name} cannot be {time!r}; write minutes, H:MM:SS or D-H:MM:SS")
    days, *parts = match.groups()
    numbers = [int(p) for p in parts if p is not None]
    if days is not None:
        hours, mins, _ = (*numbers, 0, 0)[:3]
        return int(days) * 1440 + hours * 60 + mins
    if len(numbers) == 3:
        return numbers[0] * 60 + numbers[1]
    return numbers[0]


def own_folder() -> Path:
    """Where the user's profiles are."""
    given = os.environ.get(FOLDER)
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(given) if given else Path(config, "metabench", "clusters")


def built_in_folder() -> Path:
    """Where the built-in profiles are."""
    spec = importlib.util.find_spec("metabench.cluster_profiles")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def names() -> dict[str, Path]:
    """Every profile that has a name; the user's own go before the built-in ones."""
    found = {f.stem: f for f in sorted(built_in_folder().glob("*.toml"))}
    return found | {f.stem: f for f in sorted(own_folder().glob("*.toml"))}


def load(name: str | Path, set: Mapping[str, Any] | None = None) -> Profile:
    """A profile by name or by the path of its file, ``set`` over its settings.

    Raises UnknownName for a profile or a setting that there is not, SettingError for a value that
    cannot be and for a file that is not TOML.
    """
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise SettingError(f"no profile file {str(path)!r}")
    else:
        known = names()
        if str(name) not in known:
            hint = f"or write {own_folder() / str(name)}.toml"
            if not re.fullmatch(r"[\w.+-]+", str(name)):
                hint = f"or write one in {own_folder()}, or give the path of a .toml file"
            raise UnknownName("cluster profile", str(name), known, hint)
        path = known[str(name)]
    values = _read(path, ())
    for place, value in (set or {}).items():
        group, dot, key = place.partition(".")
        if dot and group == "extra":
            values["extra"] = {**values.get("extra", {}), key: value}
        else:
            values[place] = value
    for key in ("time", "most_time"):
        if key in values and not isinstance(values[key], int | str):
            values[key] = str(values[key])  # 4:00:00 reads as a time of day in TOML
    return replace(settings.build(Profile, values, f"cluster profile {path.stem}"), name=path.stem)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The settings of a file over those that it extends."""
    try:
        data = toml.read(path)
    except ValueError as error:
        raise SettingError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from None
    base = data.pop("extends", None)
    data.pop("name", None)
    if base is None:
        return data
    known = {f.stem: f for f in built_in_folder().glob("*.toml")} | {
        f.stem: f for f in path.parent.glob("*.toml") if f != path
    }
    if not isinstance(base, str) or base not in known:
        raise SettingError(f"{path}: extends: {UnknownName('cluster profile', str(base), known)}")
    if known[base] in seen:
        raise SettingError(f"{path}: extends {base!r}, which extends this one")
    return {**_read(known[base], (*seen, path)), **data}


PREFIX = "slurm."


def split_set(words: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """``--set`` words that are about cells, and those about the profile ("slurm.time=60").

    Raises SettingError for one about the profile that has no value.
    """
    cells: list[str] = []
    profile: dict[str, Any] = {}
    for word in words:
        if not word.startswith(PREFIX):
            cells.append(word)
            continue
        name, equals, value = word.removeprefix(PREFIX).partition("=")
        if not equals or not name:
            raise SettingError(f"cannot read setting {word!r}; write slurm.NAME=VALUE")
        if name in ("time", "most_time"):
            profile[name] = value
        else:
            profile[name] = settings.parse(value)
    return cells, profile
