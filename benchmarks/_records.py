"""The records that are committed with a suite's results, in whichever of three forms they lie."""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from metabench.store.record import Record, from_dict

_IN_REPORT = re.compile(r'<pre class="json" data-key="[0-9a-f]+">(.*?)</pre>', re.DOTALL)


def committed(folder: Path) -> dict[str, Record]:
    """Key to record of a folder of results: ``records.jsonl.gz`` (a line of JSON each), a folder
    ``records`` with a ``record.json`` a cell, or what ``report.html`` holds; empty without any.

    Raises ValueError, naming the file, for what is no record.
    """
    out = {}
    for source, text in _texts(folder):
        data = json.loads(text)
        if "cell" not in data:  # a cell of the report that has not run: its settings alone
            continue
        try:
            record = from_dict(data)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        out[record.key] = record
    return out


def _texts(folder: Path) -> Iterator[tuple[Path, str]]:
    lines, report = folder / "records.jsonl.gz", folder / "report.html"
    single = sorted(folder.glob("records/*/record.json"))
    if lines.is_file():
        with gzip.open(lines, "rt", encoding="utf-8") as file:
            yield from ((lines, line) for line in file if line.strip())
    elif single:
        yield from ((path, path.read_text(encoding="utf-8")) for path in single)
    elif report.is_file():
        text = report.read_text(encoding="utf-8")
        yield from ((report, html.unescape(found)) for found in _IN_REPORT.findall(text))
