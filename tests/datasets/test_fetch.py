"""Fetching data sets from a server on this machine."""

import contextlib
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import pytest
from dataset_server import BODY, NAMES, archive, md5, only

from metabench.core.errors import DataMissing, MetabenchError
from metabench.datasets import catalogue, fetch, locate, verify


def test_fetching_unpacks_once_and_verifies(toy, server, tmp_path):
    folder = fetch.fetch("toy")
    assert folder == tmp_path / "cache" / "toy-py" == locate.find("toy")
    assert (folder / "inside" / "a" / "1.png").read_text() == "contents of inside/a/1.png"
    assert [p.name for p in folder.iterdir()] == ["inside"]
    assert [(v.wrong, v.note) for v in verify.verify("toy")] == [("", "")]
    fetch.fetch("toy")
    assert len(server.log) == 1


def test_changed_and_missing_pictures_are_seen_and_fetched_again(toy, server):
    folder = fetch.fetch("toy") / "inside"
    (folder / "a" / "1.png").write_text("CONTENTS of inside/a/1.png")
    assert verify.verify("toy")[0].wrong == "files have changed since they were unpacked"
    (folder / "a" / "1.png").unlink()
    assert verify.verify("toy")[0].wrong == "1 .png files instead of 2"
    fetch.fetch("toy")
    assert len(server.log) == 2
    assert verify.verify("toy")[0].wrong == ""


def test_an_archive_that_lacks_files_is_not_unpacked_over_what_is_there(
    toy, server, tmp_path, monkeypatch
):
    server.files["/inside.zip"] = body = archive(NAMES[1:])
    short = catalogue.Archive((server.url("/inside.zip"),), md5(body), "inside", 2)
    layout = catalogue.Layout("pictures", "toy-py", archives=(short,))
    monkeypatch.setitem(
        catalogue.DATASETS, "toy", catalogue.DataSet("toy", "", "", "", "", layouts=(layout,))
    )
    kept = tmp_path / "cache" / "toy-py" / "inside" / "3.png"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    with pytest.raises(MetabenchError, match=r"inside\.zip holds 1 \.png files instead of 2"):
        fetch.fetch("toy")
    assert kept.read_text() == "mine"


def test_what_cannot_be_fetched_names_the_way_by_hand(toy, server, tmp_path):
    server.files.clear()
    with pytest.raises(MetabenchError, match="not here; by hand: copy toy-py"):
        fetch.fetch("toy", to=tmp_path / "data")


def test_a_folder_that_cannot_be_made_is_told(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MetabenchError, match=r"cannot write .*file.*: Not a directory"):
        fetch.fetch("toy", to=tmp_path / "file")


def test_what_has_no_address_says_what_to_copy(monkeypatch):
    plain = catalogue.DataSet(
        "private",
        "",
        "",
        "",
        "",
        layouts=(catalogue.Layout("arrays", "private"),),
        offline="ask Ada",
    )
    monkeypatch.setitem(catalogue.DATASETS, "private", plain)
    with pytest.raises(
        MetabenchError, match="private has no public address to fetch from; ask Ada"
    ):
        fetch.fetch("private")


def zipped_file(server, sha256, *before):
    """A layout's file "x" that the server has, gzipped."""
    server.files["/x.gz"] = body = gzip.compress(BODY)
    urls = (*before, server.url("/x.gz"))
    return catalogue.File("x", len(BODY), sha256, True, urls, md5(body))


def test_single_files_are_fetched_unpacked_and_verified(server, tmp_path, monkeypatch):
    file = zipped_file(server, hashlib.sha256(BODY).hexdigest(), server.url("/none.gz"))
    only(monkeypatch, "toy", catalogue.Layout("idx", "toy/raw", files=(file,)))
    with pytest.raises(DataMissing, match=r"data fetch toy, or set .* holds toy/raw"):
        locate.find("toy")
    folder = fetch.fetch("toy")
    assert folder == tmp_path / "cache" / "toy" / "raw" == locate.find("toy")
    assert [p.name for p in folder.iterdir()] == ["x"]
    assert [v.wrong for v in verify.verify("toy")] == [""]
    asked = len(server.log)
    fetch.fetch("toy")
    assert len(server.log) == asked
    (folder / "x").write_bytes(BODY[:-1] + b"?")
    fetch.fetch("toy")
    assert (folder / "x").read_bytes() == BODY


def test_a_file_that_unpacks_to_something_else_is_refused(server, tmp_path, monkeypatch):
    file = zipped_file(server, "0" * 64)
    only(monkeypatch, "toy", catalogue.Layout("idx", "toy/raw", files=(file,)))
    with pytest.raises(MetabenchError, match=r"x\.gz unpacks to sha256 \w+\.\.\. instead of 0000"):
        fetch.fetch("toy")
    assert "x" not in [p.name for p in (tmp_path / "cache" / "toy" / "raw").iterdir()]


def test_a_tar_file_can_be_the_whole_folder(server, tmp_path, monkeypatch):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in ("toy-py/batch_1", "toy-py/batch_2", "toy-py/readme.html"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    server.files["/toy.tar.gz"] = body = out.getvalue()
    archive = catalogue.Archive((server.url("/toy.tar.gz"),), md5(body), ".", 2, "batch_*")
    only(monkeypatch, "toy", catalogue.Layout("pictures", "toy-py", archives=(archive,)))
    folder = fetch.fetch("toy")
    assert folder == tmp_path / "cache" / "toy-py" == locate.find("toy")
    assert (folder / "batch_2").read_text() == "toy-py/batch_2"
    assert [p.name for p in folder.parent.iterdir()] == ["toy-py"]
    assert [(v.wrong, v.note) for v in verify.verify("toy")] == [("", "")]
    (folder / "batch_1").unlink()
    fetch.fetch("toy")
    assert (folder / "batch_1").exists()


def test_the_module_needs_no_torch():
    code = "import sys, metabench.datasets.fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil.png", "/{}/evil.png", "inside/../../evil.png"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path, kind, name):
    name, path = name.format(tmp_path), tmp_path / f"inside.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr(name, "evil")
    else:
        with tarfile.open(path, "w") as packed_tar:
            packed_tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "to").mkdir()
    wanted = catalogue.Archive((), "", "inside", 1)
    with contextlib.suppress(MetabenchError, tarfile.FilterError):
        fetch._unpack(path, tmp_path / "to", wanted)
    assert not [p for p in tmp_path.rglob("evil.png") if not p.is_relative_to(tmp_path / "to")]
