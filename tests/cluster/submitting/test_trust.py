"""Jobs run code from the folder of their submission: who else could write there."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from metabench.cluster import node_worker
from metabench.cluster.profile import Profile
from metabench.cluster.slurm.commands import Slurm, needed
from metabench.cluster.submitting import draft as drafting
from metabench.cluster.submitting import refusals, submit, trust
from metabench.core.cell import Cell
from metabench.core.errors import StoreError
from metabench.store.store import Store
from metabench.suites.planning import Planned

FOLDER = Path("/lab/runs/cluster")
ME, COLLEAGUE, LAB = 1001, 1002, 2000
Folders = Callable[[dict[str, tuple[int, int, int]]], None]


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Sets mode, owner and group of folders; the others are root's, 0755."""

    def made(given: dict[str, tuple[int, int, int]]) -> None:
        def stat(path: Path, **_: object) -> SimpleNamespace:
            mode, owner, group = given.get(str(path), (0o755, 0, 0))
            return SimpleNamespace(st_mode=mode, st_uid=owner, st_gid=group)

        monkeypatch.setattr(Path, "stat", stat)

    monkeypatch.setattr(os, "getuid", lambda: ME)
    names = {0: "root", ME: "me", COLLEAGUE: "colleague"}
    groups = {0: ("root", []), ME: ("me", []), LAB: ("lab", ["me", "colleague"])}
    monkeypatch.setattr(trust.pwd, "getpwuid", lambda n: SimpleNamespace(pw_name=names[n]))
    monkeypatch.setattr(
        trust.grp,
        "getgrgid",
        lambda n: SimpleNamespace(gr_name=groups[n][0], gr_mem=groups[n][1]),
    )
    return made


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, []),
        ({"/lab/runs": (0o755, ME, LAB)}, []),
        ({"/lab/runs": (0o775, ME, ME)}, []),
        ({"/lab/runs": (0o775, ME, LAB)}, ["the group lab can write in /lab/runs: chmod g-w"]),
        ({"/lab": (0o2775, 0, LAB)}, ["the group lab can write in /lab: chmod g-w /lab"]),
        ({"/lab": (0o3775, 0, LAB)}, []),
        ({"/lab": (0o1777, 0, 0)}, []),
        ({"/lab": (0o777, 0, 0)}, ["everybody can write in /lab: chmod o-w /lab"]),
        ({"/lab": (0o755, COLLEAGUE, LAB)}, ["/lab belongs to colleague"]),
        ({"/lab/runs/cluster": (0o1777, COLLEAGUE, LAB)}, ["/lab/runs/cluster belongs to colle"]),
        ({"/lab": (0o700, ME, ME), "/lab/runs": (0o777, ME, LAB)}, []),
        ({"/lab": (0o777, ME, ME), "/lab/runs": (0o700, ME, LAB)}, ["everybody can write in /lab"]),
        ({"/lab": (0o755, 4242, LAB)}, ["/lab belongs to 4242"]),
    ],
)
def test_a_folder_that_others_can_change_is_named(
    folders: Folders, given: dict[str, tuple[int, int, int]], says: list[str]
) -> None:
    folders(given)
    found = trust.intruders(FOLDER)
    assert [known[: len(said)] for known, said in zip(found, says, strict=True)] == says


def test_those_whom_the_profile_trusts_may_write(folders: Folders) -> None:
    folders({"/lab": (0o2775, COLLEAGUE, LAB), "/lab/runs": (0o775, ME, LAB)})
    assert len(refusals.unsafe(FOLDER, Profile())) == 2
    assert "jobs run code from there as you" in refusals.unsafe(FOLDER, Profile())[0]
    assert refusals.unsafe(FOLDER, Profile(trusted=["lab", "colleague"])) == []
    folders({"/lab": (0o777, 0, 0)})
    assert refusals.unsafe(FOLDER, Profile(trusted=["lab", "root"])), "everybody is nobody's friend"


def test_nothing_is_queued_from_a_folder_that_others_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "intruders", lambda *_: ["the group lab can write in /lab"])
    planned = [Planned("r", "c", Cell("ridge", "bilevel", "sgd", 0), "open")]
    store = Store(tmp_path / "runs")
    made = drafting.draft(planned, Profile(shared=[str(tmp_path)]), store, "suite", "smoke")
    there = cast(Slurm, SimpleNamespace(partitions=lambda: []))
    assert any("the group lab" in reason for reason in refusals.refusals(made, there, planned))
    with pytest.raises(StoreError, match="nothing was queued: the group lab can write in /lab"):
        submit.submit(made, Slurm(Profile()))
    assert not made.folder.exists()


