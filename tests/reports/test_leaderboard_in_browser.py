"""The leaderboard page in a real browser: what it shows, what it does, what it takes in."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import arenas
import pytest
from browsers import Browser
from optional import needs

needs("vl_convert")

from metabench.analysis import arena as analysis
from metabench.api import arena as verbs
from metabench.api.leaderboard import leaderboard, publish_records
from metabench.store import published
from metabench.store.store import Store
from metabench.suites.arena import AS_SHIPPED

pytestmark = pytest.mark.browser
MINE = {**arenas.METHODS, "mine": ("Mine", "pbgd")}
HOSTILE = "<img src=x onerror=\"document.title='x'\"></script><script>document.title='x'</script>"


class Arena:
    """A played arena with its page."""

    def __init__(self, folder: Path, name: str = "small", **changes: object) -> None:
        self.folder, self.file = folder, folder / f"{name}.toml"
        self.file.write_text(arenas.text(**changes))  # type: ignore[arg-type]
        self.store = Store(folder / name)
        self.plan = arenas.play(self.file, self.store)

    def page(self) -> Path:
        out = self.folder / f"{self.file.stem}.html"
        return leaderboard(self.file, budget="smoke", store=self.store, out=out)

    def records(self, name: str = "records.jsonl.gz") -> Path:
        out = self.folder / name
        return publish_records(self.file, budget="smoke", store=self.store, out=out)

    def standings(self, problems: Iterable[str], tuned: bool = True) -> list[analysis.Standing]:
        """Python's, of those who have played all of these problems."""
        wanted = [*problems]
        finals = [p for p in self.plan.finals if p.column in wanted]
        scores, lost = analysis.finals_scores(self.plan.arena, finals, verbs.metrics(self.plan.arena))
        rows = {
            row: of
            for row, of in scores.items()
            if row.endswith(AS_SHIPPED) != tuned and len(of) == len(wanted)
        }
        return analysis.standings(rows, lost, self.plan.scores)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("arena"))


@pytest.fixture(scope="module")
def page(arena: Arena) -> Path:
    return arena.page()


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """The same arena as somebody else has played it, with a method of their own."""
    return Arena(tmp_path_factory.mktemp("mine"), methods=MINE)


@pytest.fixture
def shown(browser: Browser, page: Path) -> Iterable[Browser]:
    """The page, fresh; nothing may stand in the console when a test is done with it."""
    browser.open(page)
    yield browser
    assert browser.said() == []


