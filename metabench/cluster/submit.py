"""From a plan to jobs: everything that can be refused is refused before anything is queued."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from metabench.cluster import packing, snapshot
from metabench.cluster import submission as folders
from metabench.cluster.job_states import Answer, ask
from metabench.cluster.packing import Bundle, Part, Setbacks
from metabench.cluster.profile import Profile
from metabench.cluster.slurm import Slurm, SlurmError, beyond, environment
from metabench.cluster.submission import Array, Group, Member, Submission
from metabench.core.errors import MetabenchError, SettingError, StoreError
from metabench.datasets import data
from metabench.store.record import Record
from metabench.store.store import Store, write_atomic
from metabench.suites.planning import Planned

TAKEN = frozenset({"open", "timeout"})
"""States of the cells that ``submit`` takes; ``retry`` takes others too."""
SBATCH_TRIES = 4
PAUSE_SECONDS = 2.0
"""Before sbatch is tried again; doubled each time."""
CRASHES = 3
"""How often a job that dies without a word of its own is started again."""
_TRANSIENT = re.compile(
    r"timed? ?out|Unable to contact|connect failure|Connection refused|temporarily|try again|"
    r"Zero Bytes|Resource temporarily",
    re.IGNORECASE,
)
_PRIVATE_KINDS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_PRIVATE_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")


class Refusal(MetabenchError):
    """Why nothing was queued, each reason on a line of its own."""


@dataclass(frozen=True)
class Draft:
    """A submission before it is made: what would be queued, and what would be left out."""

    folder: Path
    profile: Profile
    suite: str
    budget: str
    store: Store
    bundles: list[Bundle]
    parts: list[Part]
    left_out: dict[str, str] = field(default_factory=dict)
    """Cells that other live jobs have already, by key, with the submission."""
    others: dict[str, int] = field(default_factory=dict)
    """State to number of the cells that are not to be run."""

    @property
    def cells(self) -> int:
        """How many would be run."""
        return sum(len(b.members) for b in self.bundles)

    @property
    def estimate(self) -> tuple[float, int]:
        """Seconds of work where it is known, and for how many cells."""
        known = [
            m.estimated_seconds
            for b in self.bundles
            for m in b.members
            if m.estimated_seconds is not None
        ]
        return sum(known), len(known)

    def name(self, at: int) -> str:
        """The name of the jobs of part ``at``."""
        return f"mb-{self.folder.name.rpartition('-')[2]}-{at}"

    def scripts(self) -> list[str]:
        """The sbatch file of each part."""
        return [self.script(at) for at in range(len(self.parts))]

    def script(self, at: int) -> str:
        """The sbatch file of one part, as submitit writes it."""
        executor = self.executor(at)
        if self.parts[at].size > 1:
            executor.parameters["map_count"] = self.parts[at].size
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
        return text

    def jobs_folder(self, at: int) -> Path:
        """Of a part's logs, sbatch file and pickles; there before the first job starts."""
        return self.folder / "jobs" / str(at)

    def executor(self, at: int) -> Any:
        """A submitit executor for one part."""
        part, profile = self.parts[at], self.profile
        needs = self.bundles[part.bundle].needs
        words = [str(self.jobs_folder(at)), str(self.folder), str(part.bundle)]
        # -P: a checkout in the folder that jobs start in is not the code that was submitted.
        command = f"{profile.command()} -P -u -m metabench.cluster.node_worker {shlex.join(words)}"
        return executor(
            profile,
            command,
            self.jobs_folder(at),
            self.name(at),
            needs.minutes,
            needs.memory_gb,
            part.parallel,
            _teardown(self.folder),
            f"metabench {self.suite} {self.budget}",
        )


