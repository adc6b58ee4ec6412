"""From cells to arrays: cells with equal needs together, time by measured cost, limits kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from metabench.cluster.profile import SHORTEST, Profile
from metabench.cluster.submission import Member
from metabench.core.text import counted
from metabench.store.record import Record

MARGIN = 1.5
"""On the measured cost of a cell: nodes differ."""
MEMORY_MARGIN = 1.3
START_SECONDS = 120.0
"""To start Python, import torch, and build a first problem."""


@dataclass(frozen=True)
class Setbacks:
    """How often a cell has run out of memory, and out of time, in earlier submissions."""

    memory: int = 0
    time: int = 0


@dataclass(frozen=True)
class Needs:
    """What a job for a cell must have: minutes, and GB for all cells that it runs at once."""

    minutes: int
    memory_gb: float


@dataclass(frozen=True)
class Bundle:
    """Cells with equal needs, and how many jobs are to share them."""

    needs: Needs
    members: list[Member]
    workers: int


@dataclass(frozen=True)
class Part:
    """One array: which bundle it works on, its jobs, and how many of them at a time."""

    bundle: int
    size: int
    parallel: int


def peaks(records: Iterable[Record]) -> dict[tuple[str, str], float]:
    """The largest memory, in GB, that finished cells of a task and method took."""
    out: dict[tuple[str, str], float] = {}
    for record in records:
        if record.status == "done":
            names = record.cell.task, record.cell.method
            used = record.cost.get("peak_memory_bytes", 0.0) / 1e9
            out[names] = max(out.get(names, 0.0), used)
    return out


def needs(member: Member, profile: Profile, peak_gb: float, setbacks: Setbacks) -> Needs:
    """What a cell needs, from what similar ones took, and more after each setback.

    Time limits are the profile's divided by a power of two, so that few groups are made.
    """
    memory = profile.memory_gb
    wanted = MEMORY_MARGIN * peak_gb * profile.at_once * profile.tasks
    while memory < wanted and memory < profile.most_memory:
        memory *= max(profile.growth, 1.1)
    memory = min(memory * profile.growth**setbacks.memory, profile.most_memory)
    limit = float(profile.minutes)
    if member.estimated_seconds is not None:
        seconds = MARGIN * member.estimated_seconds + START_SECONDS + profile.signal_seconds
        least = max(SHORTEST, seconds / 60, min(profile.pack_minutes, profile.minutes))
        while limit / 2 >= least:
            limit /= 2
    limit = min(limit * profile.growth**setbacks.time, profile.most_minutes)
    return Needs(max(SHORTEST, math.ceil(limit)), round(memory, 3))


def at_most(
    members: Sequence[Member],
    profile: Profile,
    peak_gb: Mapping[tuple[str, str], float],
    setbacks: Mapping[str, Setbacks],
) -> list[str]:
    """What to tell of cells that ran out of time or memory before and get no more than then."""
    late = starved = 0
    for member in members:
        cell, had = member.cell, setbacks.get(member.cell.key, Setbacks())
        peak = peak_gb.get((cell.task, cell.method), 0.0)
        now = needs(member, profile, peak, had)
        if had.time:
            before = needs(member, profile, peak, replace(had, time=had.time - 1))
            late += now.minutes <= before.minutes
        if had.memory:
            before = needs(member, profile, peak, replace(had, memory=had.memory - 1))
            starved += now.memory_gb <= before.memory_gb
    out = []
    if late:
        out.append(
            f"no more time for {counted(late, 'cell')} that ran out of it before: "
            f"{profile.most_minutes} min is the most (most_time of the profile, and what the "
            "partition allows)"
        )
    if starved:
        out.append(
            f"no more memory for {counted(starved, 'cell')} that ran out of it before: "
            f"{profile.most_memory:g} GB is the most (most_memory_gb of the profile)"
        )
    return out


def bundles(
    members: Sequence[Member],
    profile: Profile,
    peak_gb: Mapping[tuple[str, str], float],
    setbacks: Mapping[str, Setbacks],
) -> list[Bundle]:
    """Cells by needs, the longest first, each bundle with its number of jobs: no more bundles and
    jobs than a user may have, so that cells may be left for another submission."""
    grouped: dict[Needs, list[Member]] = {}
    for member in members:
        cell = member.cell
        wanted = needs(
            member,
            profile,
            peak_gb.get((cell.task, cell.method), 0.0),
            setbacks.get(cell.key, Setbacks()),
        )
        grouped.setdefault(wanted, []).append(member)
    # A long cell that begins last keeps everybody waiting.
    ordered = sorted(grouped.items(), key=lambda item: (-item[0].minutes, -item[0].memory_gb))
    out = []
    for wanted, group in ordered:
        group.sort(key=lambda m: -(m.estimated_seconds or math.inf))
        out.append(Bundle(wanted, group, _elements(group, profile)))
    return _within(out, profile.most_jobs)


def _elements(members: Sequence[Member], profile: Profile) -> int:
    """Jobs for a bundle: one for so much work as a pack should have, none without a cell."""
    most = math.ceil(len(members) / profile.at_once)
    known = [m.estimated_seconds for m in members if m.estimated_seconds is not None]
    unknown = math.ceil((len(members) - len(known)) / profile.at_once)
    packs = math.ceil(MARGIN * sum(known) / (60 * profile.pack_minutes * profile.at_once))
    return max(1, min(most, unknown + packs))


def _within(found: list[Bundle], most: int) -> list[Bundle]:
    """Fewer jobs for each, where they would be more than a user may have; workers pull, so fewer
    of them do the same work. Of more bundles than that the first ones, whose cells take longest."""
    found = found[:most]
    total = sum(b.workers for b in found)
    if total <= most:
        return found
    workers = [max(1, b.workers * most // total) for b in found]
    # Small bundles were given one more than is theirs; the largest pay for it.
    while sum(workers) > most:
        workers[workers.index(max(workers))] -= 1
    return [replace(b, workers=n) for b, n in zip(found, workers, strict=True)]


def parts(found: Sequence[Bundle], max_array: int, parallel: int) -> list[Part]:
    """Arrays of at most ``max_array`` jobs, ``parallel`` divided among them by size."""
    sizes = []
    for at, bundle in enumerate(found):
        left = bundle.workers
        while left > 0:
            sizes.append((at, min(left, max_array)))
            left -= max_array
    total = sum(size for _, size in sizes)
    shares = [max(1, parallel * size // max(1, total)) for _, size in sizes]
    # Small arrays were given one more than is theirs; the largest pay for it.
    while sum(shares) > max(parallel, len(sizes)):
        shares[shares.index(max(shares))] -= 1
    spare = parallel - sum(shares)
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i][1]):
        more = max(0, min(spare, sizes[place][1] - shares[place]))
        shares[place] += more
        spare -= more
    return [
        Part(at, size, min(size, share)) for (at, size), share in zip(sizes, shares, strict=True)
    ]