def rows(browser: Browser, table: str = "standings") -> list[list[str]]:
    """The body of a table as text."""
    return browser.run(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map("
        "r => [...r.children].map(c => c.innerText.trim().replace('\u2212', '-')))",
        table,
    )


def names(browser: Browser, table: str = "standings") -> list[str]:
    return [row[1 if table == "standings" else 0] for row in rows(browser, table)]


def pick(browser: Browser, name: str, value: str) -> None:
    """Press a radio button or a checkbox of the controls."""
    box = browser.one(f'#controls input[name="{name}"][value="{value}"]')
    browser.run("arguments[0].click()", box)


def expected(standings: list[analysis.Standing], methods=MINE) -> list[list[str]]:
    """Rank, method, score, near, regret and runs lost as the page writes them."""
    return [
        [
            f"{s.rank:.2f}",
            methods[s.row.removesuffix(AS_SHIPPED)][0],
            f"{s.score:.2f}",
            f"{100 * s.near:.0f} %",
            f"{s.regret:.2f}",
            str(s.failures),
        ]
        for s in standings
    ]


def told(browser: Browser) -> list[list[str]]:
    return [[r[0], r[1], r[2], r[6], r[7], r[8]] for r in rows(browser)]


A = ("dim2", "dim5", "ridge6")


def test_the_standings_are_those_of_python(shown: Browser, arena: Arena) -> None:
    found = arena.standings(A)
    assert told(shown) == expected(found) and len(found) == 3
    for row, s in zip(rows(shown), found, strict=True):
        low, high = map(float, row[3].split(" to "))
        # Another generator draws the resamples.
        assert low == pytest.approx(s.low, abs=0.03) and high == pytest.approx(s.high, abs=0.03)
    assert [s.failures for s in found] == [1, 0, 0]


def test_problems_track_and_ruleset_are_chosen(shown: Browser, arena: Arena) -> None:
    pick(shown, "problem", "dim5")
    assert told(shown) == expected(arena.standings(("dim2", "ridge6")))
    assert "2 problems" in shown.one("#standings-said").text
    pick(shown, "ruleset", "shipped")
    assert told(shown) == expected(arena.standings(("dim2", "ridge6"), tuned=False))
    pick(shown, "track", "C")
    assert told(shown) == expected(arena.standings(["two"], tuned=False))
    assert "SOBA" in names(shown)
    pick(shown, "problem", "two")
    assert rows(shown) == [] and "Choose a problem" in shown.one("#standings-said").text


def test_every_column_sorts_both_ways_and_says_so(shown: Browser) -> None:
    titles = [b.get_attribute("data-column") for b in shown.all("#standings thead button")]
    assert titles == [
        *("rank", "method", "score", "interval", "target", "cost", "near", "regret", "lost")
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

    runs = [row[5] for row in rows(shown)]
    assert axes() == {"counted cost (inner gradients)"}
    assert set(runs) == {str(round(36 + 0.9 * 18 + 0.5 * 12, 1)), "51.3"} or "58.2" in runs
    pick(shown, "axis", "step")
    shown.wait(lambda: axes() == {"outer steps (steps)"}, "in steps")
    assert [row[5] for row in rows(shown)][1:] == ["12", "12"]
    assert "a run (steps)" in shown.one("#standings thead").text
    pick(shown, "axis", "seconds")
    shown.wait(lambda: axes() == {"wall seconds (s)"}, "in seconds")
    assert 0 < float(rows(shown)[0][5]) < 1


def test_a_curve_tells_its_settings_and_opens_its_runs(shown: Browser, arena: Arena) -> None:
    from selenium.webdriver import ActionChains

    chart = shown.one('figure[data-problem="ridge6"] svg')
    shown.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    # The top right corner: the curve that ends highest.
    size = chart.size
    mouse = ActionChains(shown.driver)
    mouse.move_to_element_with_offset(chart, size["width"] // 2 - 20, 40 - size["height"] // 2)
    mouse.perform()
    tip = shown.wait(lambda: [t for t in shown.all("#tip") if t.is_displayed()], "hovering")[0]
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
    assert 0 <= box["x"] and box["x"] + box["width"] <= 1400
    mouse.click().perform()
    shown.wait(lambda: shown.all("#panel[open]"), "open")
    assert shown.one("#panel-title").text == "Implicit on Ridge, 6, tuned"
    assert len(rows_of(shown, ".runs")) == 3
    assert [r[0] for r in rows_of(shown, ".trials")] == ["0, as shipped", "1", "2"]
    assert shown.one("#panel tr.chosen th").text.split(",")[0] == str(trial)


def rows_of(browser: Browser, table: str) -> list[list[str]]:
    return browser.run(
        "return [...document.querySelectorAll(`#panel ${arguments[0]} tbody tr`)].map("
        "r => [...r.children].map(c => c.innerText))",
        table,
    )


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


# Files that are dropped


def drop(browser: Browser, *paths: Path) -> list[str]:
    """Let files fall onto the page as a mouse does; what is said of them, the last first."""
    before = len(browser.all("#messages > .message"))
    browser.run(
        """
        const files = new DataTransfer();
        for (const [name, base64] of arguments[0]) {
          const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
          files.items.add(new File([bytes], name));
        }
        for (const kind of ["dragenter", "dragover", "drop"]) {
          const event = new DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true });
          document.querySelector("#curves").dispatchEvent(event);
          if (kind !== "dragenter" && !event.defaultPrevented) throw new Error("not taken");
        }
        """,
        [[path.name, _base64(path)] for path in paths],
    )

    def done() -> list[str] | None:
        found = [m.text for m in browser.all("#messages > .message")]
        read = len(found) == before + len(paths) and not any("Reading" in t for t in found)
        return found if read else None

    return browser.wait(done, "read")


def _base64(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode()


def test_somebodys_own_method_stands_among_the_others(shown: Browser, mine: Arena) -> None:
    (said, *_) = drop(shown, mine.records())
    assert "records.jsonl.gz: now in the tables and charts: pbgd on 4 problems." in said
    assert "on this page already, with the same scores" in said
    methods = {**MINE, "mine": ("pbgd", "pbgd")}
    yours = [[c.split("\n")[0] if i == 1 else c for i, c in enumerate(r)] for r in told(shown)]
    assert [[*r[:1], r[1].removesuffix("yours").strip(), *r[2:]] for r in yours] == expected(
        mine.standings(A), methods
    )
    pick(shown, "ruleset", "shipped")
    assert [r[0] for r in rows(shown)] == [f"{s.rank:.2f}" for s in mine.standings(A, False)]
    assert len(shown.all("#standings tr.yours")) == 1
    shown.press(shown.one('#by-problem tr.yours button[aria-label^="pbgd on Quadratic, 2"]'))
    assert len(rows_of(shown, ".runs")) == 3 and len(rows_of(shown, ".trials")) == 3
    shown.press(shown.all("#panel .runs button")[0])
    shown.wait(lambda: shown.all("#record-chart svg"), "drawn")
    shown.press(shown.one("#panel .close"))
    shown.press(shown.one("#standings tr.yours .close"))
    assert not shown.all("#standings tr.yours") and len(rows(shown)) == 3


def test_a_file_is_chosen_instead_and_may_be_unpacked(shown: Browser, mine: Arena) -> None:
    plain = mine.folder / "plain.jsonl"
    plain.write_bytes(gzip.decompress(mine.records().read_bytes()))
    shown.one("#file").send_keys(str(plain))
    shown.wait(lambda: shown.all("#messages .good"), "taken in")
    assert len(shown.all("#standings tr.yours")) == 1


def _lines(path: Path) -> list[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)


def test_a_file_that_is_none_is_refused_with_the_reason(
    shown: Browser, mine: Arena, tmp_path: Path
) -> None:
    whole = mine.records().read_bytes()
    lines = _lines(mine.records())
    record = json.loads(lines[0])
    files = {
        "empty.jsonl.gz": (b"", "there is nothing in it"),
        "notes.txt": (b"what I did today\n", "its first line is not JSON. Wanted is a file that"),
        "table.json": (b'{"a": 1}\n', "line 1 is not a record"),
        "list.json": (b"[1, 2]\n", "line 1 is not a record"),
        "photo.png": (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "line 1 is no text"),
        "text.gz": (gzip.compress(b"no records\n"), "its first line is not JSON"),
        "broken.gz": (whole[:60], "line 1 the file is damaged or cut off from here on"),
        "older.jsonl": (
            json.dumps({**record, "cell": {**record["cell"], "contract": 0}}).encode(),
            "is of contract 0, and this page has contract 1",
        ),
        "newer.jsonl": (json.dumps({**record, "schema": 2}).encode(), "of schema 2, and this page"),
        "changed.jsonl": (
            lines[0].replace(b'"attempts":1', b'"attempts":2'),
            "is not what was published: its sha256 differs",
        ),
        "odd.jsonl": (json.dumps({**record, "cost": {"x": "1"}}).encode(), "costs that are not"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    said = drop(shown, *(tmp_path / name for name in files))
    for (name, (_, reason)), text in zip(files.items(), said[::-1], strict=True):
        assert text.startswith(f"{name}: ") and reason in text
    assert len(shown.all("#messages .bad")) == len(files) and len(rows(shown)) == 3


def test_what_of_a_file_can_be_read_is_taken(shown: Browser, mine: Arena, tmp_path: Path) -> None:
    lines = _lines(mine.records())
    path = tmp_path / "part.jsonl"
    path.write_bytes(b"".join([b"{\n" * 0, *lines[:3], b"half a li\n", lines[3], *lines[3:]]))
    (said, *_) = drop(shown, path)
    assert "pbgd on 4 problems" in said
    assert "1 line left out: line 4: is not JSON" in said and "1 record left out: there twice" in said


def test_records_of_other_problems_and_of_other_versions_are_told(
    shown: Browser, mine: Arena, tmp_path: Path
) -> None:
    other = Arena(tmp_path, "other", methods={"mine": MINE["mine"]}, caps={"dim2": 90.0})
    text = other.file.read_text().replace("features = 6", "features = 8")
    other.file.write_text(text.replace("seeds = [0, 1, 2]", "seeds = [0, 1, 7]"))
    other.plan = arenas.play(other.file, other.store)
    kept = {p.record.key: p.record for p in (*other.plan.trials, *other.plan.finals) if p.record}
    foreign = [
        replace(r, key=(c := replace(r.cell, task="sinusoid", task_settings={})).key, cell=c)
        for r in list(kept.values())[:2]
    ]
    for record in foreign:
        other.store.write(record)
    path = published.publish([*kept.values(), *foreign], other.store, tmp_path / "other.jsonl.gz")
    (said, *_) = drop(shown, path)
    assert "of task sinusoid, which is no problem of this arena" in said
    assert "of problem Quadratic, 2 in another version of the arena: cost 90 (here 60)" in said
    assert "nearest Ridge, 6, with features 8 (here 6)" in said
    assert "of seed 7, which plays in no trial and no final of budget smoke" in said
    assert "pbgd on 2 problems" in said and "2 of 3 seeds have played" in said
    assert "Not ranked: pbgd (without Quadratic, 2, Ridge, 6)" in shown.one("#standings-said").text
    assert [r[0] for r in rows(shown)][-1] == "\u2013"


def test_finals_without_trials_stand_as_they_are(shown: Browser, mine: Arena, tmp_path) -> None:
    plan = mine.plan
    shipped = [p.record for p in plan.finals if p.row == "mine as shipped" and p.record]
    both = [p.record for p in plan.finals if p.row.startswith("mine") and p.record]
    one = published.publish(shipped, mine.store, tmp_path / "shipped.jsonl.gz")
    two = published.publish(both, mine.store, tmp_path / "both.jsonl.gz")
    (of_two, of_one, *_) = drop(shown, one, two)
    assert "no trials in the file, so its settings stand as tuned and as shipped" in of_one
    assert "finals of 2 settings and no trials, so nothing says which is the tuned one" in of_two
    assert len(shown.all("#standings tr.yours")) == 1
    (said, *_) = drop(shown, one)  # the same file again takes the place of the first
    assert "pbgd on 4 problems" in said and len(shown.all("#standings tr.yours")) == 1


# Names that would be markup, and pictures


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
        replace(r, key=(c := replace(r.cell, method=HOSTILE)).key, cell=c) for r in finals
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
        _check_layout(browser, width)
        browser.press(browser.all("#by-problem td button")[0])
        browser.press(browser.all("#panel .runs button")[0])
        browser.wait(lambda: browser.all("#record-chart svg"), "drawn")
        _check_layout(browser, width)
        assert browser.said() == []
    finally:
        browser.resize(1400)
        browser.prefer("light")


def _check_layout(browser: Browser, width: int) -> None:
    """Nothing makes the page scroll sideways or stands outside of it but what lies in a box that
    scrolls; letters have 11 pixels or more, and stand out from their paper."""
    wide, beyond, small, faint = browser.run(
        """
        const inside = (e) => !e.closest(".scroll, .unseen, pre");
        const seen = [...document.querySelectorAll("body *")].filter((e) =>
          e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) &&
          !e.closest(".unseen, .segments input, .button input"));
        const beyond = seen.filter((e) => inside(e) &&
          (e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1));
        const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        const size = (e) => parseFloat(getComputedStyle(e).fontSize);
        const small = seen.filter((e) => own(e) && !e.matches(".arrow") && size(e) < 11);
        const light = (c) => {
          const [r, g, b] = c.map((v) => v / 255).map((v) =>
            v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const parse = (text) => text.match(/[\\d.]+/g).map(Number);
        const paper = (e) => {
          let layers = [];
          for (; e; e = e.parentElement) {
            const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
            layers.push([r, g, b, a]);
            if (a === 1) break;
          }
          return layers.reverse().reduce((under, [r, g, b, a]) =>
            [r, g, b].map((v, i) => a * v + (1 - a) * under[i]), [255, 255, 255]);
        };
        const contrast = (e) => {
          const text = e.closest("svg") ? parse(e.getAttribute("fill") || "rgb(0,0,0)") : null;
          if (text) return 21;
          const [a, b] = [light(parse(getComputedStyle(e).color)), light(paper(e))];
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        };
        const faint = seen.filter((e) => own(e) && contrast(e) < 4.5);
        const name = (e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`;
        return [document.documentElement.scrollWidth, beyond.map(name), small.map(name),
          faint.map((e) => `${name(e)}: ${contrast(e).toFixed(1)}`)];
        """
    )
    assert (wide, beyond, small, faint) == (width, [], [], [])
