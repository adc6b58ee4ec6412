"""A notebook as a page: its text, its code, and the output that is committed with it.

``python -m site_pages.notebook ../quadratic.ipynb`` (in docs/site) runs a notebook and keeps what
it printed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from .notation import mathematics


def page(path: Path) -> str:
    """Markdown of a notebook. Outputs are text: a test holds them to what the code prints."""
    return "\n\n".join(map(_cell, cells(path))) + "\n"


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, as they are written."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return mathematics(source)
    kind = "toml" if ".toml\n" in source.split("[", 1)[0] else "python"
    parts = [f"```{kind}\n{source}\n```"]
    if told := printed(cell):
        parts.append(f"```text\n{told}\n```")
    return "\n\n".join(parts)


def printed(cell: dict[str, Any]) -> str:
    """What a cell of code has printed. Raises ValueError for an output that is no text."""
    parts = []
    for output in cell["outputs"]:
        if output["output_type"] != "stream":
            raise ValueError(f"an output of type {output['output_type']!r} is no printed text")
        parts.append("".join(output["text"]))
    return "".join(parts).strip("\n")


def executed(path: Path, folder: Path) -> list[dict[str, Any]]:
    """The cells of a notebook once it has been run in ``folder``, by this interpreter.

    Raises CellExecutionError where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = ("METABENCH_PLUGINS", "METABENCH_STORE", "COLUMNS")
    known = {k: v for k, v in os.environ.items() if k not in own}
    env = {**known, "PATH": programs, "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        notebook, timeout=240, startup_timeout=240, kernel_name="python3", coalesce_streams=True
    )
    client.execute(cwd=str(folder), env=env)
    found: list[dict[str, Any]] = notebook["cells"]
    return found


def refresh(path: Path) -> None:
    """Run a notebook and keep what its cells printed, and nothing else of the run."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for cell, ran in zip(whole["cells"], executed(path, Path(folder)), strict=True):
            if cell["cell_type"] != "code":
                continue
            told = printed(ran)
            lines = told.splitlines(keepends=True)
            stream = {"name": "stdout", "output_type": "stream", "text": lines}
            cell["outputs"] = [stream] if lines else []
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    refresh(Path(sys.argv[1]))
