"""Leaderboard pages in tests: a played arena with its page, and what is read and done on it."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import arenas_by_formula as arenas
import pytest
from browsers import Browser

from metabench.analysis.arena.track import Line, TrackResults, collect
from metabench.api.arena import tournament
from metabench.api.arena.leaderboard import leaderboard, publish_records
from metabench.store.store import Store
from metabench.suites.arena.definition import AS_SHIPPED
from metabench.suites.arena.publishing import write
from metabench.suites.arena.scores import FILE

A = ("dim2", "dim5", "ridge6")
"""The problems of track A."""
MINE = {**arenas.METHODS, "mine": ("Mine", "pbgd")}


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

    def scores(self, folder: Path) -> Path:
        """What an arena ships."""
        folder.mkdir()
        played = (*self.plan.trials, *self.plan.finals)
        records = {p.record.key: p.record for p in played if p.record is not None}
        known, chosen = self.plan.arena, self.plan.chosen
        return write(folder / FILE, known, "smoke", chosen, records, self.store.curve)

    def track(self, problems: Iterable[str]) -> TrackResults:
        """What Python knows of these problems of one track."""
        wanted = [*problems]
        narrow = replace(
            self.plan.arena, problems=[p for p in self.plan.arena.problems if p.id in wanted]
        )
        (track,) = {p.track for p in narrow.problems}
        finals = [p for p in self.plan.finals if p.column in wanted]
        metrics = tournament.metrics(narrow)
        return collect(narrow, self.plan.scores, finals, metrics, track, self.store.curve)

    def lines(self, problems: Iterable[str], tuned: bool = True) -> list[Line]:
        """Python's standings of those who have played all of these problems of one track."""
        return self.track(problems).lines(tuned)


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
        "r => [...r.children].map(c => (c.matches('.name') ? c.querySelector('span') : c)"
        ".innerText.trim().replace('\u2212', '-')))",
        table,
    )


def names(browser: Browser, table: str = "standings") -> list[str]:
    return [row[1 if table == "standings" else 0] for row in rows(browser, table)]


def pick(browser: Browser, name: str, value: str) -> None:
    """Press a radio button or a checkbox of the controls."""
    box = browser.one(f'#controls input[name="{name}"][value="{value}"]')
    browser.run("arguments[0].click()", box)


def expected(lines: list[Line], methods=MINE) -> list[list[str]]:
    """Rank, method, score, retrained, near, regret and runs lost as the page writes them."""
    return [
        [
            f"{s.rank:.2f}",
            methods[s.row.removesuffix(AS_SHIPPED)][0],
            f"{s.score:.2f}",
            "" if line.retrained is None else f"{line.retrained:.2f}",
            f"{100 * s.near:.0f} %",
            f"{s.regret:.2f}",
            str(s.failures),
        ]
        for line in lines
        for s in [line.standing]
    ]


def told(browser: Browser) -> list[list[str]]:
    """What :func:`expected` has, as it stands on the page."""
    return [[r[0], r[1], r[2], r[4], r[7], r[8], r[9]] for r in rows(browser)]


def unranked(browser: Browser) -> list[str]:
    """The lines about who is not ranked; none where that is hidden."""
    box = browser.one("#unranked")
    lines = "return [...arguments[0].querySelectorAll('li')].map(l => l.textContent)"
    return [] if box.get_attribute("hidden") else browser.run(lines, box)


def rows_of(browser: Browser, table: str) -> list[list[str]]:
    return browser.run(
        "return [...document.querySelectorAll(`#panel ${arguments[0]} tbody tr`)].map("
        "r => [...r.children].map(c => c.innerText))",
        table,
    )


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
        const given = { dataTransfer: files, bubbles: true, cancelable: true };
        for (const kind of ["dragenter", "dragover", "drop"]) {
          const event = new DragEvent(kind, given);
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
    return base64.b64encode(path.read_bytes()).decode()


def lines_of(path: Path) -> list[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)
