"""The tests of ranks on the leaderboard page: those of Python, for whatever is shown."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import arenas_by_formula as arenas
import pytest
from browsers import Browser
from leaderboards import MINE, Arena, drop, names, pick, rows, unranked
from optional import needs

from metabench.analysis import stats
from metabench.analysis.arena.track import TrackResults
from metabench.api.arena import tournament
from metabench.api.arena.leaderboard import leaderboard
from metabench.reports.arena.significance import shown_better
from metabench.reports.pages.leaderboard import FOLDER
from metabench.reports.tables.renderers import WORSE
from metabench.store.store import Store
from metabench.suites.arena.definition import AS_SHIPPED

needs("vl_convert")

pytestmark = pytest.mark.browser
SEVEN = tuple(f"dim{i}" for i in range(2, 9))
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Arenas have seven problems."""
    with pytest.MonkeyPatch.context() as patch:
        made = {
            name: (f"Quadratic, {name[3:]}", "A", "quadratic", f"dim = {name[3:]}", 4.0, 0.0,
                   "best_valid")
            for name in SEVEN
        }  # fmt: skip
        patch.setattr(arenas, "PROBLEMS", made)
        yield patch


@pytest.fixture(scope="module")
def arena(seven: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("seven"))


@pytest.fixture(scope="module")
def page(arena: Arena) -> Path:
    return arena.page()


def said(browser: Browser) -> str:
    return browser.one("#standings-tests").text.replace("\u00a0", " ").replace("\u2019", "'")


def marks(browser: Browser) -> dict[str, str]:
    """Each row's label to those that it is shown to be worse than, as the page says it."""
    found = browser.run(
        "return [...document.querySelectorAll('#standings tbody tr')].map(r => ["
        "r.querySelector('.name span').textContent, r.querySelector('td').innerText,"
        "r.querySelector('td').title])"
    )
    for _, rank, title in found:
        assert rank.endswith(WORSE) == title.startswith("shown to be worse than")
    return {
        label: title.removeprefix("shown to be worse than ") if WORSE in rank else ""
        for label, rank, title in found
    }


def agrees(browser: Browser, track: TrackResults, tuned: bool = True) -> int:
    """Marks, names and numbers are Python's; how many rows are marked."""
    order = track.ranked(tuned)
    found, better = order.ranking, shown_better(order)
    assert found is not None and better is not None

    def label(row: str) -> str:
        return track.label(row.removesuffix(AS_SHIPPED))

    best = [label(line.standing.row) for line in track.lines(tuned)]
    wanted = {label(row): "; ".join(best[:n]) for row, n in better.items()}
    told = {name: who for name, who in marks(browser).items() if name in wanted}
    assert told == wanted
    worse = sum(n > 0 for n in better.values())
    text, box = said(browser), browser.one("#worse")
    listed = browser.run(
        "return [...arguments[0].querySelectorAll('li')].map(l => l.textContent)", box
    )
    assert sorted(listed) == sorted(
        f"{row}: shown to be worse than {who}" for row, who in wanted.items() if who
    )
    assert box.get_attribute("hidden") == (None if worse else "true")
    head = "are" if worse > 1 else "is"
    assert text.startswith(
        f"{worse} of {len(better)} methods {head} shown to be worse than some other ({WORSE}); "
        if worse
        else "No method is shown to be worse than another."
    )
    assert f"chi-squared is {found.statistic:.1f} with {len(better) - 1} degrees" in text
    (p,) = re.findall(r"p = ([\d.e-]+?)\.? Two", text)
    assert float(p) == pytest.approx(float(f"{found.p:.2g}"))
    apart = f"more than {found.critical:.2f} apart"
    assert (f"where they lie {apart}" if found.rejected else f"have to lie {apart}") in text
    assert ("Friedman test finds no difference" in text) == (not found.rejected)
    assert ("the order is a description only" in text) == any(
        "the order is a description only" in note for note in order.footnotes
    )
    return worse


def test_marks_and_numbers_are_those_of_the_tables(
    browser: Browser, page: Path, arena: Arena
) -> None:
    browser.open(page)
    assert agrees(browser, arena.track(SEVEN)) > 0
    assert "of the track" not in said(browser) and "from files" not in said(browser)
    browser.press(browser.one('#standings button[data-column="score"]'))
    assert agrees(browser, arena.track(SEVEN)) > 0
    pick(browser, "ruleset", "shipped")
    agrees(browser, arena.track(SEVEN), tuned=False)
    assert browser.said() == []


@pytest.mark.parametrize("width", [1400, 420])
def test_they_are_readable_at_any_width(browser: Browser, page: Path, width: int) -> None:
    try:
        browser.resize(width)
        browser.open(page)
        browser.press(browser.one("#worse summary"))
        pick(browser, "problem", "dim5")
        assert browser.one("#worse li").is_displayed()
        assert browser.unreadable() == (0, [], [], [])
    finally:
        browser.resize(1400)


def test_they_are_of_the_problems_that_are_chosen(
    browser: Browser, page: Path, arena: Arena
) -> None:
    browser.open(page)
    pick(browser, "problem", "dim5")
    six = arena.track([p for p in SEVEN if p != "dim5"])
    agrees(browser, six)
    assert "This is said of 6 of the track's 7 problems" in said(browser)
    pick(browser, "problem", "dim2")
    five = arena.track([p for p in SEVEN if p not in ("dim5", "dim2")]).ranked()
    assert said(browser).startswith(five.footnotes[0]) and five.ranking is None
    assert "Not tested" in said(browser) and set(marks(browser).values()) == {""}
    assert not browser.one("#worse").is_displayed()
    for name in ("dim3", "dim4", "dim6", "dim7", "dim8"):
        pick(browser, "problem", name)
    assert said(browser) == ""
    assert browser.said() == []


