"""The command line as a whole: how it starts and ends, what cannot be, plug-ins, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typed_commands import BAD_METHOD, metabench

from metabench import api
from metabench.cli.main import Commands
from metabench.core.errors import SettingError, UnknownName


@pytest.mark.parametrize("words", [["list"], ["--help"], ["plan", "--help"], ["--version"]])
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom metabench.cli.main import app\n"
        f"try: app({words!r}, prog_name='metabench')\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'numpy', 'submitit', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_plan_imports_nothing_that_runs_cells_or_makes_tables(folder: Path) -> None:
    code = (
        "import sys\nfrom metabench.cli.main import app\n"
        "try: app(['plan', 'quickstart'], prog_name='metabench')\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = ['metabench.run.workers', 'metabench.reports.tables', 'metabench.analysis',"
        " 'metabench.reports.footnotes.general', 'metabench.datasets.catalogue']\n"
        "print(['torch' in sys.modules, *(m for m in heavy if m in sys.modules)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # A process that asks the classes has torch, and what their modules import.
    assert done.stdout.splitlines()[-1] in ("[False]", "[True]")


def test_both_ways_to_start(folder: Path) -> None:
    script = Path(sys.executable).with_name("metabench")
    module = [sys.executable, "-m", "metabench"]
    outputs = {
        subprocess.run([*start, "--version"], capture_output=True, text=True, check=True).stdout
        for start in ([str(script)], module)
    }
    assert len(outputs) == 1 and re.match(r"\d+\.\d+", outputs.pop())


def test_a_terminal_without_the_signs_is_no_error(folder: Path) -> None:
    words = ["table", "small.toml", "--budget", "smoke"]
    done = subprocess.run(
        [sys.executable, "-m", "metabench", *words],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0, done.stderr
    assert b"? (1 open)" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="shells are POSIX's")
def test_output_that_goes_nowhere_ends_as_other_programs_do(folder: Path) -> None:
    """A closed stream and a full disk are an error in one line; a reader that has ended is none."""
    start = f"{sys.executable} -m metabench"
    words = ("--version >&-", "--version >/dev/full", "--help >/dev/full", "list >/dev/full",
             "list | true", "--help | true", "list <&- 2>&- | tail -n 1")  # fmt: skip
    script = "\n".join(f"{start} {w}; echo ${{PIPESTATUS[0]}}; echo {w!r} >&2" for w in words)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    *codes, last, code = done.stdout.split("\n")[:-1]
    assert codes == ["1"] * 4 + ["0"] * 2 and code == "0" and last.endswith("list suites"), done
    said = "error: cannot write to standard output: "
    told = [said + "Bad file descriptor", *[said + "No space left on device"] * 3, "", "", ""]
    expected = [line for pair in zip(told, words, strict=True) for line in pair if line]
    assert done.stderr.splitlines() == expected


def test_an_empty_store_in_the_environment_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METABENCH_STORE", "")
    assert str(folder / "results" / "runs") in metabench("status").out
    with pytest.raises(SettingError, match="store cannot be ''"):
        api.status(store="")
    with pytest.raises(SettingError, match="out cannot be ''"):
        api.plot("small.toml", out="")


def test_help_names_every_verb() -> None:
    text = metabench("--help").out
    for verb in (
        "list",
        "show",
        "plan",
        "run",
        "status",
        "table",
        "plot",
        "report",
        "reproduce",
        "data",
        "doctor",
        "new",
        "submit",
        "retry",
        "cancel",
        "logs",
        "cost",
        "store",
    ):
        assert re.search(rf"\b{verb}\b", text), verb
        assert metabench(verb, "--help").code == 0


def test_help_tells_the_defaults() -> None:
    """In square brackets inside a help text they would be taken for markup, and vanish."""

    def told(command: str) -> str:
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", metabench(command, "--help").out).split())

    shown = told("run")
    assert "[default: (results/runs)]" in shown
    assert "[default: (a GPU if there is" in shown
    assert "(results/SUITE/BUDGET)" in metabench("plot", "--help").out
    assert "(by the name of --out, else" in told("table")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["plan", "omniglt"], 2, "no suite 'omniglt'; near: omniglot"),
        (["plan", "none.toml"], 2, "no suite file 'none.toml'"),
        (["plan"], 2, "name a suite"),
        (["plan", "small.toml", "--budget", "laptp"], 2, "near: laptop"),
        (["run", "small.toml", "--set", "method.inner_lrr=1"], 2, "near: inner_lr"),
        (
            ["run", "small.toml", "--set", "method.inner_lr=-1"],
            2,
            "inner_lr cannot be -1: input should be greater than 0 (suite small, row reverse,",
        ),
        (["run", "small.toml", "--set", "method.inner_lr=inf"], 2, "not finite"),
        (["run", "small.toml", "--set", "inner_lr"], 2, "write GROUP.NAME=VALUE"),
        (["run", "small.toml", "--only", "revers"], 2, "near: reverse"),
        (["run", "small.toml", "--seeds", "one"], 2, "seeds cannot be 'one'"),
        (["run", "small.toml", "--seeds", "٣"], 2, "seeds cannot be '٣'"),
        (["run", "small.toml", "--set", 'budget.outer_steps="2"'], 2, "cannot be '2': input"),
        (["run", "small.toml", "--set", "method.inner_steps=" + "[" * 250], 2, "cannot be '[[["),
        (["run", "small.toml", "--store", ""], 2, "--store cannot be '': give a path"),
        (["status", "--store", "a\0b"], 2, "--store cannot be 'a\\x00b'"),
        (["status", "--store", "x" * 300], 1, "File name too long"),
        (["run", "small.toml", "--store", "x" * 300], 1, "File name too long"),
        (["plot", "small.toml", "--out", "x" * 300], 1, "File name too long"),
        (["plan", "x" * 300 + ".toml"], 1, "File name too long"),
        (["plan", "a\0b.toml"], 2, "no suite file 'a\\x00b.toml'"),
        (["report", "small.toml", "--out", ""], 2, "--out cannot be ''"),
        (["table", "small.toml", "--out", ""], 2, "--out cannot be ''"),
        (["data", "fetch", "omniglot", "--to", ""], 2, "--to cannot be ''"),
        (["store", "merge", "", "--into", "s"], 2, "STORE cannot be ''"),
        (["store", "merge", "s", "--into", ""], 2, "--into cannot be ''"),
        (["run", "--task", "quadratc", "--method", "bilevel"], 2, "near: quadratic"),
        (["run", "small.toml", "--device", "cdua"], 2, "device cannot be 'cdua'"),
        (["run", "small.toml", "--device", "meta"], 2, "device cannot be 'meta': torch finds"),
        (["run", "small.toml", "--device", "hpu:0"], 2, "here; known: cpu"),
        (["run", "small.toml", "--device", ""], 2, "device cannot be ''"),
        (["reproduce", "small.toml", "--device", "meta"], 2, "device cannot be 'meta'"),
        (
            ["run", "small.toml", "--device", "cuda:99"],
            2,
            "device cannot be 'cuda:99': torch finds",
        ),
        (["show", "bilvel"], 2, "near: bilevel"),
        (["table", "small.toml", "--format", "latx"], 2, "near: latex"),
        (["table", "small.toml", "--out", "x.htm"], 2, "near: .html"),
        (["table", "all", "--out", "x.md"], 2, "one file holds one table"),
        (["plot", "small.toml", "--kind", "learnin"], 2, "near: learning"),
        (["new", "method", "1x"], 2, "near: my_1x"),
        (["new", "metod", "x"], 2, "near: method"),
        (["--plugin", "none.py", "list"], 2, "no plug-in file"),
        (["table", "small.toml", "--out", "small.toml/x.md"], 2, "cannot make the folder"),
        (["plot", "small.toml", "--out", "small.toml/x"], 2, "cannot make the folder"),
        (["report", "small.toml", "--out", "small.toml/x"], 2, "cannot make the folder"),
        (["reproduce", "small.toml", "--out", "small.toml/x"], 2, "cannot make the folder"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, words: list[str], code: int, says: str) -> None:
    typed = metabench(*words)
    assert typed.code == code
    assert says in typed.err
    assert typed.err.startswith("error: ") and typed.err.count("\n") == 1, typed.err
    assert not (folder / "results" / "runs").exists(), "refused before anything runs"


def test_usage_errors(folder: Path) -> None:
    assert metabench("pln").code == 2 and "plan" in metabench("pln").err
    assert metabench("plan", "--bdget", "smoke").code == 2
    assert metabench("run", "small.toml", "--jobs", "0").code == 2


def test_other_errors_keep_their_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "show", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metabench("show", "maml")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("\n1 / 0\n", "plug-in {}, line 2: ZeroDivisionError: division by zero"),
        ("import none_such\n", "plug-in {}, line 1: No module named 'none_such'"),
        (
            "import metabench\n@metabench.method('mine')\nclass Mine: pass\n",
            "method 'mine': class Mine does not derive from metabench.Method; write: class "
            "Mine(metabench.Method)",
        ),
    ],
    ids=["raises", "lacks a module", "registers what is no method"],
)
def test_a_broken_plugin_is_one_line(folder: Path, source: str, said: str) -> None:
    (folder / "broken.py").write_text(source)
    for words in (
        ["list", "--plugin", "broken.py"],
        ["plan", "small.toml", "--plugin", "broken.py"],
        ["rank", "broken.py"],
    ):
        typed = metabench(*words)
        assert (typed.code, typed.err) == (2, f"error: {said.format(folder / 'broken.py')}\n")


def test_plugins_may_stand_anywhere(folder: Path) -> None:
    (folder / "bad.py").write_text(BAD_METHOD)
    for words in (
        ["--plugin", "bad.py", "show", "bad"],
        ["show", "bad", "--plugin=bad.py"],
        ["show", "--plugin", "bad.py", "bad"],
    ):
        assert metabench(*words).code == 0


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("module", ["typer", "metabench.cli.printing", "metabench.suites.listing"])
def test_ctrl_c_is_one_line_from_the_first_import_on(module: str) -> None:
    """Before the command line is there, and within a command."""
    code = (
        "import os, signal, sys\n"
        # Ignored from birth where the tests run in the background of a shell.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv[1:] = ['list', 'suites']\n"
        "from metabench.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_while_words_are_read_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Commands, "parse_args", pressed)
    typed = metabench("list")
    assert (typed.code, typed.err) == (130, "interrupted\n")


def test_ctrl_c_ends_with_130_and_goes_on_later(folder: Path) -> None:
    (folder / "bad.py").write_text(BAD_METHOD)
    words = [
        "run",
        "--task",
        "quadratic",
        "--method",
        "bad",
        "--set",
        "bad.how=sleep",
        "--seeds",
        "0",
        "--set",
        "budget.outer_steps=100000",
        "--plugin",
        "bad.py",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "metabench", *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "starts" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert "checkpoint kept" in err and "run the same command again" in err
    assert "goes on from a checkpoint" in metabench("plan", *words[1:]).out


@pytest.mark.slow
def test_the_same_verbs_from_python(folder: Path) -> None:
    assert {e.name for e in api.list_()["method"]} >= {"bilevel", "maml"}
    assert api.show("bilevel")[0].settings[0].name == "inner_steps"
    how = {"budget": "smoke", "set": {"method.inner_lr": 0.2}, "store": folder / "py"}
    assert [p.state for p in api.plan("small.toml", **how)][:2] == ["open", "open"]
    summary = api.run("small.toml", only=["reverse/one"], **how)
    assert summary.count("done") == 1 and summary.exit_code == 0
    status = api.status("small.toml", **how)
    assert [p.state for p in status.planned][:2] == ["done", "open"]
    assert len(status.records) == 1 and status.problems == []
    assert "Unrolling" in api.table("small.toml", **how).text("markdown")
    shown = api.reproduce("small.toml", out=folder / "out", **how)
    assert shown.files[-1] == folder / "out" / "report.html"
    assert all(path.is_file() for path in shown.files)
    assert shown.results.states == {"done": 2, "not applicable": 2}
    with pytest.raises(UnknownName):
        api.run("small.toml", set={"method.inner_lrr": 1}, store=folder / "py")
    assert "omniglot" in [s.dataset.name for s in api.data_list()]
    with pytest.raises(UnknownName, match="near: omniglot"):
        api.data_verify("omniglt")
    with pytest.raises(UnknownName, match="near: omniglot"):
        api.data_fetch("omniglt", to=folder)
    with pytest.raises(UnknownName, match="near: ridge"):
        api.check("ridg")
    assert api.new("task", "mine", folder) == folder / "mine.py"
    assert {"machine", "data"} & {f.section for f in api.doctor(folder / "py")}
