"""The leaderboard page in a real browser: what it shows, and what may not come of names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import arenas_by_formula as arenas
import pytest
from browsers import Browser
from leaderboards import MINE, A, Arena, drop, expected, names, pick, rows, rows_of, told, unranked
from optional import needs

from metabench.core.capabilities import CAPABILITIES
from metabench.store import published

needs("vl_convert")

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=\"document.title='x'\"></script><script>document.title='x'</script>"


def test_the_standings_are_those_of_python(shown: Browser, arena: Arena) -> None:
    found = arena.lines(A)
    assert told(shown) == expected(found) and len(found) == 3
    assert all(line.retrained is not None for line in found)
    for row, s in zip(rows(shown), [line.standing for line in found], strict=True):
        low, high = map(float, row[3].split(" to "))
        # Another generator draws the resamples.
        assert low == pytest.approx(s.low, abs=0.03) and high == pytest.approx(s.high, abs=0.03)
    assert [line.standing.failures for line in found] == [1, 0, 0]


def test_who_lost_every_run_of_a_problem_is_last_there(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are below 0, which is what a lost run scores."""
    monkeypatch.setattr(arenas, "LOST", ("ift", "dim5", (0, 1, 2)))
    monkeypatch.setattr(arenas, "QUALITY", arenas.QUALITY | {"bilevel": -2.0, "one_step": -3.0})
    crashed = Arena(tmp_path)
    browser.open(crashed.page())
    pick(browser, "problem", "dim2")
    pick(browser, "problem", "ridge6")
    found = crashed.lines(["dim5"])
    assert [x.standing.row for x in found] == ["bilevel", "onestep", "implicit"]
    assert [x.standing.score < 0 for x in found] == [True, True, False]
    assert told(browser) == expected(found)


def test_problems_track_and_ruleset_are_chosen(shown: Browser, arena: Arena) -> None:
    pick(shown, "problem", "dim5")
    assert told(shown) == expected(arena.lines(("dim2", "ridge6")))
    assert "2 problems" in shown.one("#standings-said").text
    pick(shown, "ruleset", "shipped")
    assert told(shown) == expected(arena.lines(("dim2", "ridge6"), tuned=False))
    pick(shown, "track", "C")
    assert told(shown) == expected(arena.lines(["two"], tuned=False))
    assert "SOBA" in names(shown)
    pick(shown, "problem", "two")
    assert rows(shown) == [] and "Choose a problem" in shown.one("#standings-said").text


def test_the_second_readout_is_empty_where_a_problem_has_none(shown: Browser, arena: Arena) -> None:
    pick(shown, "problem", "dim5")
    pick(shown, "problem", "ridge6")
    assert [r[4] for r in rows(shown)] == ["", "", ""]
    assert [line.retrained for line in arena.lines(["dim2"])] == [None] * 3
    shown.press(shown.one('#standings button[data-column="retrained"]'))
    assert len(rows(shown)) == 3
    pick(shown, "problem", "ridge6")
    of_both = {s[1]: s[3] for s in expected(arena.lines(["dim2", "ridge6"]))}
    assert {r[1]: r[4] for r in rows(shown)} == of_both and "" not in of_both.values()
    shown.press(shown.one('#by-problem button[aria-label^="Unrolling on Ridge, 6"]'))
    assert [r[-1] for r in rows_of(shown, ".runs")][2] == ""  # that training ran away
    assert rows_of(shown, ".runs")[0][-1] != ""


def test_without_the_second_readout_there_is_no_column_of_it(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arenas, "RETRAINED", ())
    browser.open(Arena(tmp_path, methods={"bilevel": arenas.METHODS["bilevel"]}).page())
    titles = [b.get_attribute("data-column") for b in browser.all("#standings thead button")]
    assert "retrained" not in titles and len(titles) == len(rows(browser)[0]) == 9


def test_who_is_not_ranked_is_told_by_reason_and_folded_up(shown: Browser) -> None:
    box = shown.one("#unranked")
    assert box.text == "Not ranked: 1 method, not played on every problem"
    assert unranked(shown) == [
        f"needs {CAPABILITIES['carried']}, which the task does not offer (3 of 3 problems)"
        "1 method: SOBA"
    ]
    shown.press(shown.one("#unranked summary"))
    assert "1 method: SOBA" in box.text.split("\n")
    shown.press(shown.one('#standings button[data-column="score"]'))
    assert "1 method: SOBA" in box.text.split("\n")  # it stays unfolded
    pick(shown, "track", "C")
    assert unranked(shown) == [] and box.text == ""


