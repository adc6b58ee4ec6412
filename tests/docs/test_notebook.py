"""docs/quadratic.ipynb, run by Jupyter in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from optional import needs
from test_public_face import private
from test_tutorials import DOCS, mismatch

needs("nbclient")
needs("ipykernel")
needs("sklearn")
notebook = pytest.importorskip("site_pages.notebook")

FILE = DOCS / "quadratic.ipynb"


def code() -> list[str]:
    """The cells of code, without commands of the shell."""
    sources = ["".join(c["source"]) for c in notebook.cells(FILE) if c["cell_type"] == "code"]
    return [s.partition("\n")[2] if s.startswith("%%") else s for s in sources if s[0] != "!"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_prints_what_is_kept_with_it(tmp_path: Path) -> None:
    kept, ran = notebook.cells(FILE), notebook.executed(FILE, tmp_path)
    assert len(kept) == len(ran)
    for before, after in zip(kept, ran, strict=True):
        assert "".join(before["source"]) == after["source"]
        if before["cell_type"] == "code":
            wrong = mismatch(notebook.printed(before), notebook.printed(after))
            assert wrong == "", f"{wrong}\nnew outputs: python -m site_pages.notebook"


def test_it_uses_public_paths_only() -> None:
    python = [source for source in code() if not source.startswith("kind = ")]
    assert len(python) >= 5
    assert [name for source in python for name in private(source)] == []


def test_its_page_has_text_code_and_outputs() -> None:
    page = notebook.page(FILE)
    assert page.startswith("# ") and "```text\n" in page and "%%writefile" in page
    assert "$" not in page.partition("```")[0], "formulas are MathML"
    assert page.count("<math") >= 8
