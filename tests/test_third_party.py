"""A package of somebody else's adds a task and a method, and they are like any other."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import contests
import pytest
from environments import environment

PACKAGE = Path(__file__).parent / "third_party"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment of its own: it sees what is installed here, torch and all,
    and has the package installed besides, without any index."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed in this environment")
    folder = tmp_path_factory.mktemp("third party")
    source, python = folder / "source", environment(folder / "venv")
    shutil.copytree(PACKAGE, source)
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", source]
    output([sys.executable, "-m", "pip", "--python", python, *install])
    packages = output([python, "-c", "import site; print(site.getsitepackages()[0])"]).strip()
    assert Path(packages, "hypercleaning").is_dir()
    return python


def output(command, **variables):
    environment = {**os.environ, "METABENCH_PLUGINS": "", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=240,
        env=environment, cwd=Path(sys.executable).anchor,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_both_are_listed_with_their_package(python):
    listed = output([python, "-m", "metabench", "list"], COLUMNS="200")
    assert "cleaning " in listed and "Data cleaning: one weight for every training" in listed
    assert "central_differences " in listed and "hypercleaning" in listed
    here = output([sys.executable, "-m", "metabench", "list"], COLUMNS="200")
    assert "central_differences" not in here


def test_both_pass_the_conformance_kit(python):
    code = """
import torch
torch.set_num_threads(1)
from metabench.testing import check_method, check_task
check_method("central_differences")
check_method("central_differences", tasks=["cleaning"])
check_task("cleaning")
"""
    output([python, "-W", "error", "-c", code])


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("quadratic", "central_differences"),
        pytest.param("ridge", "central_differences", marks=pytest.mark.slow),
        ("cleaning", "central_differences"),
        ("cleaning", "bilevel"),
        pytest.param("cleaning", "random", marks=pytest.mark.slow),
    ],
)
def test_they_run_crossed_with_the_built_in_ones(python, tmp_path, task, method):
    store = tmp_path / "runs"
    set_ = ["--set", "method.inner_steps=20", "--set", "budget.outer_steps=3"]
    command = [python, "-m", "metabench", "run", "--budget", "smoke", "--task", task]
    output([*command, "--method", method, *set_, "--device", "cpu"], METABENCH_STORE=str(store))
    (path,) = store.rglob("record.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["status"] == "done" and record["steps"] == 3
    assert (record["cell"]["task"], record["cell"]["method"]) == (task, method)


def test_their_method_is_ranked_by_its_name(python, tmp_path):
    arena, records = contests.played(tmp_path, contests.SMALLEST)
    where = ["--arena", arena, "--baselines", records, "--output", tmp_path / "out"]
    command = [python, "-m", "metabench", "rank", "central_differences", "--budget", "smoke"]
    told = output([*command, *where, "--jobs", "1"], METABENCH_STORE=str(tmp_path / "runs"))
    assert "as shipped: 1 problem" in told and "tuned:" not in told
    assert re.search(r"central_differences is number [123]( \(shared\))? of 3", told)
    assert (tmp_path / "out" / "standing.md").is_file()


def test_their_method_agrees_with_the_built_in_one_on_their_task(python):
    code = """
import torch
from metabench.testing import build, context
ctx = context("cleaning")
lam = {"logit": torch.linspace(-2, 2, 12, dtype=torch.float64)}
found = [
    build("method", name, inner_steps=20)
    .hypergradient(ctx, lam, None, ctx.training_episodes()[0])
    for name in ("central_differences", "bilevel")
]
torch.testing.assert_close(found[0].grad["logit"], found[1].grad["logit"], rtol=1e-6, atol=1e-8)
"""
    output([python, "-c", code])