def test_every_column_sorts_both_ways_and_says_so(shown: Browser) -> None:
    titles = [b.get_attribute("data-column") for b in shown.all("#standings thead button")]
    assert titles == [
        *("rank", "method", "score", "interval", "retrained", "target", "cost", "near", "regret"),
        "lost",
    ]
    assert shown.one('#standings th[aria-sort="ascending"] button').text.startswith("rank")

    def press(column: str) -> list[str]:
        shown.press(shown.one(f'#standings button[data-column="{column}"]'))
        assert shown.run("return document.activeElement.dataset.column") == column
        return names(shown)

    assert press("method") == ["Implicit", "One step", "Unrolling"]
    assert press("method") == ["Unrolling", "One step", "Implicit"]
    assert shown.one("#standings th[aria-sort]").get_attribute("aria-sort") == "descending"
    by_score = press("score")
    scores = [float(r[2]) for r in rows(shown)]
    assert scores == sorted(scores, reverse=True) and by_score[0] == "Implicit"
    assert press("score") == by_score[::-1]
    assert press("lost")[-1] == "Implicit"
    for step in (-1, 1):
        press("retrained")
        values = [float(r[4]) for r in rows(shown)]
        assert values == sorted(values)[::step] and len(set(values)) == 3

    shown.press(shown.one('#by-problem button[data-column="dim5"]'))
    column = [float(r[2].split()[0]) for r in rows(shown, "by-problem")]
    assert column == sorted(column, reverse=True) and len(set(column)) == 3


def test_the_cost_axis_is_that_of_charts_and_tables(shown: Browser) -> None:
    def axes() -> set[str]:
        shown.wait(lambda: len(shown.all("#curves svg")) == 3, "drawn")
        return {
            text
            for text in shown.run(
                "return [...document.querySelectorAll('#curves svg text')].map(t => t.textContent)"
            )
            if "(" in text
        }

    assert axes() == {"counted cost (inner gradients)"}
    # 58.2 a run; of Implicit, one run of nine was lost after a cost of 9.
    assert [row[6] for row in rows(shown)] == ["52.7", "58.2", "58.2"]
    pick(shown, "axis", "step")
    shown.wait(lambda: axes() == {"outer steps (steps)"}, "in steps")
    assert [row[6] for row in rows(shown)][1:] == ["12", "12"]
    assert "a run (steps)" in shown.one("#standings thead").text
    pick(shown, "axis", "seconds")
    shown.wait(lambda: axes() == {"wall seconds (s)"}, "in seconds")
    assert 0 < float(rows(shown)[0][6]) < 1


def test_a_curve_tells_its_settings_and_opens_its_runs(shown: Browser, arena: Arena) -> None:
    from selenium.webdriver import ActionChains

    chart = shown.one('figure[data-problem="ridge6"] svg')
    shown.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    # Down along the right end, where curves are apart. Scrolling hides what hovers.
    across, half = chart.size["width"] // 2 - 20, chart.size["height"] // 2
    mouse = ActionChains(shown.driver)

    def hovering() -> list:
        for down in range(10 - half, half - 10, 5):
            for more in (2, 0):
                mouse.move_to_element_with_offset(chart, across - more, down).perform()
            tips = [t for t in shown.all("#tip") if t.is_displayed()]
            if tips and tips[0].text.startswith("Implicit"):
                return tips
        return []

    (tip,) = shown.wait(hovering, "hovering over Implicit")
    said = tip.text.split("\n")
    assert said[0] == "Implicit" and said[1].startswith("Ridge, 6, score 0.9")
    trial = arena.plan.chosen["implicit", "ridge6"]
    rate = next(
        p.cell.method_settings["outer_lr"]
        for p in arena.plan.trials
        if (p.row, p.column) == (f"implicit#{trial}", "ridge6")
    )
    assert said[2:4] == ["method.outer_lr", f"{rate:g}"] and "null" not in said
    box = tip.rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1400
    mouse.click().perform()
    shown.wait(lambda: shown.all("#panel[open]"), "open")
    assert shown.one("#panel-title").text == "Implicit on Ridge, 6, tuned"
    assert len(rows_of(shown, ".runs")) == 3
    assert [r[0] for r in rows_of(shown, ".trials")] == ["0, as shipped", "1", "2"]
    assert shown.one("#panel tr.chosen th").text.split(",")[0] == str(trial)


