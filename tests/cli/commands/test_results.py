"""What is finished, as tables, plots, reports and published files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typed_commands import SUITE, metabench

from metabench.store.store import Store


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
    words = ("--budget", "smoke", "--kind", "learning", "--store", "s")
    assert metabench("run", "small.toml", "--budget", "smoke", "--store", "s").code == 0
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
    assert (
        metabench("store", "import", records, "--store", "other", "--dry-run").out == "1 copied\n"
    )
    assert not (folder / "other").exists()
    assert metabench("store", "import", records, "--store", "other").out == "1 copied\n"
    again = metabench("store", "import", records, "--store", "other")
    assert again.code == 0 and again.out == "1 the same in both\n"
    table = metabench("table", *words, "--store", "other", "-f", "markdown").out
    assert table == (out / "table.md").read_text()
    assert metabench("report", *words, "--store", "other", "--out", "page").code == 0
    assert metabench("publish", *words, "--store", "other", "--out", "p").code == 0
    for name in files:
        assert (folder / "p" / name).read_bytes() == (out / name).read_bytes(), name

    (out / "records.jsonl.gz").write_bytes(b"{}")
    broken = metabench("store", "import", records, "--store", "other")
    assert broken.code == 2 and broken.out == "1 bad file\n"
    assert broken.err.startswith(f"{records}: line 1: the file is damaged")
    gone = metabench("store", "import", "none.gz", "--store", "other")
    assert gone.code == 2 and gone.err == "error: none.gz: No such file or directory\n"


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


def test_what_only_reads_asks_for_a_store_that_is_there(folder: Path) -> None:
    """A mistyped path is told, and not taken for a store without records."""
    (folder / "runs").mkdir()
    for verb in ("table", "plot", "report", "cost", "status", "compare small.toml@smoke"):
        wrong = metabench(*verb.split(), "small.toml", "--store", "rusn")
        assert wrong.code == 2 and wrong.out == "", verb
        assert wrong.err == "error: --store rusn: no such folder; near: runs\n", verb
    far = metabench("table", "small.toml", "--store", "nowhere/here")
    assert far.code == 2 and far.err == "error: --store nowhere/here: no such folder\n"
    assert metabench("table", "small.toml", "--store", "runs").code == 0
    assert metabench("table", "arena-1", "--store", "rusn").err == wrong.err
    assert not (folder / "rusn").exists()


def test_a_store_without_records_takes_no_files_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("small.toml", "--budget", "smoke")
    assert metabench("run", *words, "--store", "runs").code == 0
    verbs = (("plot", "--out", "o"), ("report", "--out", "o"), ("table", "--out", "o/table.md"))
    for verb in verbs:
        good = metabench(*verb, *words, "--store", "runs")
        assert good.code == 0 and good.err == "", verb
    before = {p: p.read_bytes() for p in (folder / "o").iterdir()}
    assert len(before) == 4
    (folder / "empty").mkdir()
    said = f"small: no record of budget smoke in {folder / 'empty'}"
    for verb in verbs:
        none = metabench(*verb, *words, "--store", "empty")
        assert none.code == 1 and none.out == "", verb
        assert none.err.startswith(f"error: {said}: "), none.err
        assert "wrote" not in metabench(*verb, *words, "--store", "empty").out
    shown = metabench("table", *words, "--store", "empty")
    assert shown.code == 0 and "no numbers of ours" in shown.out
    assert shown.err.endswith(f"{said}\n")
    for verb in ("cost", "status"):
        told = f"small: no record of these cells in {folder / 'empty'}\n"
        assert metabench(verb, *words, "--store", "empty").err == told, verb
    monkeypatch.setenv("METABENCH_STORE", str(folder / "mistyped"))
    for verb in verbs:
        none = metabench(*verb, *words)
        assert f"in {folder / 'mistyped'} (METABENCH_STORE)" in none.err, verb
    assert {p: p.read_bytes() for p in (folder / "o").iterdir()} == before


def test_of_all_suites_those_with_records_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.core import catalogue

    monkeypatch.setattr(catalogue, "suite_names", lambda: ["small.toml", "pbgd-toy"])
    words = ("plot", "all", "--budget", "smoke", "--store", "runs", "--out", "o")
    (folder / "runs").mkdir()
    none = metabench(*words)
    assert none.code == 1 and none.err.count(": no record of budget smoke in ") == 2
    assert not (folder / "o").exists()
    assert metabench("run", "small.toml", "--budget", "smoke", "--store", "runs").code == 0
    some = metabench(*words)
    assert some.code == 0 and some.err.count("no record of budget smoke in ") == 1, some.err
    assert (folder / "o" / "small" / "learning.png").is_file()


def test_what_could_not_be_run_is_shown_and_no_file_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metabench.suites import planning

    lack = ("nothing like that is here", "metabench data fetch it")
    monkeypatch.setattr(planning, "_missing_data", lambda said: lack)
    typed = metabench("reproduce", "small.toml", "--budget", "smoke", "--out", "o")
    assert typed.code == 1 and lack[0] in typed.out
    assert f"no record of budget smoke in {folder / 'results' / 'runs'}" in typed.err
    assert not [*(folder / "o").iterdir()]


def test_a_store_is_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("x")
    (folder / "records.jsonl.gz").write_text("x")
    suite = ("small.toml", "--budget", "smoke")
    verbs = [(v, *suite) for v in ("run", "plan", "table", "plot", "report", "cost", "status")]
    verbs += [("store", "import", "records.jsonl.gz"), ("publish", *suite)]
    for verb in verbs:
        typed = metabench(*verb, "--store", "file")
        assert typed.code == 2 and typed.out == "", verb
        told = "--store file: a file, and a store is a folder, such as .\n"
        assert typed.err == f"error: {told}", typed.err
    hint = metabench("table", *suite, "--store", "records.jsonl.gz").err
    assert hint.endswith("; to read it: metabench store import records.jsonl.gz\n")
    monkeypatch.setenv("METABENCH_STORE", "file")
    assert metabench("table", *suite).err.startswith("error: METABENCH_STORE=file: a file, ")


def test_files_that_cannot_be_written_are_one_line(folder: Path) -> None:
    assert metabench("run", "small.toml", "--budget", "smoke").code == 0
    for name in ("learning.png", "report.html", "table.md"):
        (folder / "out" / name).mkdir(parents=True)
    for words in (["plot", "--out", "out", "--kind", "learning"], ["report", "--out", "out"]):
        typed = metabench(*words, "small.toml", "--budget", "smoke")
        assert typed.code == 1 and typed.err.count("\n") == 1, typed.err
        assert typed.err.startswith("error: cannot write ") and "Is a directory" in typed.err
