"""Every page of the site as Markdown, and the files that go with them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from . import notebook, published, reference, registered
from .notation import mathematics
from .places import ROOT, link, page_of, relinked

OTHERS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"),
    *("benchmarks/README.md", "slurm/README.md"),
)
"""Markdown of the repository beside docs/."""
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
ALONE = "---\nhide:\n  - navigation\n---\n\n"
"""Of the first page, which stands in no section."""
BADGE = re.compile(r"^\[!\[.*\n", re.MULTILINE)
"""A line of the README that is a badge: its picture comes from elsewhere."""
PICTURE = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)


def pages() -> dict[str, str | Path]:
    """Site path to Markdown, or to the file that is copied there.

    Raises FileNotFoundError for a link that leads nowhere.
    """
    made: dict[str, str | Path] = {}
    pending = set()
    for origin in [*OTHERS, *documents()]:
        text = pictures_as_tables((ROOT / origin).read_text(encoding="utf-8"))
        if origin == "README.md":
            text = mathematics(BADGE.sub("", text))
        page = page_of(origin)
        text, used = relinked(text, origin, page)
        made[page] = f"{ALONE}{text}" if page == "index.md" else text
        pending |= used
    for path in sorted((ROOT / "docs").glob("*.ipynb")):
        made[f"{path.stem}.md"], used = relinked(
            notebook.page(path), f"docs/{path.name}", f"{path.stem}.md"
        )
        pending |= used
    for kind in registered.KINDS:
        made[f"{kind}s/index.md"] = registered.index(kind)
        for name in registered.names(kind):
            made[f"{kind}s/{name}.md"] = registered.page(kind, name)
            file = Path(registered.described(kind, name).source).resolve()
            pending.add(file.relative_to(ROOT).as_posix())
    for name, budget in published.tables():
        page, folder = f"results/{name}/{budget}.md", f"results/{name}/{budget}"
        text, about = published.suite_page(name, budget)
        about, used = relinked(about, "results/README.md", page)
        pending |= used
        made[page] = f"{text}\n## What it says\n\n{about}\n" if about else text
        if (ROOT / folder / "figure.png").is_file():
            made[f"{folder}/figure.png"] = ROOT / folder / "figure.png"
    made["assets/site.css"] = ROOT / "docs/site/site.css"
    made["reference/index.md"] = reference.index()
    made |= {reference.where(path): reference.page(path) for path in reference.PATHS}
    return made | _linked(pending, {*made})


def documents() -> list[str]:
    """The Markdown of docs/, as paths in the repository."""
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))


def _linked(pending: set[str], known: set[str]) -> dict[str, str | Path]:
    """Pages for what others link to and nothing else shows: files, folders, measured Markdown."""
    made: dict[str, str | Path] = {}
    queue = [*pending, *(f"{kind}/{f.name}" for kind in ("methods", "tasks")
                         for f in (ROOT / kind).glob("[a-z]*.py"))]  # fmt: skip
    while queue:
        path = queue.pop()
        page = page_of(path)
        source = f"source/{path}.md"
        if path.endswith(".py") and source not in made:
            made[source] = _source(path)
        if page in known or page in made:
            continue
        if page.endswith(".png"):
            made[page] = ROOT / path
        elif (ROOT / path).is_dir():
            made[page], used = _folder(path, page)
            queue += used
        elif path.endswith(".md"):
            made[page], used = relinked((ROOT / path).read_text("utf-8"), path, page)
            queue += used
        else:
            made[page] = _source(path)
    return dict(sorted(made.items()))  # of sets: every process has another order


def _source(path: str) -> str:
    """A file of the repository, as it is."""
    text = (ROOT / path).read_text(encoding="utf-8")
    kind = {".py": "python", ".toml": "toml", ".sh": "sh"}.get(Path(path).suffix, "text")
    fence = "`" * (3 + max((len(m) for m in re.findall(r"`{3,}", text)), default=0))
    return f"{UNSEARCHED}# {path}\n\n{fence}{kind}\n{text}{fence}\n"


def _folder(path: str, page: str) -> tuple[str, set[str]]:
    """The committed files of a folder; those of Markdown are pages."""
    asked = ["git", "ls-files", path]
    listed = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [f for f in listed.split() if Path(f).parent.as_posix() == path]
    read = [f for f in files if f.endswith(".md")]
    lines = [f"- {link(page_of(f), page, Path(f).name) if f in read else f'`{f}`'}" for f in files]
    return f"# {path}\n\n" + "\n".join(lines) + "\n", {*read}


def pictures_as_tables(markdown: str) -> str:
    """Flow charts of packages as tables: Mermaid is a script that the site does not load."""
    return PICTURE.sub(lambda match: _as_table(match[1]), markdown)


def _as_table(chart: str) -> str:
    imports: dict[str, str] = {}
    for line in re.findall(r"^\s*(\w+) --> (.+)$", chart, re.MULTILINE):
        imports[line[0]] = ", ".join(f"`{name.strip()}`" for name in line[1].split("&"))
    rows = ["| rank | package | imports |", "| --- | --- | --- |"]
    for rank, inside in re.findall(r'subgraph \w+\["rank (\d+)"\]\n(.*?)\n\s*end', chart, re.S):
        for part in inside.split("&"):
            name, _, label = part.strip().partition("[")
            shown = label.removesuffix("]") or name
            rows.append(f"| {rank} | `{shown}` | {imports.get(name, '')} |")
    return "\n".join(rows) + "\n"
