"""What speaks against a submission, found out before anything is queued."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metabench.cluster.profile import Profile
from metabench.cluster.slurm.commands import Slurm, beyond
from metabench.cluster.submitting.draft import Draft
from metabench.cluster.submitting.trust import intruders
from metabench.core.errors import MetabenchError
from metabench.core.registry import REGISTRIES
from metabench.core.text import counted
from metabench.datasets import locate
from metabench.suites.planning import Planned

_PRIVATE_KINDS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_PRIVATE_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")


class Refusal(MetabenchError):
    """Why nothing was queued, each reason on a line of its own."""


def refusals(made: Draft, slurm: Slurm, planned: Sequence[Planned]) -> list[str]:
    """Everything that speaks against queueing, in words; asks Slurm, queues nothing."""
    profile = made.profile
    out = beyond(profile, slurm.partitions())
    for bundle in made.bundles:
        if bundle.needs.memory_gb > profile.memory_gb:
            grown = replace(profile, memory_gb=bundle.needs.memory_gb)
            for reason in beyond(grown, slurm.partitions()):
                if reason not in out:
                    out.append(
                        f"more memory is for {counted(len(bundle.members), 'cell')}: {reason}"
                    )
    out += place_refusals(made.store.root, profile)
    python = shlex.split(profile.command())[0]
    if os.sep in python and not os.access(os.path.expandvars(python), os.X_OK):
        out.append(f"python {python!r}: there is no such program")
    elif os.sep not in python and not profile.setup and not shutil.which(python):
        out.append(f"python {python!r}: there is no such program, and no setup line brings one")
    for folder in locate.folders(os.path.expandvars(profile.data)):
        if not folder.is_dir():
            out.append(f"data {str(folder)!r}: there is no such folder")
    out += lacking(planned)
    out += unknown_to_nodes(planned)
    return list(dict.fromkeys(out))


def lacking(planned: Sequence[Planned]) -> list[str]:
    """What cells lack that nodes could not fetch, and how to get it."""
    found: dict[tuple[str, str], int] = {}
    for p in planned:
        if p.state in ("missing data", "missing package"):
            found[p.reason, p.repair] = found.get((p.reason, p.repair), 0) + 1
    return [
        f"nodes could not fetch what {counted(n, 'cell')} cannot do without: {reason}; repair it "
        f"with: {repair}, or leave out what needs it with --only"
        for (reason, repair), n in found.items()
    ]


def unknown_to_nodes(planned: Sequence[Planned]) -> list[str]:
    """What jobs would not know, as neither metabench nor a plug-in file has it."""
    parts = {(k, n) for p in planned for k, n in (("task", p.cell.task), ("method", p.cell.method))}
    return [
        f"{kind} {name!r} is known in this process alone: put the code that makes it into a file, "
        "and load that with --plugin FILE (METABENCH_PLUGINS), which travels to jobs"
        for kind, name in sorted(parts)
        if REGISTRIES[kind].found_by(name) != "any"
    ]


def place_refusals(root: Path, profile: Profile) -> list[str]:
    """Why nodes could not see a store, whether it can be written, and who else writes there."""
    out = []
    real = root.resolve()
    if profile.shared:
        named = (os.path.expanduser(os.path.expandvars(p)) for p in profile.shared)
        places = [Path(p).resolve() for p in named]
        if not any(real.is_relative_to(p) for p in places):
            out.append(
                f"store {root}: not in a folder that nodes share ({', '.join(profile.shared)})"
            )
    else:
        kind = _file_system(real)
        if kind in _PRIVATE_KINDS or any(real.is_relative_to(p) for p in _PRIVATE_PLACES):
            out.append(
                f"store {root}: on {kind or 'a private disk'} of this machine, which nodes do not "
                "see; give --store, or name the shared folders in the profile (shared = [...])"
            )
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        out.append(f"store {root}: cannot be written")
    out += unsafe(there.resolve(), profile)
    return out


def unsafe(folder: Path, profile: Profile) -> list[str]:
    """Why jobs would not be safe to run code from ``folder``."""
    return [
        f"{who}; jobs run code from there as you (trusted = [...] in the profile names those who "
        "may)"
        for who in intruders(folder, profile.trusted)
    ]


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, "" where the system does not tell."""
    best, kind = Path(), ""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        words = line.split()
        mount = Path(words[1].encode().decode("unicode_escape"))
        if path.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, words[2]
    return kind
