"""Faults of what jobs depend on: controllers, launchers, Python, code, disks, other machines."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from metabench.cluster import submission as folder
from metabench.core.errors import MetabenchError
from metabench.store.cell_folder import LEASE
from metabench.store.store import Store

from .oracle import judge, undisturbed
from .registry import fault, kill
from .stage import PAUSE, Lost, Stage


@fault()
def controller_killed(stage: Stage) -> None:
    """Kill -9 of slurmctld under running jobs; it comes back after 6 s."""
    submission = stage.submit(pause=0.8)
    stage.at_work(submission)
    # Its state is saved every few seconds.
    time.sleep(6)
    kill(stage.cluster.daemon("slurmctld").pid() or 0)
    time.sleep(6)
    if not stage.answer().problem:
        raise Lost("the watcher did not notice that the controller is away")
    stage.cluster.up()
    stage.finish()


@fault()
def controller_away(stage: Stage) -> None:
    """Slurmctld away at submission: refused, nothing queued; then submitted again."""
    stage.seeds = [0]
    kill(stage.cluster.daemon("slurmctld").pid() or 0)
    try:
        stage.submit()
    except MetabenchError:
        pass
    else:
        raise Lost("a submission without a controller was accepted")
    finally:
        stage.cluster.up()
    stage.submit(pause=0.1)
    stage.finish()


@fault(accounting_only=True)
def database_away(stage: Stage) -> None:
    """Slurmdbd stopped under running jobs."""
    submission = stage.submit()
    stage.at_work(submission)
    stage.cluster.daemon("slurmdbd").stop()
    try:
        stage.finish()
    finally:
        stage.cluster.up()


@fault()
def launcher_killed(stage: Stage) -> None:
    """The launcher dies before sbatch has told it the id of the job."""
    stage.seeds = list(range(4))
    os.environ[PAUSE] = "0.1"
    path = wrapped_sbatch(stage, 'out=$("$real" "$@"); code=$?; echo "$out"; kill -9 $PPID')
    launcher = stage.command("submit", "--cluster", "local", PATH=path)
    launcher.communicate(timeout=150)
    if launcher.returncode != -signal.SIGKILL:
        raise Lost(f"the launcher was not killed: {launcher.returncode}")
    stage.finish()


@fault()
def accepted_unseen(stage: Stage) -> None:
    """Sbatch says that it timed out, though the job was accepted."""
    stage.seeds = list(range(4))
    os.environ[PAUSE] = "0.1"
    words = '"$real" "$@" > /dev/null; echo "sbatch: error: Socket timed out" >&2; exit 1'
    launcher = stage.command("submit", "--cluster", "local", PATH=wrapped_sbatch(stage, words))
    said, _ = launcher.communicate(timeout=150)
    if launcher.returncode:
        raise Lost(f"the submission failed: {said}")
    stage.finish()
    (submission,) = folder.submissions(stage.store)
    names = stage.ask("squeue", "-h", "--states=all", "-o", "%F %j").splitlines()
    if len({n for n in names if submission.arrays[0].name in n}) != 1:
        raise Lost("the array was queued twice")


def wrapped_sbatch(stage: Stage, words: str) -> str:
    """A PATH with an sbatch that does something else besides, the first time that it queues."""
    place = stage.home / "bin"
    place.mkdir(exist_ok=True)
    real = next(
        str(Path(p, "sbatch"))
        for p in os.environ["PATH"].split(os.pathsep)
        if Path(p, "sbatch").is_file()
    )
    script = place / "sbatch"
    script.write_text(
        f"#!/bin/bash\nreal={real}\n"
        f'case "$*" in *--test-only*) exec "$real" "$@" ;; esac\n{words}\n'
    )
    script.chmod(0o755)
    return f"{place}{os.pathsep}{os.environ['PATH']}"


@fault()
def two_launchers(stage: Stage) -> None:
    """Two launchers submit the same cells at the same moment."""
    stage.seeds = list(range(6))
    os.environ[PAUSE] = "0.1"
    launchers = [stage.command("submit", "--cluster", "local") for _ in range(2)]
    for launcher in launchers:
        said, _ = launcher.communicate(timeout=150)
        if launcher.returncode:
            raise Lost(f"a submission failed: {said}")
    stage.finish()


@fault()
def python_gone(stage: Stage) -> None:
    """Python is not there when the jobs start; put back, then retry."""
    link = stage.home / "python"
    link.symlink_to(sys.executable)
    submission = stage.submit(seeds=2, pause=0.05, python=str(link), extra={"begin": "now+4"})
    link.rename(stage.home / "hidden")
    stage.until("the end of all jobs", lambda: not stage.live())
    answer = stage.answer()
    states = {j.state for a in submission.arrays for j in answer.jobs_of(a)}
    if states != {"FAILED"}:
        raise Lost(f"jobs without Python are {states}")
    (stage.home / "hidden").rename(link)
    stage.again(frozenset({"open"}))
    stage.finish()


@fault()
def code_edited(stage: Stage) -> None:
    """Code and plug-in edited while the jobs wait."""
    submission = stage.submit(pause=0.05, extra={"begin": "now+4"})
    before = stage.plugin.read_text()
    stage.plugin.write_text("raise SystemExit('edited')\n")
    try:
        stage.finish()
    finally:
        stage.plugin.write_text(before)
    for cell in stage.cells():
        record = stage.store.get(cell.key)
        if record is None or record.environment["git"].get("sha256") != submission.code:
            raise Lost("a record does not name the code that was submitted")


@fault()
def snapshot_edited(stage: Stage) -> None:
    """The snapshot itself is tampered with: refused; then submitted again."""
    submission = stage.submit(seeds=2, pause=0.05, extra={"begin": "now+4"})
    with (submission.folder / "code" / "metabench" / "run" / "loop.py").open("a") as file:
        file.write("\n# edited\n")
    stage.until("the end of all jobs", lambda: not stage.live())
    if any(stage.final(c) for c in stage.cells()):
        raise Lost("cells were run with other code than was submitted")
    stage.again(frozenset({"open"}))
    stage.finish()


@fault()
def nested(stage: Stage) -> None:
    """Submitted from within an array job, whose variables leak."""
    stage.seeds = list(range(3))
    os.environ[PAUSE] = "0.05"
    launcher = stage.command("submit", "--cluster", "local")
    words = launcher.args
    launcher.kill()
    launcher.communicate()
    assert isinstance(words, list)
    script = stage.home / "outer.sh"
    quoted = " ".join(f"'{w}'" for w in words)
    script.write_text(f"#!/bin/bash\nexport OMP_NUM_THREADS=7 RANK=3\nsrun {quoted}\n")
    options = ("--array=0-0", "-n1", "--mem=200M", "-o", str(stage.home / "outer.out"))
    stage.ask("sbatch", *options, str(script))
    stage.until("the inner submission", lambda: folder.submissions(stage.store))
    stage.finish()


@fault(root=True)
def disk_full(stage: Stage) -> None:
    """A full disk under the store; then room, and retry --failed."""
    stage.store.root.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(stage.store.root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        raise Lost("cannot mount a small file system here")
    try:
        submission = stage.submit(seeds=2, parallel=1)
        stage.at_work(submission)
        filler = stage.store.root / "cluster" / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        stage.until("the end of all jobs", lambda: not stage.live(), 120)
        filler.unlink()
        remount = ["mount", "-o", "remount,size=64m", str(stage.store.root)]
        subprocess.run(remount, check=True)
        stage.again(frozenset({"open", "timeout", "failed"}))
        stage.finish()
        stage.verdict = judge(stage)  # type: ignore[attr-defined]
    finally:
        subprocess.run(["umount", "-l", str(stage.store.root)], check=False)


@fault()
def store_moved(stage: Stage) -> None:
    """The store is moved away under running jobs: nothing grows at its old place; then submitted
    again at the new one."""
    submission = stage.submit()
    stage.at_work(submission)
    before = stage.store.root
    stage.store = Store(before.rename(before.with_name("moved")))
    stage.until("the end of all jobs", lambda: not stage.live())
    if before.exists():
        grown = sorted(str(p.relative_to(before)) for p in before.rglob("*"))
        raise Lost(f"a store grew at the old place: {grown[:5]}")
    if all(stage.final(c) for c in stage.cells()):
        raise Lost("nothing was left to do at the new place")
    stage.again(frozenset({"open"}))
    stage.finish()


@fault()
def colleague(stage: Stage) -> None:
    """Cells of a colleague with umask 077 in the same store: every verb goes on, and names them."""
    stage.seeds = [7, 8]
    hidden = []
    for cell in stage.cells():
        undisturbed(cell, stage.reference)
        place = stage.store.folder(cell.key)
        shutil.copytree(stage.reference.folder(cell.key), place)
        hidden.append(place)
        if os.geteuid() == 0:
            os.chown(place, 65534, 65534)
        place.chmod(0o700 if os.geteuid() == 0 else 0)
    stage.seeds = [0, 1]
    python = shlex.join([*powerless(), sys.executable])
    try:
        for verb in (["status"], ["plan"], ["table"], ["status", "--budget", "smoke"]):
            said, _ = (verbs := stage.command(*verb, under=powerless())).communicate(timeout=150)
            if verbs.returncode or (verb == ["status"] and str(hidden[0]) not in said):
                raise Lost(f"{verb} with a colleague's cells: {said[-300:]}")
        stage.submit(seeds=2, pause=0.05, python=python)
        stage.finish()
    finally:
        for place in hidden:
            place.chmod(0o700)


def powerless() -> list[str]:
    """The command before a command that root's right to read everything is taken from."""
    if os.geteuid():
        return []
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}"]


@fault()
def ghost(stage: Stage) -> None:
    """A lease of another machine that went down 95 s ago: waited for until its lease is over."""
    stage.seeds = [0, 1]
    (first, _) = stage.cells()
    place = stage.store.folder(first.key)
    place.mkdir(parents=True)
    away = {"host": "gone", "place": "gone/boot/space", "pid": 1, "started": "1", "nonce": "n"}
    (place / LEASE).write_text(json.dumps({**away, "since": time.time() - 200}))
    # The plan would leave it to its holder, so it is made first.
    os.utime(place / LEASE, (time.time() - 1000, time.time() - 1000))
    stage.submit(seeds=2, pause=0.05, extra={"begin": "now+3"})
    os.utime(place / LEASE, (time.time() - 95, time.time() - 95))
    stage.finish()
