"""From a plan to jobs: everything that can be refused is refused before anything is queued."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from metabench.cluster import submission as folders
from metabench.cluster.profile import Profile
from metabench.cluster.slurm.commands import Slurm, SlurmError, partition_of
from metabench.cluster.slurm.job_states import Answer, busy, look
from metabench.cluster.submission import Array, Group, Submission
from metabench.cluster.submitting import snapshot
from metabench.cluster.submitting.draft import TAKEN, Draft, draft
from metabench.cluster.submitting.hints import Words
from metabench.cluster.submitting.refusals import Refusal, refusals, unsafe
from metabench.cluster.submitting.trust import closed_to_others
from metabench.core.errors import MetabenchError, SettingError, StoreError
from metabench.datasets import locate
from metabench.store.files import write_atomic
from metabench.store.identity import identity
from metabench.store.store import Store
from metabench.suites.planning import Planned

SBATCH_TRIES = 4
PAUSE_SECONDS = 2.0
"""Before sbatch is tried again; doubled each time."""
_TRANSIENT = re.compile(
    r"timed? ?out|said nothing|Unable to contact|connect failure|Connection refused|temporarily|"
    r"try again|Zero Bytes|Resource temporarily",
    re.IGNORECASE,
)


def prepare(
    suite: str,
    budget: str,
    planned: Sequence[Planned],
    profile: Profile,
    store: Store,
    states: Iterable[str] = TAKEN,
    dry_run: bool = False,
    words: Words | None = None,
) -> tuple[Draft, Slurm]:
    """What would be submitted, and the cluster that it would go to; cells that live jobs have are
    left out. ``words``: what was typed, for hints. Raises SlurmError where the cluster cannot be
    asked, unless it is a ``dry_run``.
    """
    slurm = Slurm(profile)
    most, taken = profile.max_array, {}
    try:
        most = slurm.max_array()
        taken = busy(store, look(slurm, store))
        there = partition_of(profile, slurm.partitions())
        if there is not None and there.minutes is not None:
            profile = replace(profile, most_time=min(profile.most_minutes, there.minutes))
    except SlurmError:
        if not dry_run:
            raise
    made = draft(
        planned,
        profile,
        store,
        suite,
        budget,
        states=states,
        busy=taken,
        max_array=most,
        words=words,
    )
    return made, slurm


def enqueue(made: Draft, slurm: Slurm, planned: Sequence[Planned]) -> Submission:
    """Refuse, or queue; raises Refusal with every reason, SlurmError."""
    against = refusals(made, slurm, planned)
    if against:
        raise Refusal("nothing was queued:" + "".join(f"\n  {r}" for r in against))
    return submit(made, slurm)


def variables(made: Draft, slurm: Slurm) -> dict[str, str]:
    """The environment of sbatch, which is that of the jobs."""
    out = {**slurm.env, **snapshot.job_environment(made.folder)}
    if named := os.path.expandvars(made.profile.data) or out.get("METABENCH_DATA"):
        places = [str(folder.absolute()) for folder in locate.folders(named)]
        out["METABENCH_DATA"] = os.pathsep.join(places)
    return out


def submit(made: Draft, slurm: Slurm) -> Submission:
    """Write the run's folder and queue its arrays; returns at once.

    Raises SlurmError where Slurm refuses: what was queued before stays noted and can be cancelled.
    Interrupted at any moment, what was queued works and is found again by its name.
    """
    if not made.cells:
        raise SettingError("nothing to submit")
    try:
        with closed_to_others():
            submission = _write_folder(made)
        values = variables(made, slurm)
        scripts = [made.jobs_folder(at) / "sbatch.sh" for at in range(len(made.parts))]
        for path in scripts:
            slurm.run("sbatch", "--test-only", str(path), env=values)
    except (OSError, MetabenchError) as error:
        # Nothing is left behind, least of all on a full disk.
        shutil.rmtree(made.folder, ignore_errors=True)
        if isinstance(error, OSError):
            error = StoreError(f"cannot write {made.folder}: {error.strerror}")
        kind = SlurmError if isinstance(error, SlurmError) else StoreError
        raise kind(f"nothing was queued: {error}") from None
    for at, path in enumerate(scripts):
        began = time.time()
        undo = submission.command("cancel")
        try:
            job = _queue(slurm, made.name(at), path, values)
        except SlurmError as error:
            before = ", ".join(a.job for a in submission.arrays if a.job)
            if not before:
                raise
            raise SlurmError(f"{error}; queued before: {before}; to cancel: {undo}") from None
        arrays = list(submission.arrays)
        arrays[at] = replace(arrays[at], job=job, submitted=began)
        submission = replace(submission, arrays=arrays)
        try:
            submission.write()
        except StoreError as error:
            raise StoreError(f"{error}; queued as {job}; to cancel: {undo}") from None
    return submission


def _write_folder(made: Draft) -> Submission:
    """What jobs need: the code, their cells, and a note of what is to be queued."""
    made.folder.mkdir(parents=True)
    if against := unsafe(made.folder.resolve(), made.profile):
        raise StoreError("; ".join(against))
    for name in (folders.STATUSES, "cells"):
        (made.folder / name).mkdir()
    sha = snapshot.take(made.folder)
    for at, bundle in enumerate(made.bundles):
        profile = made.profile
        Group(
            bundle.members,
            bundle.needs.minutes,
            bundle.needs.memory_gb,
            str(made.store.root),
            sha,
            profile.at_once,
            profile.signal_seconds,
            profile.checkpoint_seconds,
            profile.requeue,
            profile.memory_fraction,
            bundle.workers,
            profile.ranks,
            identity(made.store.root),
        ).write(made.folder / f"group-{at}.json")
    snapshot.write_json(
        made.folder / "keys.json", sorted(m.cell.key for b in made.bundles for m in b.members)
    )
    seconds, known = made.estimate
    submission = Submission(
        made.folder,
        made.suite,
        made.budget,
        asdict(made.profile),
        str(made.store.root),
        sha,
        time.time(),
        made.cells,
        seconds if known else None,
        [Array(made.name(i), p.bundle, p.size) for i, p in enumerate(made.parts)],
        words=made.words,
    )
    submission.write()
    for at, script in enumerate(made.scripts()):
        made.jobs_folder(at).mkdir(parents=True)
        write_atomic(made.jobs_folder(at) / "sbatch.sh", script.encode())
    return submission


def _queue(slurm: Slurm, name: str, script: Path, values: Mapping[str, str]) -> str:
    """Hand the array ``name`` to sbatch; its id.

    Before a second try the queue is searched for the array's name: the first may have arrived.
    """
    pause = PAUSE_SECONDS
    for attempt in range(1, SBATCH_TRIES + 1):
        try:
            return slurm.sbatch(script, values)
        except SlurmError as error:
            with contextlib.suppress(SlurmError):
                arrived = slurm.named(name)
                if arrived:
                    return sorted(arrived, key=int)[-1]
            if attempt == SBATCH_TRIES or not _TRANSIENT.search(str(error)):
                raise SlurmError(f"sbatch refused {name}: {error}") from None
            time.sleep(pause)
            pause *= 2
    raise AssertionError("unreachable")


def cancel(slurm: Slurm, submissions: Sequence[Submission], answer: Answer) -> list[str]:
    """Cancel the live jobs of submissions; the ids of the arrays that were."""
    out = []
    for submission in submissions:
        live = {j.id.partition("_")[0] for j in answer.live(submission)}
        for array in submission.arrays:
            job = array.job or answer.ids.get(array.name, "")
            if job and job in live:
                slurm.run("scancel", f"--name={array.name}", job)
                out.append(job)
        replace(submission, cancelled=time.time()).write()
    return out
