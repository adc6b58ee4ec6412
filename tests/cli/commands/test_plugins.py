"""Checking somebody's method."""

from __future__ import annotations

import re
from pathlib import Path

from typed_commands import BAD_METHOD, metabench


def test_check_tells_every_promise(folder: Path) -> None:
    typed = metabench("check", "fixed")
    assert typed.code == 0 and typed.out.endswith("fixed passes every check\n")
    assert typed.out.count("ok  ") > 10
    (folder / "bad.py").write_text(BAD_METHOD)
    typed = metabench("check", "bad", "--plugin", "bad.py")
    assert typed.code == 1
    assert "FAILED" in typed.out and re.search(r"bad fails \d+ checks", typed.out)
    assert metabench("check", "fixd").code == 2
    for name, kind in (("adam", "solver"), ("omniglot-x", ""), ("quickstart", "suite")):
        typed = metabench("check", name)
        assert typed.code == 2 and f"no method or task '{name}'" in typed.err
        assert (f"{name} is a {kind}: only methods and tasks are checked" in typed.err) == bool(
            kind
        )
