"""Where what is in the repository stands on the site, and links between the two."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
LINK = r"(?P<label>!?\[(?:`[^`\n]+`|[^\[\]`])*\]\()(?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)"
CODE = r"^```.*?^```$|^(?: {4}|\t).*?$|``.+?``|`[^`\n]+`"
EITHER = re.compile(f"(?:{LINK})|(?:{CODE})", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("http://", "https://", "mailto:")


def page_of(path: str) -> str:
    """The page that shows a file or folder of the repository, both relative to their roots.

    >>> page_of("methods/ift.py"), page_of("docs/arena.md"), page_of("metabench/core/cell.py")
    ('methods/ift.md', 'arena.md', 'source/metabench/core/cell.py.md')
    """
    known = {"README.md": "index.md", "results": "results/index.md"}
    if path in known:
        return known[path]
    if found := re.fullmatch(r"(methods|tasks)/([a-z]\w*)\.py", path):
        return f"{found[1]}/{found[2]}.md"
    if found := re.fullmatch(r"docs/(.+)\.ipynb", path):
        return f"{found[1]}.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    found = re.fullmatch(r"(results/[\w-]+/\w+)(/table\.md)?", path)
    if found and (ROOT / found[1] / "table.md").is_file():
        return f"{found[1]}.md"
    if path.endswith("README.md"):
        return path.removesuffix("README.md") + "index.md"
    if path.endswith((".md", ".png")):
        return path
    return f"source/{path}.md"


def relinked(text: str, origin: str, page: str) -> tuple[str, set[str]]:
    """Markdown of ``origin`` (a path in the repository) as ``page`` of the site: links lead to
    pages. Also gives the repository's paths that it links to. Code is left as it is.

    Raises FileNotFoundError for a link to what is not there.
    """
    used: set[str] = set()

    def lead(match: re.Match[str]) -> str:
        target = match["target"]
        if not target or target.startswith(ELSEWHERE):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{origin} links to {target}: there is no {path}")
        used.add(path)
        to = posixpath.relpath(page_of(path), posixpath.dirname(page) or ".")
        return f"{match['label']}{to}{match['anchor'] or ''})"

    return EITHER.sub(lead, text), used


def link(page: str, start: str, words: str) -> str:
    """A Markdown link from the page ``start`` to another one."""
    return f"[{words}]({posixpath.relpath(page, posixpath.dirname(start) or '.')})"
