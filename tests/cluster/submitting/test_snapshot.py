"""The code that jobs run: all of it, the same bytes each time, and checked."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from metabench.cluster.submitting import snapshot
from metabench.core.environment import provenance
from metabench.core.errors import MetabenchError

ROOT = Path(__file__).parents[3]


def test_a_snapshot_is_a_wheel_and_runs_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("x = 1\n")
    monkeypatch.setenv("METABENCH_PLUGINS", str(plugin))
    sha = snapshot.take(tmp_path / "one")
    assert snapshot.take(tmp_path / "two") == sha
    (wheel,) = (tmp_path / "one").glob("*.whl")
    (other,) = (tmp_path / "two").glob("*.whl")
    assert wheel.read_bytes() == other.read_bytes() and sha[:12] in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (
        ("methods", "methods"),
        ("tasks", "tasks"),
        ("slurm", "cluster_profiles"),
    ):
        for file in (ROOT / folder).glob("*.py"):
            assert f"metabench/{inside}/{file.name}" in names
    folders = {str(Path(n).parent) for n in names}
    assert {"metabench/api/templates", "metabench/reports/pages/templates"} <= folders
    # It takes itself for what it is, wherever it is started from.
    code = "\n".join(
        [
            "import metabench.suites.planning, metabench.methods.maml, sys",
            "from metabench.cluster.submitting import snapshot",
            "from metabench.core.environment.provenance import git",
            f"snapshot.check({sha!r})",
            "print(git()['sha256'], metabench.suites.__file__, metabench.methods.maml.__file__)",
        ]
    )
    variables = snapshot.job_environment(tmp_path / "one")
    assert variables["METABENCH_PLUGINS"] == str(tmp_path / "one" / "plugins" / "mine.py")
    environ = {"PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, *files = done.stdout.split()
    assert said == sha and all(f.startswith(str(tmp_path / "one" / "code")) for f in files)


def test_other_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = provenance.files()
    sha = provenance.digest(content)
    snapshot.check(sha)
    changed = {**content, "metabench/run/loop.py": content["metabench/run/loop.py"] + b"# edited\n"}
    assert provenance.digest(changed) != sha
    monkeypatch.setattr(snapshot, "files", lambda: changed)
    with pytest.raises(MetabenchError, match=f"not what was submitted.*{sha[:12]}; submit again"):
        snapshot.check(sha)
