"""Nothing that is read from a file or from the network is executed: held over all of the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    p for room in ("metabench", "tasks", "methods", "slurm") for p in (ROOT / room).rglob("*.py")
]
PICKLES = {
    "metabench/contract/parallel/process_group.py": "ranks of one cell, which share a key",
    "tasks/data/formats/pickles.py": "refuses all but arrays",
}
"""The files that may unpickle, and why."""
SAFE = {
    "from_pretrained": {"trust_remote_code": False},
    "load_dataset": {"trust_remote_code": False},
    "torch.load": {"weights_only": True},
}
"""Calls that would run what they read, unless they are told not to."""
REFUSED = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load"}
"""Calls that are nowhere."""


def faults(text: str) -> list[str]:
    """What a file calls that may run what it reads, with its line."""
    out = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            told = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
            must = SAFE.get(name) or SAFE.get(name.rpartition(".")[2])
            if must and not must.items() <= told.items():
                out.append(f"{node.lineno}: {name} without {must}")
            if name in REFUSED or told.get("allow_pickle") or told.get("shell"):
                out.append(f"{node.lineno}: {name}")
            if name.endswith("tar.extractall") and told.get("filter") != "data":
                out.append(f"{node.lineno}: {name} without filter='data'")
    return out


def test_no_code_runs_what_it_reads() -> None:
    found = {str(p.relative_to(ROOT)): faults(p.read_text(encoding="utf-8")) for p in FILES}
    assert len(found) > 150
    assert {name: bad for name, bad in found.items() if bad and name not in PICKLES} == {}


@pytest.mark.parametrize(
    "text",
    [
        "AutoModel.from_pretrained(where)",
        "AutoModel.from_pretrained(where, trust_remote_code=True)",
        "datasets.load_dataset(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "np.load(path, allow_pickle=True)",
        "packed_tar.extractall(folder)",
        "subprocess.run(words, shell=True)",
        "eval(text)",
    ],
)
def test_what_would_run_it_is_found(text: str) -> None:
    assert faults(text)
