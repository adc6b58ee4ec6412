"""Imports without a search for garbage leave that search as it was."""

import gc

import pytest

from metabench.core import registry
from metabench.core.environment.imports import without_collections


@pytest.mark.parametrize("was", [True, False])
def test_the_search_for_garbage_is_as_it_was(was: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was else gc.disable)()
        with pytest.raises(ImportError), without_collections():
            with without_collections():
                assert not gc.isenabled()
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == was
    finally:
        (gc.enable if before else gc.disable)()


def test_a_module_of_the_registry_is_imported_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(registry.methods, "_classes", {})

    def importing(name: str) -> None:
        seen.append((name, gc.isenabled()))
        registry.methods._classes["fixed"] = object

    monkeypatch.setattr(registry.importlib, "import_module", importing)
    assert registry.methods.get("fixed") is object
    assert seen == [("metabench.methods.fixed", False)] and gc.isenabled()