def test_rows_from_files_take_part_and_it_is_said(
    browser: Browser, page: Path, seven: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A file has no labels: the page calls the row by its method.
    mine = Arena(tmp_path, methods=MINE | {"mine": ("pbgd", "pbgd")})
    browser.open(page)
    before = said(browser)
    drop(browser, mine.records())
    assert "pbgd" in names(browser)
    agrees(browser, mine.track(SEVEN))
    assert "with 1 row from files, which the arena's own tables are without" in said(browser)
    browser.press(browser.one("#standings tr.yours .close"))
    assert said(browser) == before
    assert browser.said() == []


def test_of_methods_that_are_alike_none_is_marked(
    browser: Browser, seven: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arenas, "QUALITY", dict.fromkeys(arenas.QUALITY, 0.8))
        alike = Arena(tmp_path)
    browser.open(alike.page())
    assert agrees(browser, alike.track(SEVEN)) == 0
    assert browser.said() == []


def test_whose_finals_all_failed_is_not_ranked_as_in_the_tables(
    browser: Browser, seven: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = Arena(tmp_path, methods=MINE)
    for p in failing.plan.finals:
        if p.row == "onestep" and p.record is not None:
            failing.store.write(replace(p.record, status="failed", reason="RuntimeError: no"))
    failing.plan = tournament.plan(failing.file, budget="smoke", store=failing.store)
    browser.open(failing.page())
    track = failing.track(SEVEN)
    assert track.failed == ("onestep",)
    agrees(browser, track)
    assert [r[0] for r in rows(browser) if r[1] == "One step"] == ["\u2013"]
    assert "every final of it failed (7 of 7 problems)1 method: One step" in unranked(browser)
    assert "every final failed" in browser.one("#unranked summary").text
    assert browser.said() == []


def shown_of(line: dict[str, str]) -> list[str]:
    """A row's rank, share near the best and regret as the tables write them."""
    return [
        f"{float(line['mean_rank']):.2f}",
        f"{100 * float(line['near_best']):.0f} %",
        f"{float(line['regret_as_shipped']) + 0.0:.2f}",
    ]


def test_the_page_of_what_ships_marks_whom_the_committed_tables_mark(
    browser: Browser, tmp_path: Path
) -> None:
    folder = ROOT / "results/arena-1/laptop"
    store = Store(tmp_path / "empty")
    browser.open(leaderboard("arena-1", budget="laptop", store=store, out=tmp_path / "page.html"))
    with (folder / "table.csv").open(encoding="utf-8") as file:
        table = [*csv.DictReader(file)]
    notes = re.findall(
        r"^- (Tests of the ranks.*)$", (folder / "table.md").read_text("utf-8"), re.M
    )
    for track in ("A", "C"):
        pick(browser, "track", track)
        for value, ruleset in (("tuned", "tuned"), ("shipped", "as shipped")):
            pick(browser, "ruleset", value)
            of = [r for r in table if (r["track"], r["ruleset"]) == (track, ruleset)]
            better = {r["label"].removesuffix(AS_SHIPPED): int(r["rows_shown_better"]) for r in of}
            ranked = [r for r in rows(browser) if r[0] != "\u2013"]
            assert {r[1]: [r[0].removesuffix(WORSE), r[7], r[8]] for r in ranked} == {
                r["label"].removesuffix(AS_SHIPPED): shown_of(r) for r in of
            }
            told = marks(browser)
            assert {name: len(told[name].split("; ")) if told[name] else 0 for name in better} == (
                better
            )
            assert {name for name, who in told.items() if who} <= better.keys()
            (numbers,) = re.findall(r"chi-squared is [\d.]+ with \d+ degrees", said(browser))
            (apart,) = re.findall(r"more than [\d.]+ apart", said(browser))
            assert any(numbers in note and apart in note for note in notes)
    assert browser.said() == []


def test_the_functions_behind_it_are_scipys(browser: Browser) -> None:
    from scipy.stats import chi2

    code = (FOLDER / "significance.js").read_text("utf-8")
    run = "const sum = (v) => v.reduce((a, b) => a + b, 0);" + code
    sizes = [(k, n) for k in (3, 4, 8, 16, 26, 60) for n in (6, 8, 20)]
    found = browser.run(
        run + "return arguments[0].map(([k, n]) => criticalDifference(k, n))", sizes
    )
    assert found == pytest.approx([stats.critical_difference(k, n) for k, n in sizes], rel=1e-7)
    at = [(x, f) for f in (2, 3, 15, 26, 59) for x in (0.0, 0.3, 4.0, 25.0, 44.6, 120.0, 300.0)]
    found = browser.run(run + "return arguments[0].map(([x, f]) => chiSquaredAbove(x, f))", at)
    assert found == pytest.approx([float(chi2.sf(x, f)) for x, f in at], rel=1e-9)
    for k in (3, 7):
        same = [[(k + 1) / 2] * k] * 6
        tests = browser.run(run + "return tested(arguments[0])", same)
        assert tests["p"] == 1 and tests["statistic"] == 0 and tests["better"] == [[]] * k
