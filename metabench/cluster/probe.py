"""One small job that says what nodes are like: Python, GPU, affinity, folder, clock."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from metabench.cluster import submission as folders
from metabench.cluster.profile import SHORTEST, Profile
from metabench.cluster.slurm.batch import script
from metabench.cluster.slurm.commands import Slurm, SlurmError, beyond
from metabench.cluster.submitting import snapshot
from metabench.cluster.submitting.refusals import place_refusals
from metabench.cluster.submitting.trust import closed_to_others
from metabench.core.environment.findings import Finding
from metabench.core.text import counted
from metabench.datasets import locate
from metabench.store.store import Store

WAIT_SECONDS = 120.0
PAUSE_SECONDS, LAST_SECONDS = 0.3, 1.0
"""Between two looks for the answer, and for that of a job that has ended to become visible."""
LARGEST_SKEW = 5.0
"""Seconds between two clocks above which leases are worth a word."""
TOKEN, ANSWER = "token", "answer.json"


def answer(folder: str) -> dict[str, Any]:
    """What the node that this runs on is like; also written into ``folder``."""
    place = Path(folder)
    out: dict[str, Any] = {
        "host": platform.node(),
        "node": os.environ.get("SLURMD_NODENAME", ""),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cores": len(os.sched_getaffinity(0)),
        "asked_cores": os.environ.get("SLURM_CPUS_PER_TASK", ""),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "time": time.time(),
        "token": (place / TOKEN).read_text() if (place / TOKEN).exists() else "",
        "data": os.environ.get("METABENCH_DATA", ""),
    }
    try:
        import torch

        out["torch"] = torch.__version__
        out["cuda"] = torch.cuda.is_available()
        if out["cuda"]:
            out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception as error:
        out["torch_error"] = f"{type(error).__name__}: {error}"
    named = locate.folders(out["data"])
    out["data_there"] = not named or any(map(os.path.isdir, named))
    snapshot.write_json(place / ANSWER, out)
    return out


def examine(profile: Profile, store: Store, *, wait: float = WAIT_SECONDS) -> list[Finding]:
    """What there is to say of a cluster: its commands, limits and partition, jobs that are held,
    and what one small job found on a node. Queues that job, and cancels it where it does not start
    within ``wait`` seconds.
    """
    slurm = Slurm(profile)
    out: list[Finding] = []
    section = f"cluster {profile.name}"

    def found(name: str, verdict: str, detail: str = "", *repair: str, bad: bool = False) -> None:
        out.append(Finding(section, name, verdict, detail, repair, bad))  # type: ignore[arg-type]

    try:
        version = slurm.run("sinfo", "--version").strip()
        found("slurm", "ok", version)
        found("MaxArraySize", "ok", f"{slurm.max_array()} tasks an array")
        wrong = beyond(profile, slurm.partitions())
        for reason in wrong:
            found("profile", "broken", reason, bad=True)
    except SlurmError as error:
        found("slurm", "missing", str(error), bad=True)
        return out
    try:
        slurm.run("sacct", "-n", "-X", "-S", "now-1hours", "-o", "JobID")
        found("accounting", "ok", "sacct answers")
    except SlurmError as error:
        text = f"{error}: jobs that squeue has forgotten are unknown"
        found("accounting", "note", text)
    try:
        waiting = slurm.run("squeue", "--me", "-h", "-o", "%A|%r").splitlines()
    except SlurmError as error:
        found("squeue", "note", f"{error}: whether jobs are held is unknown")
        waiting = []
    for line in waiting:
        job, _, reason = line.partition("|")
        if "held" in line.lower():
            found(f"job {job}", "note", f"held: {reason}", f"scontrol release {job}")
    for reason in place_refusals(store.root, profile):
        found("store", "broken", reason, bad=True)
    if not any(f.bad for f in out):
        out += _ask_node(profile, slurm, store, section, wait)
    return out


def _ask_node(
    profile: Profile, slurm: Slurm, store: Store, section: str, wait: float
) -> Iterator[Finding]:
    folder = folders.root(store) / f"probe-{uuid.uuid4().hex[:8]}"
    with closed_to_others():
        folder.mkdir(parents=True)
        snapshot.take(folder)
    token = uuid.uuid4().hex
    (folder / TOKEN).write_text(token)
    name = f"mb-{folder.name}"
    command = f"{profile.command()} -P -u -m metabench.cluster.probe {shlex.quote(str(folder))}"
    one = replace(profile, ranks=1, nodes=1)
    text = script(
        one, command, folder, name, SHORTEST, profile.memory_gb, 1, [], "metabench doctor"
    )
    before = time.time()
    path = folder / "sbatch.sh"
    path.write_text(text)
    try:
        job = slurm.sbatch(path, {**slurm.env, **snapshot.job_environment(folder)})
    except SlurmError as error:
        yield Finding(section, "job", "broken", f"sbatch refused it: {error}", (), True)
        return
    deadline, state, answered = time.monotonic() + wait, "", False
    try:
        while not (folder / ANSWER).exists() and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
            state = _state(slurm, job)
            if state.partition(",")[0] in ("FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"):
                time.sleep(LAST_SECONDS)
                break
        answered = (folder / ANSWER).exists()
        state = state if answered else _state(slurm, job)
    finally:
        if not answered:
            with contextlib.suppress(SlurmError):
                slurm.run("scancel", job)
    if not answered:
        logs = sorted(folder.glob("*_log.err"))
        last = logs[0].read_text(errors="replace").strip().splitlines()[-1:] if logs else []
        text = f"job {job} gave no answer within {wait:.0f} s ({state}) {' '.join(last)}".strip()
        yield Finding(section, "job", "broken", text, (f"less {folder}/*_log.err",), True)
        return
    seen = json.loads((folder / ANSWER).read_text())
    took = time.time() - before
    yield Finding(section, "job", "ok", f"{job} on {seen['node'] or seen['host']}, {took:.1f} s")
    yield from _judge(seen, profile, token, before, time.time(), section, store)


def _state(slurm: Slurm, job: str) -> str:
    """The state of a job and why it waits; where Slurm does not say, why not."""
    try:
        return slurm.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T, %r").strip()
    except SlurmError as error:
        return str(error)


def _judge(
    seen: dict[str, Any],
    profile: Profile,
    token: str,
    before: float,
    after: float,
    section: str,
    store: Store,
) -> Iterator[Finding]:
    yield Finding(section, "python", "ok", f"{seen['python']}, {seen['executable']}")
    here = ".".join(platform.python_version_tuple()[:2])
    if not seen["python"].startswith(here + "."):
        text = f"{seen['python']} there and {here} here: results may differ"
        yield Finding(section, "python", "note", text)
    if "torch_error" in seen:
        yield Finding(section, "torch", "broken", seen["torch_error"], (), True)
    else:
        yield Finding(section, "torch", "ok", seen["torch"])
    if seen["token"] != token:
        text = f"the node does not see what is written into {folders.root(store)}"
        yield Finding(section, "folder", "broken", text, (), True)
    else:
        yield Finding(section, "folder", "ok", "the node reads and writes where this machine does")
    asked = profile.cpus
    if seen["cores"] < asked:
        text = f"{seen['cores']} usable on the node, {asked} asked for"
        yield Finding(section, "affinity", "broken", text, ('srun_args = ["--cpu-bind=none"]',))
    else:
        yield Finding(
            section, "affinity", "ok", f"{counted(seen['cores'], 'core')} usable, {asked} asked for"
        )
    if profile.wants_gpu:
        if not seen["visible_gpus"]:
            yield Finding(section, "GPU", "broken", "no CUDA_VISIBLE_DEVICES in the job", (), True)
        elif not seen.get("cuda"):
            text = f"Slurm gives {seen['visible_gpus']}, but torch sees no GPU"
            yield Finding(section, "GPU", "note", text)
        else:
            yield Finding(section, "GPU", "ok", ", ".join(seen["gpus"]))
    if not seen["data_there"]:
        yield Finding(section, "data", "broken", f"{seen['data']} is not on the node", (), True)
    skew = max(before - seen["time"], seen["time"] - after, 0.0)
    if skew > LARGEST_SKEW:
        text = f"the node's is {skew:.0f} s off; leases are judged by the file server's"
        yield Finding(section, "clock", "note", text)
    else:
        yield Finding(section, "clock", "ok", "agrees with this machine's")


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1]), indent=1))
