"""The commands, typed: in this process where only words matter, in their own where that does."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from metabench import api
from metabench.cli.main import Commands, app
from metabench.cli.options import seed_list
from metabench.cli.printing import terminal
from metabench.core import registry
from metabench.core.catalogue import listing
from metabench.core.errors import SettingError, UnknownName
from metabench.datasets import catalogue, fetch, verify
from metabench.store import files
from metabench.store.store import Store
from metabench.suites.planning import STATES

SUITE = """
title = "Small"
metric = "loss"
goal = "min"
command = "metabench reproduce small.toml"
plots = ["learning"]
[budgets.smoke]
seeds = [0]
outer_steps = 2
eval_every = 1
valid_episodes = 1
test_episodes = 1
[budgets.laptop]
seeds = [0, 1]
outer_steps = 3
eval_every = 1
valid_episodes = 1
test_episodes = 1
[budgets.paper]
seeds = [0]
outer_steps = 4
[[columns]]
id = "one"
task = "quadratic"
[[columns]]
id = "four"
task = "quadratic"
set.task = { dim = 4 }
[[rows]]
id = "reverse"
label = "Unrolling"
method = "bilevel"
chosen = "own"
set.method = { inner_steps = 3 }
[[rows]]
id = "maml"
method = "maml"
chosen = "own"
[[paper]]
row = "reverse"
column = "one"
value = 0.0
source = "closed form"
label = "derived"
"""


class Typed:
    """What a command gave: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def rows(self) -> list[list[str]]:
        return [re.split(r"\s{2,}", line.strip()) for line in self.out.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_forgotten: None) -> Path:
    """A working directory with a suite, its own store, and no plug-ins but its own; what is printed
    has room, so that a phrase stands in one line."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METABENCH_STORE", raising=False)
    (tmp_path / "small.toml").write_text(SUITE)
    return tmp_path


def metabench(*words: str) -> Typed:
    done = CliRunner().invoke(app, list(words), prog_name="metabench")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Typed(done.exit_code, done.stdout, done.stderr)


def test_list_names_everything(folder: Path) -> None:
    typed = metabench("list")
    assert typed.code == 0
    names = {row[0] for row in typed.rows}
    assert {"quadratic", "ridge", "bilevel", "maml", "sgd", "quickstart", "omniglot"} <= names
    assert "Problems with known answers" in typed.out
    only = metabench("list", "methods")
    assert "bilevel" in only.out and "quadratic" not in only.out
    assert metabench("list", "methds").code == 2


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


def test_published_numbers_from_memory_are_counted_and_shown_on_demand(folder: Path) -> None:
    """Wherever a table is made, and what a table says of it can be typed."""
    more = '[[paper]]\nrow = "maml"\ncolumn = "one"\nvalue = 7.25\nsource = "x"\nlabel = "memory"\n'
    (folder / "small.toml").write_text(SUITE + more)
    shown = metabench("show", "small.toml").out
    assert "published numbers: 2: 1 [derived], 1 from memory (not printed)" in shown
    assert re.search(r"reverse +set by hand, no trial recorded", shown)
    words = ["small.toml", "--budget", "smoke"]
    metabench("run", *words, "--jobs", "1")
    for verb, file in (("table", ""), ("publish", "table.md"), ("report", "report.html")):
        for asked in ([], ["--unverified"]):
            out = metabench(verb, *words, *asked, *(["--out", verb] if file else [])).out
            text = (folder / verb / file).read_text(encoding="utf-8") if file else out
            assert ("7.25?" in text) == bool(asked), verb
            assert ("--unverified shows it" in text) == (not asked), verb


def test_help_tells_the_defaults() -> None:
    """In square brackets inside a help text they would be taken for markup, and vanish."""

    def told(command: str) -> str:
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", metabench(command, "--help").out).split())

    shown = told("run")
    assert "[default: (results/runs)]" in shown
    assert "[default: (a GPU if there is" in shown
    assert "(results/SUITE/BUDGET)" in metabench("plot", "--help").out
    assert "(by the name of --out, else" in told("table")


def test_show_tells_settings_needs_and_source(folder: Path) -> None:
    typed = metabench("show", "bilevel")
    assert typed.code == 0
    rows = {row[0]: row[1:] for row in typed.rows}
    assert rows["inner_steps"][:2] == ["5", "int, at least 0"]
    assert rows["mode"] == ["reverse", "reverse or forward"]
    assert rows["truncate"][0] == "unset"
    assert "Differentiate the last K inner steps only" in rows["truncate"][-1]
    assert "Clip every entry" in rows["clip"][-1], "a docstring of the base class"
    assert "needs: an outer loss with a derivative" in typed.out
    assert "Franceschi" in typed.out
    assert str(registry.methods._folder() / "bilevel.py") in typed.out
    task = metabench("show", "quadratic").out
    assert "metric: loss (lower is better)" in task and "offers: " in task
    assert "no: maml needs a lam that is the initial value of theta" in task
    assert rows["quadratic"] == ["yes"]


def test_show_finds_every_kind(folder: Path) -> None:
    both = metabench("show", "omniglot").out
    assert "suite omniglot: " in both
    assert "; laptop: method.outer_lr = 0.003, method.outer_decay = linear" in both
    assert "98.7 +- 0.4 (95 % interval over episodes)" in both
    assert "; laptop, 5w5s: budget.outer_steps = 2000" in both
    assert "momentum" in metabench("show", "momentum").out
    small = metabench("show", "small.toml").out
    assert "suite small: Small" in small and "closed form [derived]" in small
    assert "method.inner_steps = 3" in small
    shown = re.search(r"settings of a budget\n(.*\n)*?eval_every +100 +int, at least 1", small)
    assert shown, "what --set budget.NAME=VALUE may set"
    assert metabench("show", "omniglot", "--kind", "method").code == 2
    prompt = next(r for r in metabench("show", "self_edit_policy").rows if "grader_prompt" in r)
    assert len(prompt[1]) <= 60 and prompt[1].endswith("..."), "a page of a default is cut"


@pytest.mark.slow
def test_show_shows_everything_that_is_listed(folder: Path) -> None:
    for entries in listing().values():
        for entry in entries:
            assert metabench("show", entry.name).code == 0, entry


def test_plan_is_a_dry_run(folder: Path) -> None:
    typed = metabench("plan", "small.toml")
    assert typed.code == 0
    assert ["reverse", "one", "0, 1", "open"] in typed.rows
    assert typed.rows[-2:] == [
        ["8 cells: 4 open, 4 not applicable"],
        ["to run: 4 cells; 4 of unknown cost"],
    ]
    assert "maml needs a lam that is the initial value" in typed.out
    assert sorted(p.name for p in folder.iterdir()) == ["small.toml"]


def test_a_run_of_nothing_says_why(folder: Path) -> None:
    typed = metabench("run", "small.toml", "--only", "maml")
    assert typed.code == 0 and "4 not applicable" in typed.err
    assert "not applicable (4 cells): maml needs a lam that is the initial value" in typed.err
    noisy = ["--task", "ridge", "--method", "pbgd", "--solver", "langevin", "--budget", "smoke"]
    for verb in ("plan", "run"):
        typed = metabench(verb, *noisy)
        assert "without noise: langevin adds some" in typed.out + typed.err
    assert not (folder / "results").exists()


@pytest.mark.slow
def test_a_cell_that_two_columns_share_is_counted_once(folder: Path) -> None:
    twice = SUITE.replace("[[rows]]", '[[columns]]\nid = "again"\ntask = "quadratic"\n[[rows]]', 1)
    (folder / "twice.toml").write_text(twice)
    assert "2/2 cells, 2 done" in metabench("run", "twice.toml", "--budget", "smoke").err


def test_from_run_to_report(folder: Path) -> None:
    first = metabench("run", "small.toml", "--budget", "smoke")
    assert first.code == 0, first.err
    assert "2/2 cells, 2 done" in first.err
    store = Store(folder / "results" / "runs")
    assert [r.status for r in store.records()] == ["done", "done"]
    before = {r.key: r.ended for r in store.records()}

    again = metabench("run", "small.toml", "--budget", "smoke")
    assert again.code == 0 and "2 done" in again.err
    assert {r.key: r.ended for r in store.records()} == before

    plan = metabench("plan", "small.toml", "--budget", "smoke").out
    assert "4 cells: 2 done, 2 not applicable" in plan
    laptop = metabench("plan", "small.toml").out
    assert re.search(r"to run: 4 cells; 4 of them about \S+ s by similar finished cells", laptop)
    status = metabench("status", "small.toml", "--budget", "smoke").out
    assert "2 done, 2 not applicable" in status
    assert ["quadratic", "bilevel", "done", "2"] in metabench("status").rows

    table = metabench("table", "small.toml", "--budget", "smoke")
    assert table.code == 0 and "Unrolling" in table.out and "budget smoke" in table.out
    for fmt, sign in (("markdown", "| Unrolling"), ("latex", "\\toprule"), ("html", "<table")):
        assert sign in metabench("table", "small.toml", "--budget", "smoke", "-f", fmt).out
    written = metabench("table", "small.toml", "--budget", "smoke", "--out", "t/small.csv")
    assert written.out == "wrote t/small.csv\n"
    assert (folder / "t" / "small.csv").read_text().startswith("suite,budget,")
    assert "no numbers of ours" in metabench("table", "small.toml").out, "budgets do not mix"

    plots = metabench("plot", "small.toml", "--budget", "smoke", "--kind", "learning")
    assert sorted(p.name for p in (folder / "results" / "small" / "smoke").iterdir()) == [
        "learning.pdf",
        "learning.png",
    ]
    assert "wrote results/small/smoke/learning.png" in plots.out
    page = metabench("report", "small.toml", "--budget", "smoke", "--out", "page")
    assert page.out == "wrote page/report.html\n"
    assert "<html" in (folder / "page" / "report.html").read_text()


def test_two_suite_files_of_one_name_do_not_share_a_folder(folder: Path) -> None:
    words = ("--budget", "smoke", "--kind", "learning")
    other = folder / "other"
    other.mkdir()
    for name in ("small", "quickstart"):
        (other / f"{name}.toml").write_text(SUITE)
    assert metabench("plot", "small.toml", *words).code == 0
    before = (folder / "results" / "small" / "smoke" / "learning.png").stat().st_mtime_ns
    for verb in (["plot"], ["report"], ["reproduce"], ["publish"]):
        typed = metabench(*verb, "other/small.toml", "--budget", "smoke")
        assert typed.code == 2 and typed.err.count("\n") == 1, typed.err
        assert "results/small holds what the suite file small.toml gives" in typed.err
        assert "other/small.toml is another suite of that name: give --out DIR" in typed.err
    assert not Store().records(), "told before hours of running"
    built_in = metabench("plot", "other/quickstart.toml", *words)
    assert built_in.code == 2 and "results/quickstart holds what the suite file" in built_in.err
    assert (folder / "results" / "small" / "smoke" / "learning.png").stat().st_mtime_ns == before
    assert metabench("plot", str(folder / "small.toml"), *words).code == 0, "the same file"
    assert metabench("plot", "other/small.toml", "--out", "o", *words).code == 0
    (other / "small.toml").write_text('name = "own"\n' + SUITE)
    assert metabench("plot", "other/small.toml", *words).code == 0
    assert (folder / "results" / "own" / "smoke").is_dir()
    (folder / "small.toml").rename(folder / "moved.toml")
    (other / "small.toml").write_text(SUITE)
    assert metabench("plot", "other/small.toml", *words).code == 0, "the first one is gone"


def test_reproduce_runs_and_shows(folder: Path) -> None:
    every_kind = SUITE.replace('plots = ["learning"]\n', "")
    assert every_kind != SUITE
    (folder / "small.toml").write_text(every_kind)
    typed = metabench(
        "reproduce", "small.toml", "--budget", "smoke", "--store", "s", "--only", "reverse/one"
    )
    assert typed.code == 0, typed.err
    out = folder / "results" / "small" / "smoke"
    assert "Unrolling" in typed.out
    assert f"report: {out.relative_to(folder) / 'report.html'}" in typed.out
    names = {p.name for p in out.iterdir()}
    assert {
        "table.md",
        "table.tex",
        "table.csv",
        "table.html",
        "table.txt",
        "report.html",
        "learning.png",
        "learning.pdf",
    } <= names
    assert [r.status for r in Store(folder / "s").records()] == ["done"]
    assert "1 open" in typed.out, "the cell that was not asked for is a hole"
    assert f"{len(names) - 1} files of tables and plots" in typed.out


def test_published_records_give_the_same_table_elsewhere(folder: Path) -> None:
    words = ("small.toml", "--budget", "smoke")
    nothing = metabench("publish", *words)
    assert nothing.code == 1 and "nothing to publish; run: metabench run" in nothing.err
    assert metabench("run", *words, "--only", "reverse/one").code == 0
    typed = metabench("publish", *words)
    assert typed.code == 0 and typed.err == "1 cell without a finished record\n"
    out = folder / "results" / "small" / "smoke"
    files = ["figure.png", "records.jsonl.gz", "table.csv", "table.md"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert sorted(typed.out.splitlines()) == [f"wrote results/small/smoke/{f}" for f in files]

    records = str(out / "records.jsonl.gz")
    assert metabench("store", "import", records, "--into", "other", "--dry-run").out == "1 copied\n"
    assert not (folder / "other").exists()
    assert metabench("store", "import", records, "--into", "other").out == "1 copied\n"
    again = metabench("store", "import", records, "--into", "other")
    assert again.code == 0 and again.out == "1 the same in both\n"
    table = metabench("table", *words, "--store", "other", "-f", "markdown").out
    assert table == (out / "table.md").read_text()
    assert metabench("report", *words, "--store", "other", "--out", "page").code == 0
    assert metabench("publish", *words, "--store", "other", "--out", "p").code == 0
    for name in files:
        assert (folder / "p" / name).read_bytes() == (out / name).read_bytes(), name

    (out / "records.jsonl.gz").write_bytes(b"{}")
    broken = metabench("store", "import", records, "--into", "other")
    assert broken.code == 2 and broken.out == "1 bad files\n"
    assert broken.err.startswith(f"{records}: line 1: the file is damaged")
    gone = metabench("store", "import", "none.gz", "--into", "other")
    assert gone.code == 2 and gone.err == "error: none.gz: No such file or directory\n"


def test_a_figure_that_is_no_longer_drawn_is_not_left_behind(folder: Path) -> None:
    words = ("small.toml", "--budget", "smoke")
    assert metabench("run", *words, "--only", "reverse/one").code == 0
    assert "figure.png" in metabench("publish", *words).out
    figure = folder / "results" / "small" / "smoke" / "figure.png"
    assert figure.is_file()
    suite = folder / "small.toml"
    suite.write_text(suite.read_text().replace("goal = ", "gap = true\ngoal = ", 1))
    assert "figure.png" not in metabench("publish", *words).out
    assert not figure.exists() and (figure.parent / "table.md").is_file()


@pytest.mark.slow
def test_a_crossing_without_a_suite(folder: Path) -> None:
    words = [
        "--task",
        "quadratic",
        "--method",
        "bilevel",
        "--method",
        "fixed",
        "--budget",
        "smoke",
        "--set",
        "budget.outer_steps=1",
        "--seeds",
        "3",
    ]
    typed = metabench("run", *words)
    assert typed.code == 0, typed.err
    assert {r.cell.seed for r in Store().records()} == {3}
    assert {r.cell.budget["outer_steps"] for r in Store().records()} == {1}
    assert "fixed" in metabench("table", *words).out
    refused = metabench("run", "small.toml", "--task", "quadratic")
    assert refused.code == 2 and "not both" in refused.err


def test_settings_reach_the_cells(folder: Path) -> None:
    metabench(
        "run",
        "small.toml",
        "--budget",
        "smoke",
        "--only",
        "reverse/one",
        "--set",
        "method.inner_lr=0.05",
        "--set",
        "one.a=3",
        "--seeds",
        "5",
    )
    (record,) = Store().records()
    assert record.cell.method_settings["inner_lr"] == 0.05
    assert record.cell.task_settings["a"] == 3.0
    assert record.cell.seed == 5


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


def test_files_that_cannot_be_written_are_one_line(folder: Path) -> None:
    for name in ("learning.png", "report.html", "table.md"):
        (folder / "out" / name).mkdir(parents=True)
    for words in (["plot", "--out", "out", "--kind", "learning"], ["report", "--out", "out"]):
        typed = metabench(*words, "small.toml", "--budget", "smoke")
        assert typed.code == 1 and typed.err.count("\n") == 1, typed.err
        assert typed.err.startswith("error: cannot write ") and "Is a directory" in typed.err


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


BAD_METHOD = '''"""Fails, or not, as told."""
from dataclasses import dataclass
from metabench.core.errors import Diverged
from metabench.contract.gradient_method import GradientMethod
from metabench.core.registry import methods

@methods.register("bad")
@dataclass(frozen=True)
class Bad(GradientMethod):
    """Fails, or not, as told."""
    how: str = "fail"

    @property
    def needs(self):
        return frozenset()

    def step(self, ctx, state):
        if self.how == "sleep":
            import time
            time.sleep(0.02)
            return state, {}
        if self.how == "diverge":
            raise Diverged("the sky fell")
        raise RuntimeError("no way")
'''


def test_failed_cells_are_told_with_their_traceback(folder: Path) -> None:
    (folder / "bad.py").write_text(BAD_METHOD)
    words = ["--task", "quadratic", "--method", "bad", "--budget", "smoke", "--plugin", "bad.py"]
    typed = metabench("run", *words)
    assert typed.code == 1
    raised = f"raised at {folder / 'bad.py'}:"
    (failed,) = Store(folder / "results" / "runs").records()
    named = f"bad/quadratic seed 0 [{failed.key[:10]}]: failed: RuntimeError: no way\n"
    assert named + f"    {raised}" in typed.err
    command = typed.err.partition("; traceback: ")[2].splitlines()[0]
    logs = metabench(*shlex.split(command)[1:])
    assert logs.code == 0 and "Traceback (most recent call last)" in logs.out
    assert 'raise RuntimeError("no way")' in logs.out
    assert metabench("run", *words, "--set", "bad.how=diverge").code == 1
    status = metabench("status", *words)
    assert f"RuntimeError: no way ({raised}" in status.out and "--tracebacks" in status.out
    assert "Traceback" not in status.out
    keys = {r.key[:10] for r in Store(folder / "results" / "runs").records()}
    assert sum(key in status.out for key in keys) == 1, "what logs is to be given"
    status = metabench("status", *words, "--tracebacks")
    assert "Traceback (most recent call last)" in status.out and "in step" in status.out
    assert named.rstrip() in status.out
    everything = metabench("status", "--plugin", "bad.py")
    assert "diverged: the sky fell" in everything.out
    assert "1 failed" in metabench("table", *words).out


def test_plugins_may_stand_anywhere(folder: Path) -> None:
    (folder / "bad.py").write_text(BAD_METHOD)
    for words in (
        ["--plugin", "bad.py", "show", "bad"],
        ["show", "bad", "--plugin=bad.py"],
        ["show", "--plugin", "bad.py", "bad"],
    ):
        assert metabench(*words).code == 0


def test_damaged_files_are_told(folder: Path) -> None:
    metabench("run", "small.toml", "--budget", "smoke", "--only", "reverse/one")
    (path,) = (folder / "results" / "runs").glob("*/*/record.json")
    path.write_text(path.read_text()[:100])
    status = metabench("status", "small.toml", "--budget", "smoke").out
    assert f"bad file: {path}" in status and "cannot be read as a record" in status
    table = metabench("table", "small.toml", "--budget", "smoke")
    assert f"bad file: {path}" in table.err and "bad file" not in table.out
    typed = metabench("run", "small.toml", "--budget", "smoke", "--only", "reverse/one")
    assert typed.code == 0 and "quarantined" in typed.err
    assert list((folder / "results" / "runs" / "set-aside").iterdir())


def test_a_cell_that_is_closed_to_us_is_told_and_the_others_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague's run with umask 077."""
    crossing = ["--task", "ridge", "--method", "bilevel", "--budget", "smoke"]
    words = [*crossing, "--set", "budget.outer_steps=1"]
    assert metabench("run", *words, "--seeds", "1").code == 0
    (theirs,) = (path.parent for path in Store().root.glob("*/*/record.json"))

    def refusing(real: Callable[[Path], object]) -> Callable[[Path], object]:
        def look(path: Path) -> object:
            if theirs in (path, path.parent):
                raise files.Unreadable(path, PermissionError(13, "Permission denied"))
            return real(path)

        return look

    monkeypatch.setattr(files, "read", refusing(files.read))
    monkeypatch.setattr(files, "entries", refusing(files.entries))
    words += ["--seeds", "1,2"]
    told = f"{theirs}: cannot be read: Permission denied"
    plan = metabench("plan", *words)
    assert plan.code == 0 and "1 closed" in plan.out and f"chmod -R a+rX {theirs}" in plan.out
    typed = metabench("run", *words)
    assert typed.code == 1 and told in typed.err and "1 closed" in typed.err
    assert {r.cell.seed for r in Store().records()} == {2}
    assert told in metabench("status", *words).out
    table = metabench("table", *words)
    assert table.code == 0 and told in table.err


