"""No data on the machine, a server of files, and a toy data set."""

import hashlib

import pytest
from dataset_server import NAMES, Server, archive, md5

from metabench.datasets import catalogue


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path):
    """No data and an empty cache."""
    monkeypatch.delenv("METABENCH_DATA", raising=False)
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    one = Server()
    one.thread.start()
    yield one
    one.http.shutdown()
    one.http.server_close()
    one.thread.join()


@pytest.fixture
def toy(server, monkeypatch):
    """A data set "toy" in two layouts: one file, or an archive that the server has."""
    server.files["/inside.zip"] = body = archive(NAMES)
    one = catalogue.File("x.npz", 3, hashlib.sha256(b"abc").hexdigest())
    extra = catalogue.File("y.npz", 3, hashlib.sha256(b"abd").hexdigest(), needed=False)
    made = catalogue.DataSet(
        "toy", "A toy", "nowhere", "MIT", "nobody",
        layouts=(
            catalogue.Layout("arrays", "toy", files=(one, extra)),
            catalogue.Layout(
                "pictures", "toy-py",
                archives=(catalogue.Archive((server.url("/inside.zip"),), md5(body), "inside", 2),),
                homes=("~/library",),
            ),
        ),
        offline="copy toy-py",
    )  # fmt: skip
    monkeypatch.setitem(catalogue.DATASETS, "toy", made)
    return made
