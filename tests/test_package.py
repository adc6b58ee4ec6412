"""What a package index and a reader who cites need: licence, version, citation, changelog."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from metabench.core.catalogue import arena_names

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = (
    *("pyproject.toml", "README.md", "LICENSE"),
    *("constraints", "metabench", "tasks", "methods", "slurm"),
)


def test_the_citation_is_of_this_version() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["authors"] == PROJECT["authors"]


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d\S*)\]", text, re.MULTILINE)
    assert versions[0] == PROJECT["version"]


def test_sdist_and_wheel_carry_the_licence(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    tree, made = tmp_path / "tree", tmp_path / "made"
    tree.mkdir()
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    (tree / "results").mkdir()
    shutil.copytree(ROOT / "results" / "suites", tree / "results" / "suites")
    out = str(made)
    code = f"import setuptools.build_meta as b; b.build_sdist({out!r}); b.build_wheel({out!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    inside = f"metabench-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{inside}/licenses/LICENSE").decode() == licence
        told = Parser().parsestr(archive.read(f"{inside}/METADATA").decode())
    assert told["License-Expression"] == "MIT"
    pythons = {c for c in told.get_all("Classifier") if "Python :: 3." in c}
    assert told["Requires-Python"] == ">=3.11" and any("3.11" in c for c in pythons)
    with tarfile.open(sdist) as archive:
        assert f"metabench-{PROJECT['version']}/LICENSE" in archive.getnames()


def test_records_that_ship_with_arenas_are_small() -> None:
    """``metabench rank`` compares with them; a wheel has them, and nothing else of the results."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (pattern,) = setup["setuptools"]["package-data"]["metabench.result_files"]
    shipped = sorted((ROOT / "results").glob(pattern))
    named = {path.parents[1].name for path in shipped}
    assert named <= {*arena_names()}, "only of built-in arenas"
    assert all(name.startswith("arena-") for name in arena_names()), "or they would not ship"
    for name in named:
        mine = [path for path in shipped if path.parents[1].name == name]
        assert sum(path.stat().st_size for path in mine) < 3_000_000, name
