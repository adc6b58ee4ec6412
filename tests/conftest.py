from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # Before torch: as many workers as cores, a thread each.
    os.environ["OMP_NUM_THREADS"] = "1"

from metabench.core import registry
from metabench.core.errors import DataMissing

pytest_plugins = ["synthetic", "browsers", "leaderboards"]

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("metabench", deadline=None)
hypothesis.settings.load_profile("metabench")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected is there until the end, a million objects: the garbage
    collector is not to look through all of them again and again."""
    gc.disable()
    gc.set_threshold(20_000)  # what tests leave in cycles is little, and looking for it is not
    atexit.register(gc.unfreeze)  # or some extension modules speak of leaks when all ends
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _skipped_without_data() -> Iterator[None]:
    try:
        return (yield)
    except DataMissing as missing:
        pytest.skip(str(missing))


# A test of real data, or a fixture of one, skips where the data is not there, and says which.
pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_skipped_without_data)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_skipped_without_data)


@pytest.fixture
def plugins_forgotten() -> Iterator[None]:
    """No plug-ins at the start; whatever is registered from outside metabench is forgotten."""
    before = os.environ.pop("METABENCH_PLUGINS", None)
    known = {r: set(r._classes) for r in registry.REGISTRIES.values()}
    yield
    for r, names in known.items():
        for name in set(r._classes) - names:
            if not r._classes[name].__module__.startswith("metabench."):
                del r._classes[name]
    for name in [n for n in sys.modules if n.startswith("metabench_plugin_")]:
        del sys.modules[name]
    os.environ.pop("METABENCH_PLUGINS", None)
    if before is not None:
        os.environ["METABENCH_PLUGINS"] = before