def executor(
    profile: Profile,
    command: str,
    folder: Path,
    name: str,
    minutes: int,
    memory_gb: float,
    parallel: int,
    teardown: list[str],
    comment: str,
) -> Any:
    """A submitit executor that asks for what a profile says and runs ``command``."""
    import submitit

    # submitit's own entry waits for a pickle that may never come; ours knows what to do then.
    kind = type(
        "Executor",
        (submitit.SlurmExecutor,),
        {
            "_submitit_command_str": property(lambda _: command),
            "affinity": classmethod(lambda _: 2),
        },
    )
    made = kind(folder, max_num_timeout=10**6, python=profile.command())
    extra = {"requeue" if profile.requeue else "no-requeue": True, **profile.extra}
    named = ("partition", "account", "qos", "constraint", "gres")
    made.update_parameters(
        job_name=name,
        time=minutes,
        # To Slurm 0 means all that the node has.
        mem=f"{max(1, round(memory_gb * 1024))}M",
        cpus_per_task=profile.cpus,
        signal_delay_s=profile.signal_seconds,
        array_parallelism=parallel,
        setup=profile.setup or None,
        teardown=teardown or None,
        # From 22.05 to 23.11 srun does not inherit it from sbatch.
        srun_args=[
            f"--ntasks={profile.ranks}",
            f"--cpus-per-task={profile.cpus}",
            # Without one of its ranks a job can do nothing: it dies, and its batch script begins
            # it again.
            *(["--kill-on-bad-exit=1"] if profile.ranks > 1 else []),
            *profile.srun_args,
        ],
        nodes=profile.nodes,
        # On a node of its own (exclusive) srun would start a task a core.
        ntasks_per_node=profile.tasks,
        additional_parameters=extra,
        comment=comment,
        **{key: value for key in named if (value := getattr(profile, key))},
        **({"gpus_per_node": profile.gpus} if profile.gpus else {}),
    )
    return made


def _teardown(folder: Path) -> list[str]:
    """What the batch script does after a job that died without a word: once more, a few times. A
    cancelled job is no longer RUNNING, and is left alone."""
    crashes = shlex.quote(str(folder / "elements"))
    return [
        "code=$?",
        "case $code in 0|3|126|127) exit $code ;; esac",
        f"crashes={crashes}/"
        "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}.crashes",
        # What cannot be counted, on a full disk, is not tried again for ever.
        'if echo "$code on $SLURMD_NODENAME" >> "$crashes" &&',
        f'  [ "$(wc -l < "$crashes")" -le {CRASHES} ] &&',
        '  scontrol show job "$SLURM_JOB_ID" | grep -q "JobState=RUNNING"; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        "exit $code",
    ]


def draft(
    planned: Sequence[Planned],
    profile: Profile,
    store: Store,
    suite: str,
    budget: str,
    *,
    states: Iterable[str] = TAKEN,
    busy: Mapping[str, str] | None = None,
    max_array: int | None = None,
) -> Draft:
    """What a submission of the planned cells in ``states`` would be; nothing is asked or written.

    ``busy``: cells that a live submission has, with its name.
    """
    states, busy = frozenset(states), busy or {}
    unique = {p.cell.key: p for p in planned if p.state in states}
    # A failed cell has had its turn there.
    left_out = {k: busy[k] for k, p in unique.items() if k in busy and p.state in TAKEN}
    records = {r.key: r for r in store.records()}
    members = []
    for key, p in unique.items():
        if key in left_out:
            continue
        known = records.get(key)
        before = (known.attempts, known.ended) if known is not None else None
        members.append(Member(p.row, p.column, p.cell, p.estimated_seconds, before))
    keys = {m.cell.key for m in members}
    found = packing.bundles(
        members, profile, packing.peaks(records.values()), setbacks(store, keys, records.values())
    )
    others: dict[str, int] = {}
    for p in planned:
        if p.state not in states:
            others[p.state] = others.get(p.state, 0) + 1
    return Draft(
        folders.new_folder(store, suite),
        profile,
        suite,
        budget,
        store,
        found,
        packing.parts(found, max_array or profile.max_array or 1001, profile.parallel),
        left_out,
        others,
    )


def prepare(
    suite: str,
    budget: str,
    planned: Sequence[Planned],
    profile: Profile,
    store: Store,
    states: Iterable[str] = TAKEN,
    dry_run: bool = False,
) -> tuple[Draft, Slurm]:
    """What would be submitted, and the cluster that it would go to; cells that live jobs have are
    left out. Raises SlurmError where the cluster cannot be asked, unless it is a ``dry_run``.
    """
    slurm = Slurm(profile)
    most, taken = profile.max_array, {}
    try:
        most = slurm.max_array()
        taken = busy(store, look(slurm, store))
    except SlurmError:
        if not dry_run:
            raise
    made = draft(planned, profile, store, suite, budget, states=states, busy=taken, max_array=most)
    return made, slurm


