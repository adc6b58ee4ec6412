"""The pages that are made from code and records; the whole site, built strictly and opened.

``METABENCH_SITE`` names a site that has just been built; without it the slow tests build one.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import arenas_by_formula as arenas
import pytest
from browsers import Browser
from leaderboards import Arena
from optional import needs

from metabench.api.describe import settings_of
from metabench.core.registry import methods, tasks
from metabench.core.text import with_pm

needs("latex2mathml")
site_pages = pytest.importorskip("site_pages")

from site_pages import notation, places, published, reference, registered, standings, whole  # noqa: E402

ROOT = places.ROOT
SHOWN = (
    *("index.html", "first-hour.html", "quadratic.html", "architecture.html", "methods/pbgd.html"),
    *("methods/index.html", "tasks/quadratic.html", "results/omniglot/laptop.html"),
    *("results/crossing/laptop.html", "reference/metabench.implicit.html"),
)
"""Pages that are opened in a browser."""


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("README.md", "index.md"),
        ("docs/arena.md", "arena.md"),
        ("docs/quadratic.ipynb", "quadratic.md"),
        ("methods/ift.py", "methods/ift.md"),
        (
            "tasks/families/pretraining/two_stage.py",
            "source/tasks/families/pretraining/two_stage.py.md",
        ),
        ("results", "results/index.md"),
        ("results/README.md", "results/index.md"),
        ("results/omniglot/laptop", "results/omniglot/laptop.md"),
        ("results/budgets/laptop.md", "results/budgets/laptop.md"),
        ("LICENSE", "source/LICENSE.md"),
    ],
)
def test_where_files_of_the_repository_stand(path: str, page: str) -> None:
    assert places.page_of(path) == page


def test_links_lead_on_and_code_is_left_alone() -> None:
    text = "[`a`](../methods/ift.py) [b](arena.md#x) [c](#y) [d](https://e.org)"
    text += " `[f](g)`\n\n    [h](i)\n"
    found, used = places.relinked(text, "docs/systems.md", "systems.md")
    assert found.startswith("[`a`](methods/ift.md) [b](arena.md#x) [c](#y) [d](https://e.org)")
    assert found.endswith("`[f](g)`\n\n    [h](i)\n")
    assert used == {"methods/ift.py", "docs/arena.md"}


def test_a_link_that_leads_nowhere_ends_the_build() -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/a\.md links to \.\./methods/itf\.py"):
        places.relinked("[x](../methods/itf.py)", "docs/a.md", "a.md")


def test_pages_come_in_the_same_order_in_every_process() -> None:
    made = whole._linked({"metabench/core/cell.py", "LICENSE", "docs/site/hooks.py"}, set())
    assert len(made) > 100 and [*made] == sorted(made)


def test_shapes_roles_and_doctests_become_markdown() -> None:
    doc = "Rows [n, 3] of :func:`~a.b`; x[i], [see](y).\n\n    kept [n]\n\n>>> [1, 2]\n[1, 2]\n"
    text = "Rows `[n, 3]` of `a.b`; x[i], [see](y).\n\n    kept [n]\n\n"
    assert notation.marked(doc) == text + "```pycon\n>>> [1, 2]\n[1, 2]\n```"


def test_formulas_are_mathml_one_below_the_other() -> None:
    made = notation.formula(r"\min_{x} f(x), \qquad y = x^2")
    assert made.count("<math") == 2 and "<munder>" in made and "," not in made.split("</math>")[0]
    inline = notation.mathematics("so $x^2$, for 3 dollars")
    assert inline.startswith("so <span><math") and inline.endswith("</span>, for 3 dollars")


def test_the_picture_of_packages_is_a_table_of_all_of_them() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    made = whole.pictures_as_tables(text)
    assert "```mermaid" in text and "```mermaid" not in made
    rows = [line for line in made.split("\n") if re.match(r"\| \d", line)]
    assert "| 8 | `cli` | `api` |" in rows and len(rows) == 18


@pytest.mark.parametrize(("kind", "name"), [("method", "pbgd"), ("task", "quadratic")])
def test_a_page_says_what_code_and_records_say(kind: str, name: str) -> None:
    page = registered.page(kind, name)
    registry = methods if kind == "method" else tasks
    for setting in settings_of(registry.get(name)):
        assert f"| `{setting.name}` | {setting.type} | `{setting.default}` |" in page
    assert f"](../source/{kind}s/{name}.py.md)" in page
    own = [n for n in published.numbers() if getattr(n, kind) == name]
    assert own and all(n.page.removeprefix("results/") in page for n in own)
    if kind == "method":
        assert "## Formula\n" in page and "<munder>" in page and "omega = omega - inner_lr" in page
        entry = next(n for n in own if n.suite == "pbgd-toy" and n.paper)
        assert f"{entry.ours} (paper: {entry.paper})" in page


@pytest.mark.parametrize("section", ["Formula:", "Loop:"])
def test_a_method_without_formula_or_loop_ends_the_build(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = methods.get("pbgd")
    assert cls.__doc__ is not None
    monkeypatch.setattr(cls, "__doc__", cls.__doc__.replace(section, "Otherwise:"))
    with pytest.raises(ValueError, match=rf"method pbgd: .*\.pbgd\.\w+ has no section '{section}'"):
        registered.page("method", "pbgd")


def test_numbers_are_those_of_the_published_table() -> None:
    (maml,) = [
        n for n in published.numbers()
        if (n.suite, n.row, n.column) == ("omniglot", "MAML", "5-way 1-shot")
    ]  # fmt: skip
    assert (maml.method, maml.task) == ("maml", "omniglot")
    with (ROOT / "results/omniglot/laptop/table.csv").open(encoding="utf-8") as file:
        said = next(r for r in csv.DictReader(file) if (r["row"], r["column"]) == ("maml", "5w1s"))
    assert maml.ours == f"{with_pm(float(said['ours_mean']), float(said['ours_pm']))} %"
    assert maml.paper == "98.70 ± 0.40 %"
    page, about = published.suite_page("omniglot", "laptop")
    assert "(laptop/figure.png)" in page and "](../../methods/maml.md)" in page
    written = (ROOT / "results/README.md").read_text(encoding="utf-8")
    assert f"**omniglot.** {about}" in written and "\n\n" not in about


def test_ranks_are_those_of_the_arena(tmp_path: Path) -> None:
    arena = Arena(tmp_path)
    file = arena.scores(tmp_path / "smoke")
    found = standings.of_file(str(arena.file), file)
    best = arena.lines(["dim2", "dim5", "ridge6"])[0].standing
    tuned = [row for _, row in found if row[2:4] == ("A", "tuned")]
    assert {who for who, _ in found} == {method for _, method in arenas.METHODS.values()}
    assert tuned[0][4:7] == (f"{best.rank:.2f} (number 1)", str(len(tuned)), f"{best.score:.2f}")


def test_without_a_published_arena_a_page_says_so(tmp_path: Path) -> None:
    assert standings.of("maml", tmp_path) == standings.NONE_YET


def test_the_reference_has_every_public_name() -> None:
    for path in reference.PATHS:
        page = reference.page(path)
        for name in reference.shown(path):
            assert re.search(rf"^::: metabench[\w.]*\.{name}$", page, re.MULTILINE), (path, name)


class Fetched(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(named.get("src") or "")
        if tag == "link" and named.get("rel") in ("stylesheet", "icon", "preload"):
            self.found.append(named.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built strictly."""
    if built := os.environ.get("METABENCH_SITE"):
        return Path(built)
    needs("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    done = subprocess.run(
        [*command, "-f", "docs/site/mkdocs.yml"], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_the_readmes_formulas_are_mathematics_throughout() -> None:
    home = notation.mathematics((ROOT / "README.md").read_text(encoding="utf-8"))
    found = re.findall(r"<math.*?</math>", home)
    assert len(found) >= 3 and not [x for x in found if "\\" in x] and "$" not in home


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(site: Path) -> None:
    pages = {p.relative_to(site).as_posix(): p.read_text("utf-8") for p in site.rglob("*.html")}
    for kind in registered.KINDS:
        assert {f"{kind}s/{name}.html" for name in registered.names(kind)} <= pages.keys()
    assert {f"results/{name}/{budget}.html" for name, budget in published.tables()} <= pages.keys()
    for path in reference.PATHS:
        page = pages[f"reference/{path}.html"]
        homes = [reference.home(path, name) for name in reference.shown(path)]
        assert [home for home in homes if f'id="{home}"' not in page] == []
    for name, page in pages.items():
        away = [url for url in Fetched(page).found if url.startswith(("http", "//"))]
        assert away == [], name
        assert ":func:" not in page or name.startswith("source/"), name


@pytest.mark.slow
@pytest.mark.browser
def test_pages_fit_a_wide_and_a_narrow_window(site: Path, browser: Browser) -> None:
    for width in (1400, 420):
        browser.resize(width)
        for page in SHOWN:
            browser.driver.get((site / page).as_uri())
            sideways, *_ = browser.unreadable()
            assert sideways == 0, (page, width)
            shown = [f for f in browser.all(".formula math") if f.size["height"] > 10]
            assert len(shown) == len(browser.all(".formula")), page
            assert browser.said() == [], page
