"""Garbage is looked for less often for a while, and then as before."""

import gc
import subprocess
import sys

import pytest

from metabench.core import registry
from metabench.core.environment.garbage import seldom_collected, uncollected


@pytest.mark.parametrize("was", [True, False])
def test_the_search_for_garbage_is_as_it_was(was: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was else gc.disable)()
        with pytest.raises(ImportError), uncollected():
            with uncollected():
                assert not gc.isenabled()
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == was
    finally:
        (gc.enable if before else gc.disable)()


def test_seldom_is_for_a_while_alone() -> None:
    before = gc.get_threshold()
    with pytest.raises(OSError), seldom_collected():
        assert gc.get_threshold()[0] == 20_000 and gc.isenabled()
        raise OSError
    assert gc.get_threshold() == before


def test_a_module_of_the_registry_is_imported_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(registry.methods, "_classes", {})

    def importing(name: str) -> None:
        seen.append((name, gc.isenabled()))
        registry.methods._classes["fixed"] = object

    monkeypatch.setattr(registry.importlib, "import_module", importing)
    assert registry.methods.get("fixed") is object
    assert seen == [("metabench.methods.fixed", False)] and gc.isenabled()


FROZEN = "from metabench.core.environment import garbage; garbage.keep(); garbage.end()"


@pytest.mark.parametrize("imported", ["json", "triton._C.libtriton"])
def test_a_module_that_counts_its_objects_finds_none_left(imported: str) -> None:
    pytest.importorskip(imported.partition(".")[0])
    done = subprocess.run(
        [sys.executable, "-c", f"import {imported}, gc; {FROZEN}; print(gc.get_freeze_count())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert (int(done.stdout) == 0) == (imported != "json")
