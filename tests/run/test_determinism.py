"""Settings of the process that change numbers: set around a cell, and left as they were."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metabench.core import registry
from metabench.core.cell import make_cell
from metabench.run.determinism import fixed, seed_globals
from metabench.run.events import Finished
from metabench.run.runner import run_cell

CPU = torch.device("cpu")


def default_device(name):
    return lambda: torch.set_default_device(name)


def new_precision():
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch before 2.9")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.fp32_precision = "tf32"


def new_precision_is():
    if hasattr(torch.backends, "fp32_precision"):
        return torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    return torch.get_float32_matmul_precision()


CHANGES = {
    "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "device": (default_device("meta"), lambda: torch.empty(0, dtype=torch.uint8).device),
    "no grad": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "matmul": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "matmul by the new functions": (new_precision, new_precision_is),
    "denormals": (
        lambda: torch.set_flush_denormal(True),
        lambda: sys.float_info.min / 2 == 0,
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "cudnn": (
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.cudnn.benchmark,
    ),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.is_autocast_enabled("cpu"),
    ),
}


@pytest.fixture(autouse=True)
def as_it_was():
    with fixed(CPU):
        yield


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_library_sets_does_not_hold_in_a_cell_and_holds_after_it(name):
    change, read = CHANGES[name]
    with fixed(CPU):
        right = read()
    change()
    held = read()
    with fixed(CPU):
        assert read() == right != held
        change()  # by an import inside the cell
        seed_globals(0, CPU)
        assert read() == right
        change()
    assert read() == held


@pytest.mark.parametrize(
    ("inside", "device"),
    [(torch.inference_mode, "cpu"), (torch.no_grad, "cpu"), (lambda: torch.device("meta"), "meta")],
)
def test_a_cell_called_inside_of_a_context(inside, device):
    with inside():
        with fixed(CPU):
            x = torch.ones(1, requires_grad=True)
            assert x.device == CPU and (2 * x).requires_grad
        assert torch.ones(1).device.type == device
    assert torch.ones(1).device == CPU


def auroc():
    budget = {"outer_steps": 4, "eval_every": 2, "valid_episodes": 1, "test_episodes": 1}
    cell = make_cell("pretrain_synthetic", "ift", set={"budget": budget})
    record = run_cell(cell, device="cpu")
    assert record.status == "done", record.traceback
    return record.metrics["test"]["auroc"].mean


def test_a_plugin_that_sets_float64_when_imported_changes_no_result(tmp_path, plugins_forgotten):
    plugin = tmp_path / "plugin.py"
    plugin.write_text("import torch\ntorch.set_default_dtype(torch.float64)\n")
    registry.load_plugin(str(plugin))
    assert torch.get_default_dtype() is torch.float64
    assert auroc() == pytest.approx(0.50864, abs=1e-5)  # 0.49779 with its type as the default
    assert torch.get_default_dtype() is torch.float64


ROOMS = ("metabench", "tasks", "methods")
DRAWS = {"randn", "rand", "zeros", "ones", "empty", "full", "linspace", "logspace", "eye", "normal"}


def test_every_draw_names_its_type():
    root, unnamed = Path(__file__).parents[2], []
    for path in sorted(p for room in ROOMS for p in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            named = {keyword.arg for keyword in node.keywords} & {"dtype", "out"}
            if ast.unparse(node.func.value) == "torch" and node.func.attr in DRAWS and not named:
                unnamed.append(f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}")
    assert not unnamed, "their type is torch's default one, which libraries change"


def test_who_is_sent_a_record_need_not_import_torch() -> None:
    """A launcher takes what its workers send; a class of torch in it would cost two seconds."""
    cell = make_cell("quadratic", "fixed", set={"budget": {"outer_steps": 1, "eval_every": 1}})
    sent = pickle.dumps(Finished(run_cell(cell)))
    code = (
        "import pickle, sys\n"
        "record = pickle.loads(sys.stdin.buffer.read()).record\n"
        "print('torch' in sys.modules, record.environment['versions']['torch'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, check=True, timeout=60
    )
    assert done.stdout.decode().split() == ["False", torch.__version__]