def test_missing_packages_and_data_are_told_with_their_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad.py").write_text(
        BAD_METHOD.replace("how: str", "packages = ('no_such_package',)\n    how: str")
    )
    words = ["--task", "quadratic", "--method", "bad", "--budget", "smoke", "--plugin", "bad.py"]
    assert "repair it with: pip install no_such_package" in metabench("plan", *words).out
    for verb in ("run", "reproduce"):
        typed = metabench(verb, *words)
        assert typed.code == 1, "as where data is missing"
        assert "repair it with: pip install no_such_package" in typed.err
    assert "pip install no_such_package" in typed.out, "the table says why it is a hole"
    assert Store().records() == []


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("module", ["typer", "metabench.cli.printing", "metabench.suites.listing"])
def test_ctrl_c_is_one_line_from_the_first_import_on(module: str) -> None:
    """Before the command line is there, and within a command."""
    code = (
        "import os, signal, sys\n"
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
def test_parallel_jobs(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metabench", "run", "small.toml", "--jobs", "2", "--store", "p"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(Store(folder / "p").records()) == 4


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


def test_tables_fit_80_columns_and_keep_names_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for words in (["show", "maml"], ["show", "omniglot"], ["plan", "omniglot"], ["list"]):
        printed = metabench(*words).out
        plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
        assert "\x1b[" in printed, "printed as on a terminal"
        assert "…" not in plain
        long = [
            ln
            for ln in plain.splitlines()
            if len(ln) > 80
            and "source: " not in ln
            and "repair it with" not in ln
            and "of unknown cost" not in ln
        ]
        assert not long, long
    monkeypatch.delenv("FORCE_COLOR")
    piped = metabench("show", "maml").out
    assert "\x1b[" not in piped and "memory_budget_gb" in piped


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("show", "maml"),
        ("show", "omniglot", "--kind", "suite"),
        ("plan", "closed-form"),
        ("status", "closed-form"),
        ("table", "prospect-uci", "--budget", "smoke"),
        ("table", "prospect-uci", "--budget", "smoke", "--format", "rich"),
        ("table", "prospect-uci", "--budget", "smoke", "--cost"),
    ],
    ids=" ".join,
)
def test_what_is_piped_fits_the_columns_that_are_asked_for_or_80(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    wide = re.sub(r"\x1b\[[0-9;]*m", "", metabench(*words).out)
    assert max(map(len, wide.splitlines())) > 100, "it has to be wrapped"
    for width in (80, 100):
        monkeypatch.delenv("COLUMNS", raising=False)
        if width != 80:
            monkeypatch.setenv("COLUMNS", str(width))
        plain = re.sub(r"\x1b\[[0-9;]*m", "", metabench(*words).out)
        long = [ln for ln in plain.splitlines() if len(ln) > width]
        assert not long, long
        assert "…" not in plain or "…" in wide, "nothing is cut off"


def test_reasons_stand_once_below_a_plan_that_is_too_wide_for_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "maml needs a lam that is the initial value of theta, which the task does not offer"
    asked = ("plan", "closed-form", "--budget", "smoke", "--only", "maml")
    assert metabench(*asked).out.count(reason) == 3
    monkeypatch.delenv("COLUMNS")
    assert " ".join(metabench(*asked).out.split()).count(reason) == 1, "in a pipe of 80 columns"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def plain(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        return re.sub(r"\x1b\[[0-9;]*m", "", metabench(*asked).out)

    assert plain(200).count(reason) == 3
    narrow = plain(80)
    assert re.search(r"maml +vector +0 +not applicable +\[1\]\s", narrow)
    assert re.search(r"maml +ridge +0 +not applicable +\[1\]\s", narrow)
    assert " ".join(narrow.split()).count(f"[1] {reason}") == 1


def test_every_state_has_a_look() -> None:
    out = Console(width=80, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    terminal.grid(out, ("state",), [(state,) for state in STATES])
    assert set(STATES) <= terminal.STYLES.keys()
    out.file.close()


def test_seed_lists() -> None:
    assert seed_list(None) is None
    assert seed_list("0") == [0]
    assert seed_list("0, 2,5-7,6") == [0, 2, 5, 6, 7]
    with pytest.raises(SettingError, match="more than 10,000"):
        seed_list("0-99999999999")
    for text in ("", "a", "1-", "-1", "3-1", "1,,2", "1.5", "٣", "1-٣", "9" * 5000):
        with pytest.raises(SettingError, match="seeds"):
            seed_list(text)


def test_data_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABENCH_DATA", str(folder / "nowhere"))
    monkeypatch.setenv("METABENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HOME", str(folder))
    typed = metabench("data", "list")
    assert typed.code == 0
    assert "omniglot: Omniglot" in typed.out and "metabench data fetch omniglot" in typed.out
    assert metabench("data").out == typed.out
    for known in catalogue.DATASETS.values():
        told = typed.out[typed.out.index(f"{known.name}: ") :].split("\n\n")[0]
        assert known.origin in told and known.licence in told and known.offline in told
        for layout in known.layouts:
            assert all(file.sha256 in told for file in layout.files)
            assert all(archive.checksum.split(":")[1] in told for archive in layout.archives)
    assert metabench("data", "verify").out == "no data sets here: nothing to verify\n"
    assert metabench("data", "verify", "omniglt").err.startswith(
        "error: no data set 'omniglt'; near: omniglot"
    )
    assert metabench("data", "fetch", "omniglt").code == 2
    missing = metabench("data", "verify", "omniglot")
    assert missing.code == 1 and "not found; looked in" in missing.err
    plan = metabench("plan", "omniglot", "--budget", "smoke")
    assert plan.code == 0 and "repair it with: metabench data fetch omniglot" in plan.out
    run = metabench("run", "omniglot", "--budget", "smoke", "--only", "maml")
    assert run.code == 1 and "metabench data fetch omniglot" in run.err
    assert Store().records() == []


def test_fetching_and_verifying_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metabench.datasets.verify import Verdict

    def fetched(name: str, *, to: Path | None, progress: Callable[..., None]) -> Path:
        for so_far in (0, 5, 10):
            progress("https://example.org/a/omniglot.zip", so_far, 10)
        return to or folder

    monkeypatch.setattr(fetch, "fetch", fetched)
    typed = metabench("data", "fetch", "omniglot", "--to", "here")
    assert typed.out == "omniglot is in here\n"
    assert typed.err.rstrip() == "fetching https://example.org/a/omniglot.zip"
    verdicts = [Verdict(Path("a.npz")), Verdict(Path("b.npz"), "5 bytes instead of 6")]
    monkeypatch.setattr(verify, "verify", lambda name: verdicts)
    typed = metabench("data", "verify", "omniglot")
    assert typed.code == 1
    assert typed.out == "ok     a.npz\nWRONG  b.npz: 5 bytes instead of 6\n"


def test_check_tells_every_promise(folder: Path) -> None:
    typed = metabench("check", "fixed")
    assert typed.code == 0 and typed.out.endswith("fixed passes every check\n")
    assert typed.out.count("ok  ") > 10
    (folder / "bad.py").write_text(BAD_METHOD)
    typed = metabench("check", "bad", "--plugin", "bad.py")
    assert typed.code == 1
    assert "FAILED" in typed.out and re.search(r"bad fails \d+ checks", typed.out)
    assert metabench("check", "fixd").code == 2
    for name, kind in (("adam", "solver"), ("omniglot-x", ""), ("quickstart", "suite")):
        typed = metabench("check", name)
        assert typed.code == 2 and f"no method or task '{name}'" in typed.err
        assert (f"{name} is a {kind}: only methods and tasks are checked" in typed.err) == bool(
            kind
        )
