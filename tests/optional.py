"""Optional packages in tests: where one is absent or broken, its own tests skip and say so."""

import importlib
from typing import Any

import pytest

from metabench.core.environment import optional_packages


def needs(name: str) -> Any:
    """The package; skips the test, or the module that is being imported, where it has none."""
    if lack := optional_packages.why_not(name):
        pytest.skip(
            f"{lack}: {' && '.join(optional_packages.recipe(name))}", allow_module_level=True
        )
    return importlib.import_module(name)
