"""MkDocs' hooks: the generated pages, and the navigation that lists them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from site_pages import places, published, reference, registered, whole

GENERATED = {
    "methods/index.md": lambda: [f"methods/{n}.md" for n in registered.names("method")],
    "tasks/index.md": lambda: [f"tasks/{n}.md" for n in registered.names("task")],
    "results/index.md": lambda: [
        {name: f"results/{name}/{budget}.md"} for name, budget in published.tables()
    ],
    "reference/index.md": lambda: [{p: reference.where(p)} for p in reference.PATHS],
}
"""Page of a section to the generated pages that follow it in the navigation."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the generated pages, and documents that nobody has listed, in the navigation."""
    listed = set(_pages(config.nav))
    documents = {places.page_of(name) for name in whole.documents()}
    left = sorted(documents - listed)
    config.nav = [*_filled(config.nav), *([{"More": left}] if left else [])]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated; documents of docs/ are replaced by those whose links are led on."""
    for path, content in whole.pages().items():
        if (old := files.get_file_from_path(path)) is not None:
            files.remove(old)
        if isinstance(content, Path):
            files.append(File.generated(config, path, abs_src_path=str(content)))
        else:
            files.append(File.generated(config, path, content=content))
    return files


def _pages(entries: Any) -> Iterator[str]:
    for entry in entries.values() if isinstance(entries, dict) else entries:
        if isinstance(entry, str):
            yield entry
        else:
            yield from _pages(entry)


def _filled(entries: Any) -> Any:
    out = []
    for entry in entries:
        if isinstance(entry, dict):
            out.append({title: _section(inside) for title, inside in entry.items()})
        else:
            out.append(entry)
    return out


def _section(inside: Any) -> Any:
    if isinstance(inside, str):
        return [inside, *GENERATED[inside]()] if inside in GENERATED else inside
    return _filled(inside)
