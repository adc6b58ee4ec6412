"""What needs no cluster: refusals, leases on a forgetful server, the one-machine Slurm's files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from metabench.cluster import node_worker
from metabench.cluster import submission as folders
from metabench.cluster.cell_states import logs, standings
from metabench.cluster.profile import Profile
from metabench.cluster.slurm.commands import Partition, Slurm, SlurmError
from metabench.cluster.slurm.job_states import Answer, Job
from metabench.cluster.submission import Group, Member, read_group
from metabench.cluster.submitting import draft as drafting
from metabench.cluster.submitting import refusals, snapshot, submit
from metabench.cluster_profiles import local_cluster
from metabench.core.cell import Cell
from metabench.core.errors import MetabenchError, StoreError
from metabench.run.workers.pool import NotStarted, Pool
from metabench.run.workers.worker import WorkerOptions, run_one
from metabench.store import files, identity, lease
from metabench.store.store import Store
from metabench.suites.planning import Planned

CELL = Cell("ridge", "bilevel", "sgd", 0)
ROOT = Path(__file__).parents[2]


def refused(tmp_path: Path, state: str = "open", repair: str = "", **settings: Any) -> list[str]:
    profile = Profile(**{"shared": [str(tmp_path)], "cpus": 1, "memory_gb": 1, **settings})
    planned = [Planned("r", "c", CELL, state, "omniglot not found", repair)]  # type: ignore[arg-type]
    made = drafting.draft(planned, profile, Store(tmp_path / "runs"), "suite", "smoke")
    nodes = [Partition("main", 4, 4.0, {"gpu": 2}, 60 * 24, True)]
    return refusals.refusals(made, cast(Slurm, SimpleNamespace(partitions=lambda: nodes)), planned)


def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert refused(tmp_path) == []
    (said,) = refused(tmp_path, "missing data", "metabench data fetch omniglot")
    assert "could not fetch what 1 cell" in said and "metabench data fetch omniglot" in said
    (said,) = refused(tmp_path, data="/no/such/folder")
    assert "data '/no/such/folder'" in said
    (said,) = refused(tmp_path, python="nopython3")
    assert "'nopython3': there is no such program" in said
    (said,) = refused(tmp_path, cpus=9)
    assert said == "cpus 9: a node of partition main has 4"
    assert any("allows 1440" in r for r in refused(tmp_path, time="3-00:00:00"))


def test_a_store_that_nodes_cannot_see_is_refused(tmp_path: Path) -> None:
    (said,) = refusals.place_refusals(Path("/dev/shm/runs"), Profile())
    assert "which nodes do not see" in said
    assert refusals.place_refusals(Path("/tmp/runs"), Profile())
    assert refusals.place_refusals(tmp_path, Profile(shared=[str(tmp_path)])) == []
    (tmp_path / "file").write_text("")
    (said,) = refusals.place_refusals(tmp_path / "file", Profile(shared=["/"]))
    assert "cannot be written" in said


def test_slurm_errors_are_told_by_the_line_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sbatch"
    program.write_text(
        "#!/bin/sh\necho \"/usr/bin/sbatch: unrecognized option '--foo'\" >&2\n"
        "echo 'Try \"sbatch --help\" for more information' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CONF", "")
    with pytest.raises(SlurmError, match=r"^sbatch: unrecognized option '--foo'$"):
        Slurm(Profile()).run("sbatch")
    program.write_text("#!/bin/sh\necho 'sbatch: fatal: no configuration source' >&2\nexit 1\n")
    with pytest.raises(SlurmError, match=r"source; slurm_conf '/none': there is no such file$"):
        Slurm(Profile(slurm_conf="/none")).run("sbatch")
    monkeypatch.setenv("SLURM_CONF", "/none")
    with pytest.raises(SlurmError, match=r"^SLURM_CONF=/none: there is no such file$"):
        Slurm(Profile()).run("sbatch")


def test_a_job_never_asks_for_no_memory(tmp_path: Path) -> None:
    profile = Profile(memory_gb=1e-4, cpus=1)
    planned = [Planned("r", "c", CELL, "open")]
    made = drafting.draft(planned, profile, Store(tmp_path / "runs"), "suite", "smoke")
    assert "#SBATCH --mem=1M\n" in made.script(0), "0 means all of the node's"


@pytest.mark.parametrize("refused", ["group-0.json", "submission.json", "sbatch.sh"])
def test_a_disk_that_is_full_is_left_with_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    write = files.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name == refused:
            raise StoreError(f"cannot write {path}: No space left on device")
        write(path, data)

    for module in (submit, snapshot):
        monkeypatch.setattr(module, "write_atomic", full)
    planned = [Planned("r", "c", CELL, "open")]
    made = drafting.draft(planned, Profile(), Store(tmp_path / "runs"), "suite", "smoke")
    with pytest.raises(StoreError, match=f"nothing was queued: cannot write .*{refused}: No space"):
        submit.submit(made, Slurm(Profile()))
    left = list((tmp_path / "runs" / "cluster").iterdir())
    assert [path.name for path in left] == [identity.ID], "nothing but the store's own id"


def test_groups_are_plain_data(tmp_path: Path) -> None:
    group = Group([Member("r", "c", CELL, 3.5, (2, "then"))], 60, 8.0, "/store", "sha")
    group.write(tmp_path / "group-0.json")
    assert read_group(tmp_path / "group-0.json") == group
    (tmp_path / "group-0.json").write_text("{}")
    with pytest.raises(MetabenchError, match="cannot be read"):
        read_group(tmp_path / "group-0.json")


def test_a_link_that_was_made_although_the_server_says_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", repeated)
    held = lease.take(tmp_path / "claim.json")
    assert held is not None and held.held()
    monkeypatch.setattr(os, "link", link)
    assert lease.take(tmp_path / "claim.json") is None
    held.release()


def test_sbatch_is_not_tried_again_before_the_queue_was_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def sbatch(*_: object) -> str:
        asked.append("sbatch")
        raise SlurmError("sbatch: Socket timed out on send/recv operation")

    monkeypatch.setattr(submit, "PAUSE_SECONDS", 0.0)
    answers = iter([{}, {"41": "now"}])
    named = lambda name: asked.append(name) or next(answers)  # noqa: E731
    slurm = cast(Slurm, SimpleNamespace(named=named, sbatch=sbatch))
    assert submit._queue(slurm, "mb-0", tmp_path, {}) == "41"
    assert asked == ["sbatch", "mb-0", "sbatch", "mb-0"]


def test_a_home_remembers_its_options_and_never_changes_under_a_running_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = local_cluster.Options(nodes=2, gpus=1, accounting=True, base_port=30000)
    cluster = local_cluster.Cluster(tmp_path, options)
    for name in ("etc", "run", "dev"):
        (tmp_path / name).mkdir()
    cluster.write_configuration()
    conf = (tmp_path / "etc" / "slurm.conf").read_text()
    assert "NodeName=n2 " in conf and "Gres=gpu:fake:1,shard:4 " in conf
    assert f"AccountingStoragePass={tmp_path}/run/munge.socket" in conf
    assert "gpu0" in (tmp_path / "etc" / "gres.conf").read_text()
    assert (tmp_path / "etc" / "slurmdbd.conf").stat().st_mode & 0o777 == 0o600
    again = local_cluster.Cluster(tmp_path)
    assert again.options == options
    words = vars(local_cluster.parser().parse_args(["up", "--cpus", "9"]))
    assert local_cluster.chosen(again, words).cpus == 9
    note = {"pid": os.getpid(), "started": local_cluster.started(os.getpid())}
    (tmp_path / "run" / "slurmctld.json").write_text(json.dumps(note))
    with pytest.raises(local_cluster.ClusterError, match="down first"):
        local_cluster.chosen(again, words)
    # A reused pid is another process.
    (tmp_path / "run" / "slurmctld.json").write_text(json.dumps({**note, "started": "1"}))
    assert again.daemon("slurmctld").pid() is None


def test_a_home_that_is_none_is_never_removed_and_a_taken_port_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").write_text("")
    home = f"--home={tmp_path}"
    assert local_cluster.main(["purge", home]) == 1
    assert "is no home of a cluster: nothing was removed" in capsys.readouterr().err
    for name in local_cluster.FOLDERS:
        (tmp_path / name).mkdir()
    local_cluster.Cluster(tmp_path).write_configuration()
    assert local_cluster.main(["purge", home]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"], "a home shared with other things"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert local_cluster.main(["up", home, "--base-port", port]) == 1
    assert f"port {port} is taken" in capsys.readouterr().err
    assert local_cluster.main(["up", home, "--nodes", "-1"]) == 1
    assert "--nodes cannot be -1: 1 or more" in capsys.readouterr().err
    assert local_cluster.main(["up", f"--home={tmp_path}/thesis/home", "--base-port", port]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_the_one_machine_slurm_needs_nothing_but_python() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "slurm" / "local_cluster.py"), "--help"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "--accounting" in done.stdout


def test_the_switch_turns_a_skip_into_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("kit", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    monkeypatch.setenv(kit.REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match="munge not installed"):
        kit.absent("munge not installed")
    monkeypatch.delenv(kit.REQUIRE)
    with pytest.raises(pytest.skip.Exception, match="no Slurm: munge not installed"):
        kit.absent("munge not installed")


def test_a_lease_from_elsewhere_is_doubted_until_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claim.json"
    away = {"host": "h", "place": "h/b/s", "pid": 1, "started": "1", "nonce": "n", "since": 0.0}
    path.write_text(json.dumps(away))
    first = lease.pulse(path)
    assert first is not None and not first.sure and lease.pulse(path) == first
    os.utime(path, (first.touched + 10, first.touched + 10))
    assert lease.pulse(path) != first, "it beats"
    os.utime(path, (first.touched - 500, first.touched - 500))
    assert lease.pulse(path) is None, "its lease is over"
    path.unlink()
    with cast(lease.Lease, lease.take(path)):
        mine = lease.pulse(path)
        assert mine is not None and mine.sure
    assert lease.pulse(path) is None


def test_setbacks_of_earlier_submissions_are_counted(tmp_path: Path) -> None:
    from metabench.cluster import submission
    from metabench.cluster.submitting.packing import Setbacks
    from metabench.cluster.submitting.snapshot import write_json
    from metabench.store.record import Record

    store = Store(tmp_path)
    for at, (what, state) in enumerate(
        [("SIGKILL; out of memory?", ""), ("", "OUT_OF_MEMORY"), ("", "TIMEOUT"), ("error", "")]
    ):
        place = submission.root(store) / f"run-{at}"
        place.mkdir(parents=True)
        submission.Submission(place, "s", "b", {"name": "p"}, "", "", float(at), 1).write()
        write_json(place / "keys.json", [CELL.key])
        for _ in range(2):
            submission.note_attempt(
                place, CELL.key, attempt=f"{_}", job="7_0", host="n", at=1.0, what=what
            )
        write_json(place / "ended.json", {"7_0": state})
    assert drafting.setbacks(store, {CELL.key}, []) == {CELL.key: Setbacks(memory=2, time=1)}
    store.write(Record(key=CELL.key, cell=CELL, status="timeout"))
    assert drafting.setbacks(store, {CELL.key}, store.records())[CELL.key].time == 2
    made = drafting.draft(
        [Planned("r", "c", CELL, "timeout")], Profile(memory_gb=4), store, "s", "b"
    )
    assert made.bundles[0].needs.memory_gb == 16


def test_a_retry_of_what_ran_out_of_time_gets_more_up_to_what_the_partition_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time twice as much, also where the profile says no most_time; at the end it is said."""
    kept = Store(tmp_path)
    nodes = [Partition("main", 4, 4.0, {}, 200, True)]
    monkeypatch.setattr(Slurm, "partitions", lambda _: nodes)
    monkeypatch.setattr(Slurm, "max_array", lambda _: 1001)
    monkeypatch.setattr(submit, "look", lambda *_: Answer(0.0, {}))

    def retried() -> tuple[int, list[str]]:
        planned = [Planned("r", "c", CELL, "timeout")]
        made, _ = submit.prepare("s", "b", planned, Profile(time=60), kept)
        return made.bundles[0].needs.minutes, made.at_most

    given = [retried()]
    for at in range(3):
        place = folders.root(kept) / f"run-{at}"
        place.mkdir(parents=True)
        folders.Submission(place, "s", "b", {"name": "p"}, "", "", float(at), 1).write()
        snapshot.write_json(place / "keys.json", [CELL.key])
        for attempt in range(folders.TRIES):  # stopped by the warning, never a step further
            folders.note_attempt(
                place, CELL.key, attempt=f"{attempt}", job="7", host="n", at=1.0, end="stopped"
            )
        given.append(retried())
    assert [minutes for minutes, _ in given] == [60, 120, 200, 200]
    assert [said for _, said in given[:3]] == [[], [], []]
    ((said,), *_) = given[-1][1:]
    assert said.startswith("no more time for 1 cell that ran out of it before: 200 min is the most")


