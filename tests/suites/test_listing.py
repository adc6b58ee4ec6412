"""What lists say of suites: true to the suites themselves, from the heads of their files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from metabench.cli.main import app
from metabench.cli.printing.inventory import print_suites
from metabench.core import toml
from metabench.core.catalogue import suite_folder, suite_heads, suite_names
from metabench.core.registry import tasks
from metabench.suites import loading
from metabench.suites.listing import ListedSuite, listed_suites

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_names_the_data_that_its_laptop_cells_read(name: str) -> None:
    suite = loading.load(name)
    read = {
        data for item in suite.cells("laptop") if item.skip is None for data in item.parts[0].data
    }
    assert sorted(read) == suite.data == suite_heads()[name].get("data", [])
    assert suite.reference == suite_heads()[name].get("reference", "")
    assert tasks.get(suite.columns[0].task)


def test_the_readme_says_the_same_of_papers() -> None:
    """Every suite that a line of its table names is that paper's, or one that the line names."""
    rows = [line.split("|") for line in README.read_text().splitlines() if line.startswith("| ")]
    papers: dict[str, str] = {}
    for row in rows:
        for name in re.findall(r"`([\w-]+)`", row[-2]) if len(row) == 6 else ():
            papers[name] = papers.get(name, "") + row[1]
    known = {name: head.get("reference", "") for name, head in suite_heads().items()}
    assert len(papers) >= 40
    for name, said in papers.items():
        if known[name]:
            assert known[name].split()[0].rstrip(",") in said and known[name][-4:] in said, name
    assert {n for n, paper in known.items() if not paper} == {
        "closed-form",
        "crossing",
        "quickstart",
    }


@pytest.mark.parametrize("name", suite_names())
def test_a_head_is_what_the_whole_file_says_before_its_tables(name: str) -> None:
    path = suite_folder() / f"{name}.toml"
    whole, head = toml.read(path), toml.head(path)
    assert {k: whole[k] for k in head} == head
    assert all(isinstance(whole[k], dict | list) for k in whole.keys() - head.keys())


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("a = 1\n[t]\nb = 2\n", {"a": 1}),
        ('a = """\n[no table]\n"""\nb = 2\n[t]\n', {"a": "[no table]\n", "b": 2}),
        ("a = [\n  [1],\n]\nb = 2\n[[t]]\nc = 3\n", {"a": [[1]], "b": 2}),
        ("a = 1\n", {"a": 1}),
        ("  [t]\nb = 2\n", {}),
    ],
)
def test_brackets_within_values_begin_no_table(tmp_path: Path, text: str, head: object) -> None:
    (tmp_path / "x.toml").write_text(text)
    assert toml.head(tmp_path / "x.toml") == head


def test_what_is_no_toml_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("a = \n[t]\n")
    with pytest.raises(ValueError, match="line 1"):
        toml.head(tmp_path / "x.toml")


def test_data_that_is_not_here_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path))
    found = {s.name: s for s in listed_suites()}
    assert found["maml-miniimagenet"].missing == ("miniimagenet",)
    assert found["quickstart"].data == found["quickstart"].missing == ()
    monkeypatch.setenv("COLUMNS", "300")
    text = CliRunner().invoke(app, ["list", "suites"]).output
    (line,) = (line for line in text.splitlines() if line.startswith("maml-miniimagenet "))
    assert "Finn et al. 2017" in line and "miniimagenet (not here)" in line


def test_where_a_table_does_not_fit_a_suite_has_two_lines() -> None:
    suites = [
        ListedSuite("one", "A title of some length", "Finn et al. 2017", ("mnist",), (), 3, 75.0),
        ListedSuite("two", "Another", "", tuple("abcd"), ("a",)),
    ]
    console = Console(width=50, force_terminal=False)
    with console.capture() as told:
        print_suites(console, suites)
    assert told.get().splitlines()[2:7] == [
        "one: A title of some length",
        "    paper: Finn et al. 2017; data: mnist; laptop:",
        "1 min 15 s",
        "two: Another",
        "    data: 4 data sets, 1 not here",
    ]


def test_lists_import_neither_torch_nor_what_draws() -> None:
    code = (
        "import sys\n"
        "from metabench.core.catalogue import listing\n"
        "from metabench.suites.listing import listed_suites\n"
        "assert listing() and listed_suites()\n"
        "heavy = ('torch', 'pandas', 'scipy', 'matplotlib', 'jinja2')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