def enqueue(made: Draft, slurm: Slurm, planned: Sequence[Planned]) -> Submission:
    """Refuse, or queue; raises Refusal with every reason, SlurmError."""
    against = refusals(made, slurm, planned)
    if against:
        raise Refusal("nothing was queued:" + "".join(f"\n  {r}" for r in against))
    return submit(made, slurm)


def setbacks(store: Store, keys: set[str], records: Iterable[Record]) -> dict[str, Setbacks]:
    """How often each cell ran out of memory or of time in earlier submissions, and by its record
    among ``records``."""
    out: dict[str, Setbacks] = {}
    for submission in folders.submissions(store):
        ends = ended_states(submission.folder)
        for path in (submission.folder / "cells").glob("*.jsonl"):
            key = path.stem
            if key not in keys:
                continue
            memory = late = 0
            for attempt in folders.attempts(submission.folder, key):
                state = ends.get(attempt.job, "") if not attempt.end else ""
                memory += "out of memory" in attempt.what or state == "OUT_OF_MEMORY"
                late += state == "TIMEOUT"
            known = out.get(key, Setbacks())
            out[key] = Setbacks(known.memory + min(memory, 1), known.time + min(late, 1))
    for record in records:
        if record.key in keys and record.status == "timeout":
            known = out.get(record.key, Setbacks())
            out[record.key] = Setbacks(known.memory, known.time + 1)
    return out