def test_memory_that_ran_out_before_a_cell_was_reached_is_told_and_counted(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    place = folders.root(kept) / "run"
    (place / "jobs" / "0").mkdir(parents=True)
    arrays = [folders.Array("mb-a-0", 0, 1, "7", 1.0)]
    made = folders.Submission(
        place, "quickstart", "smoke", {"name": "p"}, "", "", 1.0, 1, None, arrays
    )
    made.write()
    snapshot.write_json(place / "keys.json", [CELL.key])
    words = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0"
    (place / "jobs" / "0" / "7_0_log.err").write_text(
        f"loading\n{words}\nsrun: error: n1: task 0\n"
    )
    for answer in (
        Answer(0.0, {"mb-a-0/7": Job("7", "FAILED")}),
        Answer(0.0, {}, accounting=False),  # Slurm has forgotten the job
    ):
        (found,) = standings([Planned("r", "c", CELL, "open")], [made], answer)
        assert found.state == "out of memory" and words in found.reason
        assert found.repair.startswith("metabench retry quickstart --budget smoke")
    assert [path.name for _, path in logs([made], CELL.key)] == ["7_0_log.err"]
    assert drafting.setbacks(kept, {CELL.key}, [])[CELL.key].memory == 1


def test_a_store_that_was_moved_or_replaced_is_refused_and_none_grows_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Store(tmp_path / "runs")
    known = identity.identity(kept.root)
    assert identity.identity(kept.root) == known and not kept.problems()
    run = kept.root / "cluster" / "one"
    run.mkdir()
    member = Member("r", "c", CELL)
    Group([member], 60, 8.0, str(kept.root), "", store_id=known).write(run / "group-0.json")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    made = node_worker._Work.__new__(node_worker._Work)
    made.group = read_group(run / "group-0.json")
    made.check_store()
    kept.root.rename(tmp_path / "moved")
    with pytest.raises(StoreError, match=r"is not at .*/runs any more: it was moved or replaced"):
        made.check_store()
    ended = run_one(CELL, WorkerOptions(str(kept.root), store_id=known), print, lambda: False)
    assert ended.how == "unsaved" and "any more" in ended.what
    with pytest.raises(SystemExit) as stopped:
        node_worker.work(str(run), 0)
    assert stopped.value.code == node_worker.REFUSED and "error: " in capsys.readouterr().out
    assert not kept.root.exists()
    identity.identity(kept.root)  # another store in its place
    with pytest.raises(StoreError, match="moved or replaced"):
        made.check_store()


def test_a_worker_that_cannot_start_ends_its_job_and_is_no_cells_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unable(Pool):
        def idle_worker(self) -> Any:
            made = SimpleNamespace(
                process=SimpleNamespace(pid=1), cell=None, send=self.workers.append
            )
            return made

        def at_work(self) -> Any:
            return self.workers

        def listen(self) -> Any:
            raise NotStarted("no plug-in file '/p.py'", self.workers.pop())  # type: ignore[arg-type]

    monkeypatch.setattr(node_worker, "Pool", Unable)
    Group([Member("r", "c", CELL)], 60, 8.0, str(tmp_path / "runs"), "").write(
        tmp_path / "group-0.json"
    )
    monkeypatch.setattr(snapshot, "check", lambda _: None)
    made = node_worker._Work(tmp_path, 0)
    with pytest.raises(NotStarted, match=r"cannot start: no plug-in file '/p\.py'"):
        made.loop()
    (attempt,) = folders.attempts(tmp_path, CELL.key)
    assert attempt.end == node_worker.NOT_BEGUN and "plug-in" in attempt.what
    assert folders.fruitless([attempt]) == 0 and Store(tmp_path / "runs").records() == []
