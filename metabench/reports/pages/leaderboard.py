"""The leaderboard page of an arena: one HTML file that works without a server and fetches nothing.

Charts are Vega-Lite's, which the package vl-convert-python carries; it is put into the page where
the page is written. What comes from records is data: it reaches the page as compressed JSON, and
the document as text, never as markup. The page's own policy (Content-Security-Policy) lets no
script run but the two that are written here, by their hashes, and no address be fetched.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from metabench.core.cell import canonical
from metabench.core.environment import optional_packages
from metabench.core.errors import MetabenchError
from metabench.core.text import printable

FOLDER = Path(__file__).parent / "templates" / "leaderboard"
SCRIPTS = (
    *("text", "scores", "significance", "files", "entrants", "charts", "record", "tables"),
    *("verdicts", "main"),
)
"""The page's own code, in the order in which it runs."""
NOTICES = (
    "Vega, Vega-Lite, Vega-Embed: Copyright (c) 2015, University of Washington Interactive Data "
    "Lab. D3: Copyright Mike Bostock (ISC). vl-convert:"
)


def write(data: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page of :func:`metabench.reports.pages.leaderboard_data.page_data` to a file.

    Raises MetabenchError where vl-convert-python is not installed.
    """
    path = Path(path)
    text = render(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda x: printable(x) if type(x) is str else x,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charting, licence = _charting()
    own = _own_script()
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        arena=data["arena"],
        policy=_policy((charting, own), style),
        style=Markup(style),
        charting=Markup(charting),
        own=Markup(own),
        data=_packed(data),
        licence=licence,
        version=metadata.version("metabench"),
    )


def _packed(data: Mapping[str, Any]) -> str:
    """JSON, gzip, base64: whatever stands in it, no character of it means anything in HTML."""
    return base64.b64encode(gzip.compress(canonical(data).encode(), 9, mtime=0)).decode()


def _policy(scripts: tuple[str, ...], style: str) -> str:
    sources = " ".join(map(_source, scripts))
    return (
        f"default-src 'none'; script-src {sources}; style-src {_source(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    """What a policy calls a script or a style that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _own_script() -> str:
    parts = [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "\n})();\n"


@functools.cache
def _charting() -> tuple[str, str]:
    """Vega-Lite as one script that sets ``window.vegaEmbed``, and what its licences ask to say."""
    if lack := optional_packages.why_not("vl_convert"):
        recipe = " && ".join(optional_packages.recipe("vl_convert"))
        raise MetabenchError(f"the leaderboard page needs its charts: {lack}; {recipe}")
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    terms = [
        str(file.read_text())
        for file in metadata.files("vl-convert-python") or []
        if file.name == "LICENSE"
    ]
    return _inside_html(bundle), "\n".join((NOTICES, *terms))


def _inside_html(script: str) -> str:
    """The same program, without what would end a script element or begin a comment in it."""
    script = re.sub("</(?=script)", r"<\\/", script, flags=re.IGNORECASE)
    return script.replace("<!--", r"<\!--")