def test_a_record_is_opened_and_closed(shown: Browser, arena: Arena) -> None:
    label = "Implicit on Quadratic, 5"
    shown.press(shown.one(f'#by-problem button[aria-label^="{label}"]'))
    by_seed = rows_of(shown, ".runs")
    assert [r[0] for r in by_seed] == ["seed 0", "seed 1", "seed 2"]
    assert by_seed[1][1] == "diverged"
    shown.press(shown.all("#panel .runs button")[1])
    panel = shown.one("#panel")
    assert shown.one("#panel-title").text == f"{label}, seed 1"
    assert "No score: diverged" in panel.text and "the loss is nan at step 3" in panel.text
    assert 'File "<b>loop</b>", line 1' in panel.text and not shown.all("#panel b")
    record = next(
        p.record
        for p in arena.plan.finals
        if p.record and p.record.status == "diverged" and p.row == "implicit"
    )
    assert record.key in panel.text
    shown.press(shown.one("#panel .inside > button"))
    shown.press(shown.all("#panel .runs button")[0])
    shown.wait(lambda: shown.all("#record-chart svg"), "drawn")
    shown.press(shown.one("#panel details summary"))
    data = json.loads(shown.one("#panel details pre").text)
    assert data["cell"]["seed"] == 0 and data["environment"]["machine"] == {"cores": 2}
    shown.press(shown.one("#panel .close"))
    assert not shown.all("#panel[open]")


def test_a_method_is_hidden_and_shown_in_the_charts(shown: Browser) -> None:
    def lines() -> int:
        shown.wait(lambda: len(shown.all("#curves svg")) == 3, "drawn")
        return len(shown.all('#curves [aria-roledescription="line mark container"] path'))

    before = shown.wait(lambda: lines() == 9 and 9, "nine curves")
    shown.press(shown.all("#legend button")[0])
    shown.wait(lambda: lines() == before - 3, "without one")
    assert shown.all("#legend button")[0].get_attribute("aria-pressed") == "false"


def test_hostile_names_are_text_wherever_they_stand(browser: Browser, tmp_path: Path) -> None:
    evil = Arena(
        tmp_path,
        title=HOSTILE.replace("'", ""),
        methods={"bilevel": (HOSTILE.replace("'", ""), "bilevel"), "mine": MINE["mine"]},
        labels={"dim2": HOSTILE.replace("'", "")},
    )
    finals = [p.record for p in evil.plan.finals if p.record and p.row == "mine"]
    for record in finals:
        evil.store.write(
            replace(
                record,
                files={},
                reason=HOSTILE,
                notes={HOSTILE: HOSTILE, "__proto__": {"polluted": 1}, "constructor": 1},
                environment={"device": HOSTILE, "versions": {HOSTILE: HOSTILE}},
            )
        )
    browser.open(evil.page())
    title = browser.driver.title
    assert title.startswith("<img") and "leaderboard" in title
    assert HOSTILE.replace("'", "") in names(browser)
    path = tmp_path / f"{HOSTILE.replace('/', '')}.jsonl.gz"
    records = [
        replace(r, key=(c := replace(r.cell, method=HOSTILE)).key, cell=c, files={}) for r in finals
    ]
    for record in records:
        evil.store.write(record)
    (said, *_) = drop(browser, published.publish(records, evil.store, path))
    assert f"{HOSTILE} on 4 problems" in said
    browser.press(browser.all("#by-problem tr.yours td button")[0])
    browser.press(browser.all("#panel .runs button")[0])
    assert HOSTILE in browser.one("#panel").text
    assert not browser.all("img, #panel script, #messages script, main script")
    assert browser.run("return [document.scripts.length, ({}).polluted ?? null]") == [3, None]
    assert browser.driver.title == title and browser.said() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_it_is_readable_at_any_width(
    browser: Browser, page: Path, mine: Arena, width: int, scheme: str
) -> None:
    try:
        browser.resize(width)
        browser.prefer(scheme)
        browser.open(page)
        drop(browser, mine.records())
        browser.wait(lambda: len(browser.all("#curves svg")) == 3, "drawn")
        assert browser.unreadable() == (0, [], [], [])
        browser.press(browser.all("#by-problem td button")[0])
        browser.press(browser.all("#panel .runs button")[0])
        browser.wait(lambda: browser.all("#record-chart svg"), "drawn")
        assert browser.unreadable() == (0, [], [], [])
        assert browser.said() == []
    finally:
        browser.resize(1400)
        browser.prefer("light")