def ended_states(folder: Path) -> dict[str, str]:
    """Job ids to how Slurm ended them, as far as anybody has asked."""
    import json

    try:
        found = json.loads((folder / "ended.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep_ended(submissions: Iterable[Submission], answer: Answer) -> None:
    """Note how jobs ended while Slurm still knows it."""
    for submission in submissions:
        known = ended_states(submission.folder)
        found = {
            job.id: job.state
            for array in submission.arrays
            for job in answer.elements(array)
            if not job.live and job.state != "UNKNOWN"
        }
        if {**known, **found} != known:
            with contextlib.suppress(MetabenchError):
                snapshot.write_json(submission.folder / "ended.json", {**known, **found})


def look(slurm: Slurm, store: Store, *, seconds: float | None = None) -> Answer:
    """What Slurm says of every submission to a store that is not over."""
    known = folders.submissions(store)
    cache = folders.root(store) / f"queue-{slurm.profile.name or 'profile'}.json"
    mine = [s for s in known if s.profile.get("name") == slurm.profile.name]
    answer = ask(slurm, mine, cache, seconds=seconds)
    if not answer.problem:
        keep_ended(mine, answer)
    return answer


def busy(store: Store, answer: Answer) -> dict[str, str]:
    """Cells that a submission with live jobs has, by key, with the submission's name."""
    out: dict[str, str] = {}
    for submission in folders.submissions(store):
        if submission.cancelled is None and answer.live(submission):
            out |= dict.fromkeys(folders.keys(submission), submission.name)
    return out


# refusals


def refusals(made: Draft, slurm: Slurm, planned: Sequence[Planned]) -> list[str]:
    """Everything that speaks against queueing, in words; asks Slurm, queues nothing."""
    profile = made.profile
    out = beyond(profile, slurm.partitions())
    for bundle in made.bundles:
        if bundle.needs.memory_gb > profile.memory_gb:
            grown = replace(profile, memory_gb=bundle.needs.memory_gb)
            for reason in beyond(grown, slurm.partitions()):
                if reason not in out:
                    out.append(f"{len(bundle.members)} cells need more memory: {reason}")
    out += place_refusals(made.store.root, profile)
    python = shlex.split(profile.command())[0]
    if os.sep in python and not os.access(os.path.expandvars(python), os.X_OK):
        out.append(f"python {python!r}: there is no such program")
    elif os.sep not in python and not profile.setup and not shutil.which(python):
        out.append(f"python {python!r}: there is no such program, and no setup line brings one")
    for folder in data.folders(os.path.expandvars(profile.data)):
        if not folder.is_dir():
            out.append(f"data {str(folder)!r}: there is no such folder")
    out += lacking(planned)
    return list(dict.fromkeys(out))


def lacking(planned: Sequence[Planned]) -> list[str]:
    """What cells lack that nodes could not fetch, and how to mend it."""
    found: dict[tuple[str, str], int] = {}
    for p in planned:
        if p.state in ("missing data", "missing package"):
            found[p.reason, p.mend] = found.get((p.reason, p.mend), 0) + 1
    return [
        f"{n} cells lack something that nodes could not fetch: {reason}; mend it with: {mend}, "
        "or leave them out with --only"
        for (reason, mend), n in found.items()
    ]


def place_refusals(root: Path, profile: Profile) -> list[str]:
    """Why nodes could not see a store, and whether it can be written."""
    out = []
    real = root.resolve()
    if profile.shared:
        places = [Path(os.path.expandvars(p)).expanduser().resolve() for p in profile.shared]
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
    return out


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


# queueing


def variables(made: Draft, slurm: Slurm) -> dict[str, str]:
    """The environment of sbatch, which is that of the jobs."""
    out = {**slurm.env, **snapshot.job_environment(made.folder)}
    if named := os.path.expandvars(made.profile.data) or out.get("METABENCH_DATA"):
        places = [str(folder.absolute()) for folder in data.folders(named)]
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
        submission = _write_folder(made)
        values = variables(made, slurm)
        with environment(values):
            for at in range(len(made.parts)):
                made.jobs_folder(at).mkdir(parents=True)
                write_atomic(made.jobs_folder(at) / "sbatch.sh", made.script(at).encode())
            for at in range(len(made.parts)):
                slurm.run("sbatch", "--test-only", str(made.jobs_folder(at) / "sbatch.sh"))
    except (OSError, MetabenchError) as error:
        # Nothing is left behind, least of all on a full disk.
        shutil.rmtree(made.folder, ignore_errors=True)
        if isinstance(error, OSError):
            error = StoreError(f"cannot write {made.folder}: {error.strerror}")
        kind = SlurmError if isinstance(error, SlurmError) else StoreError
        raise kind(f"nothing was queued: {error}") from None
    with environment(values):
        for at, part in enumerate(made.parts):
            began = time.time()
            mend = f"metabench cancel {made.suite} --budget {made.budget}"
            try:
                job = _queue(made, slurm, at, part)
            except SlurmError as error:
                before = ", ".join(a.job for a in submission.arrays if a.job)
                if not before:
                    raise
                raise SlurmError(f"{error}; queued before: {before}; to cancel: {mend}") from None
            arrays = list(submission.arrays)
            arrays[at] = replace(arrays[at], job=job, submitted=began)
            submission = replace(submission, arrays=arrays)
            try:
                submission.write()
            except StoreError as error:
                raise StoreError(f"{error}; queued as {job}; to cancel: {mend}") from None
    return submission


def _write_folder(made: Draft) -> Submission:
    """What jobs need: the code, their cells, and a note of what is to be queued."""
    made.folder.mkdir(parents=True)
    for name in ("elements", "cells"):
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
            bundle.elements,
            profile.ranks,
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
    )
    submission.write()
    return submission


def _queue(made: Draft, slurm: Slurm, at: int, part: Part) -> str:
    """Hand one array to sbatch through submitit; its id.

    Before a second try the queue is searched for the array's name: the first may have arrived.
    """
    executor, pause = made.executor(at), PAUSE_SECONDS
    for attempt in range(1, SBATCH_TRIES + 1):
        try:
            from metabench.cluster import node_worker

            call = [str(made.folder)] * part.size, [part.bundle] * part.size
            jobs = executor.map_array(node_worker.work, *call)
            return str(jobs[0].job_id).partition("_")[0]
        except Exception as error:
            said = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
            for path in made.jobs_folder(at).glob("*.pkl"):
                if "_submitted" not in path.name:
                    path.unlink(missing_ok=True)
            with contextlib.suppress(SlurmError):
                arrived = slurm.named(made.name(at))
                if arrived:
                    return sorted(arrived, key=int)[-1]
            if attempt == SBATCH_TRIES or not _TRANSIENT.search(str(error)):
                raise SlurmError(f"sbatch refused {made.name(at)}: {said}") from None
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
