"""The page as a file: whole, closed to the network and to other scripts, its data data."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html.parser
import json
import re

import pytest
from optional import needs

from metabench.core.environment import optional_packages
from metabench.core.errors import MetabenchError
from metabench.reports.pages import leaderboard

needs("vl_convert")

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=alert(1)>{{ 7*7 }}&amp;"
DATA = {
    "arena": {"title": HOSTILE, "description": HOSTILE, "budget": HOSTILE},
    "records": [{"reason": HOSTILE, "notes": {"__proto__": HOSTILE}, "text": "é\u2028<!--"}],
}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text of scripts, styles and the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.inside: dict[str, list[str]] = {}
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside.setdefault(tag, []).append("")
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside[self.found[-1][0]][-1] += data


@pytest.fixture(scope="module")
def text() -> str:
    return leaderboard.render(DATA)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_fetches_nothing(page: Page) -> None:
    assert not [a for tag, a in page.found if {"src", "href", "action"} & a.keys()]
    assert not [tag for tag, _ in page.found if tag in ("link", "img", "iframe", "object", "base")]
    assert "@import" not in page.inside["style"][0] and "url(" not in page.inside["style"][0]


def test_the_policy_lets_the_two_scripts_run_and_no_other(page: Page) -> None:
    place = [i for i, (_, a) in enumerate(page.found) if "http-equiv" in a]
    assert [page.found[i][1]["http-equiv"] for i in place] == ["Content-Security-Policy"]
    assert place[0] < min(i for i, (tag, _) in enumerate(page.found) if tag in ("script", "style"))
    policy = dict(
        part.strip().partition(" ")[::2] for part in page.found[place[0]][1]["content"].split(";")
    )

    def sources(texts: list[str]) -> str:
        hashes = (base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts)
        return " ".join(f"'sha256-{h}'" for h in hashes)

    kinds = [a for tag, a in page.found if tag == "script"]
    assert kinds == [{"type": "text/plain", "id": "data"}, {}, {}]
    assert policy == {
        "default-src": "'none'",
        "script-src": sources(page.inside["script"][1:]),
        "style-src": sources(page.inside["style"]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [a for _, a in page.found if "style" in a or any(n.startswith("on") for n in a)]


def test_its_data_is_what_was_given(page: Page) -> None:
    packed = page.inside["script"][0]
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == DATA


def test_names_are_text(page: Page, text: str) -> None:
    assert page.inside["title"] == [f"{HOSTILE}: leaderboard"]
    assert page.inside["h1"][0].strip() == HOSTILE
    assert text.count("<script") == 3 and "49" not in page.inside["h1"][0]


def test_equal_data_give_equal_bytes_well_below_three_megabytes(text: str) -> None:
    assert leaderboard.render(DATA) == text
    assert len(text) < 1_100_000


def test_the_charts_licence_is_in_the_page(page: Page) -> None:
    said = "".join(page.inside["pre"])
    assert "University of Washington Interactive Data Lab" in said
    assert "Redistributions in binary form must reproduce" in said


@pytest.mark.parametrize("bad", ["a</script>b", "a</SCRIPT b", "x<!--y"])
def test_a_script_cannot_end_its_element(bad: str) -> None:
    found = leaderboard._inside_html(f'"{bad}"')
    assert not re.search("</script|<!--", found, re.IGNORECASE)
    assert json.loads(found.replace(r"\!", "!")) == bad


def test_without_the_charts_package_the_command_that_brings_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaderboard._charting.cache_clear()
    monkeypatch.setattr(optional_packages, "why_not", lambda name: f"{name} is not installed")
    with pytest.raises(MetabenchError, match=r"vl_convert is not installed; pip install -e .*page"):
        leaderboard.render(DATA)