def test_what_jobs_run_from_is_writable_by_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [Planned("r", "c", Cell("ridge", "bilevel", "sgd", 0), "open")]
    made = drafting.draft(planned, Profile(), Store(tmp_path / "runs"), "suite", "smoke")
    monkeypatch.setattr(Slurm, "run", lambda *_, **__: "7\n")
    before = os.umask(0o000)
    try:
        submit.submit(made, Slurm(Profile()))
    finally:
        assert os.umask(before) == 0
    written = [made.folder, *made.folder.rglob("*")]
    code = [p for p in written if p.is_dir() or p.suffix in (".py", ".pyc", ".sh")]
    assert len(code) > 100
    assert [p for p in code if p.stat().st_mode & 0o022] == []


def test_a_job_reads_no_pickle_from_the_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [Planned("r", "c", Cell("ridge", "bilevel", "sgd", 0), "open")]
    made = drafting.draft(planned, Profile(), Store(tmp_path / "runs"), "suite", "smoke")
    monkeypatch.setattr(Slurm, "run", lambda *_, **__: "41;site\n")
    submission = submit.submit(made, Slurm(Profile()))
    assert [array.job for array in submission.arrays] == ["41"]
    assert not [p for p in made.folder.rglob("*") if "pkl" in p.name]
    words = made.script(0).partition("metabench.cluster.node_worker ")[2].splitlines()[0].split()
    assert words == [str(made.folder), "0"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    # Where submitit would look for what to call.
    (made.jobs_folder(0) / "41_submitted.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setattr(pickle, "load", refuse)
    did: list[tuple[str, int]] = []
    monkeypatch.setattr(node_worker, "work", lambda run, number: did.append((run, number)))
    node_worker.main(*words)
    assert did == [(str(made.folder), 0)]


SECRETS = (
    "SECRET_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HF_TOKEN_2",
    "HUGGING_FACE_HUB_TOKEN", "DB_PASS", "DATABASE_URL", "GITHUB_PAT", "WANDB_APIKEY",
    "WANDB_API_KEY", "OPENAI_API_KEY", "SSH_AUTH_SOCK", "APPTAINER_DOCKER_PASSWORD", "CONDA_TOKEN",
    "PIP_INDEX_URL", "PYTHONPATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID",
)  # fmt: skip
NEEDED = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "CONDA_PREFIX",
    "PYTHONHASHSEED", "LD_LIBRARY_PATH", "METABENCH_DATA", "METABENCH_CACHE", "HF_HOME",
    "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TORCH_HOME", "XDG_CACHE_HOME", "http_proxy", "HTTPS_PROXY",
    "MODULEPATH", "LMOD_CMD", "BASH_FUNC_module%%", "SLURM_CONF", "SSL_CERT_FILE",
)  # fmt: skip


def test_jobs_have_the_variables_that_they_need_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a real sbatch would pass them on: by its own environment."""
    seen = tmp_path / "seen"
    fake = tmp_path / "sbatch"
    noted = f"open({str(seen)!r}, 'w').write('\\n'.join(os.environ))"
    # Isolated: what stands in PYTHON* is not for it.
    fake.write_text(f"#!{sys.executable} -I\nimport os\n{noted}\nprint(7)\n")
    fake.chmod(0o755)
    conf = tmp_path / "slurm.conf"
    conf.touch()
    for name in (*SECRETS, *NEEDED):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("MINE", "x")
    planned = [Planned("r", "c", Cell("ridge", "bilevel", "sgd", 0), "open")]
    profile = Profile(keep_env=["MINE", "WANDB_API_KEY"])
    made = drafting.draft(planned, profile, Store(tmp_path / "runs"), "suite", "smoke")
    monkeypatch.setattr(drafting.Draft, "script", lambda *_: "")
    submit.submit(made, Slurm(profile))
    travelled = set(seen.read_text().split("\n"))
    assert travelled & set(SECRETS) == {"WANDB_API_KEY", "PYTHONPATH"}, "the snapshot, and named"
    assert {"MINE", *NEEDED} <= travelled


def test_an_address_with_a_password_stays_behind() -> None:
    given = {"http_proxy": "http://me:pw@proxy:80", "https_proxy": "http://proxy:80"}
    assert needed(given) == {"https_proxy": "http://proxy:80"}
    assert needed(given, ["http_proxy"]) == given
