"""Figures of benchmarks/gpu.py: written as they come, told to whoever watches, and as tables."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass
class Journal:
    """Where figures go as they come."""

    file: TextIO
    began: float

    def write(self, line: dict[str, Any]) -> None:
        """A line of JSON, on disk when this returns; and in words to whoever watches."""
        line = {"at": round(time.monotonic() - self.began, 2), **line}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        print(told(line), flush=True)


def told(line: dict[str, Any]) -> str:
    """A line of the journal, for a terminal."""
    head = f"{line['at']:7.1f} s  {line.get('part', ''):<10}"
    if "row" in line:
        figures = ", ".join(f"{k} {shown(v)}" for k, v in line["figures"].items() if v is not None)
        mark = {True: "ok: ", False: "FAILED: ", None: ""}[line["ok"]]
        return " ".join(x for x in (head, mark + line["row"], figures, line["note"]) if x)
    rest = {k: v for k, v in line.items() if k not in ("at", "part")}
    return f"{head} " + json.dumps(rest)


def shown(value: Any) -> str:
    """A figure, for a reader."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"


def markdown(lines: list[dict[str, Any]]) -> str:
    """Tables of a journal: what it ran on, how parts ended, and each part's figures."""
    about = next((line["machine"] for line in lines if "machine" in line), {})
    out = ["# One lease of a GPU", "", ", ".join(f"{k} {shown(v)}" for k, v in about.items()), "",
           "| part | ended | seconds | rows | failed checks | reason |",
           "|---|---|---|---|---|---|"]  # fmt: skip
    for line in lines:
        if "status" in line:
            out.append(
                f"| {line['part']} | {line['status']} | {line['seconds']} | {line['rows']} | "
                f"{line['failed_checks']} | {cell(line['reason'])} |"
            )
    for name in dict.fromkeys(line["part"] for line in lines if "row" in line):
        rows = [line for line in lines if line.get("part") == name and "row" in line]
        heads = list(dict.fromkeys(k for r in rows for k, v in r["figures"].items()
                                   if v is not None))  # fmt: skip
        out += ["", f"## {name}", "", "| " + " | ".join(["row", "check", *heads, "note"]) + " |",
                "|" + "---|" * (len(heads) + 3)]  # fmt: skip
        for r in rows:
            check = {True: "ok", False: "FAILED", None: ""}[r["ok"]]
            figures = [shown(r["figures"].get(k)) for k in heads]
            out.append("| " + " | ".join([cell(r["row"]), check, *figures, cell(r["note"])]) + " |")
    return "\n".join(out) + "\n"


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")
