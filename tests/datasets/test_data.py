"""Finding, fetching and verifying data sets; fetching from a server on this machine."""

import gzip
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from metabench.core.errors import DataMissing, MetabenchError, UnknownName
from metabench.datasets import catalogue, data
from metabench.datasets.download import digest, download


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path):
    """No data and an empty cache."""
    monkeypatch.delenv("METABENCH_DATA", raising=False)
    monkeypatch.setenv("METABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Server:
    """Serves bytes by path; ``cut`` breaks the next answer off, ``log`` holds (path, Range)."""

    def __init__(self):
        self.files, self.log, self.cut, self.ranges = {}, [], None, True
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                owner.log.append((self.path, asked))
                body = owner.files.get(self.path)
                if body is None:
                    self.send_error(404, "not here")
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
                if not owner.ranges:
                    start = 0
                if start and start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                part = body[start:]
                if owner.cut is not None:
                    part, owner.cut = part[: owner.cut], None
                self.wfile.write(part)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}
        )

    def url(self, path):
        return f"http://127.0.0.1:{self.http.server_port}{path}"


@pytest.fixture
def server():
    one = Server()
    one.thread.start()
    yield one
    one.http.shutdown()
    one.http.server_close()
    one.thread.join()


def md5(body):
    return "md5:" + hashlib.md5(body).hexdigest()


BODY = bytes(range(256)) * 1000


# --- one file ------------------------------------------------------------------------------------


def test_a_file_comes_whole_with_progress(server, tmp_path):
    server.files["/a"] = BODY
    seen = []
    download([server.url("/a")], tmp_path / "a", md5(BODY), lambda *now: seen.append(now))
    assert (tmp_path / "a").read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert seen[-1] == (server.url("/a"), len(BODY), len(BODY))
    assert [n for _, n, _ in seen] == sorted({n for _, n, _ in seen})


def test_a_broken_download_is_gone_on_with(server, tmp_path):
    server.files["/a"], server.cut = BODY, 100_000
    with pytest.raises(MetabenchError, match=f"/a: .*100000 of {len(BODY)} bytes|IncompleteRead"):
        download([server.url("/a")], tmp_path / "a", md5(BODY))
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.part").stat().st_size == 100_000
    download([server.url("/a")], tmp_path / "a", md5(BODY))
    assert server.log[-1] == ("/a", "bytes=100000-")
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_server_that_knows_no_ranges_sends_everything_again(server, tmp_path):
    server.files["/a"], server.ranges = BODY, False
    (tmp_path / "a.part").write_bytes(BODY[:5000])
    download([server.url("/a")], tmp_path / "a", md5(BODY))
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    server.files["/a"] = BODY
    (tmp_path / "a.part").write_bytes(BODY)
    download([server.url("/a")], tmp_path / "a", md5(BODY))
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("start", [b"other" * 1000, b"x" * (len(BODY) + 10)])
def test_a_part_of_something_else_is_dropped(server, tmp_path, start):
    server.files["/a"] = BODY
    (tmp_path / "a.part").write_bytes(start)
    download([server.url("/a")], tmp_path / "a", md5(BODY))
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    server.files["/a"] = BODY
    with pytest.raises(MetabenchError, match=r"/a: md5 \w+ instead of 0000"):
        download([server.url("/a")], tmp_path / "a", "md5:0000")
    assert not list(tmp_path.iterdir())


def test_the_second_mirror_serves_where_the_first_does_not(server, tmp_path):
    server.files |= {"/bad": b"not this", "/good": BODY}
    urls = [server.url(path) for path in ("/none", "/bad", "/good")]
    download(urls, tmp_path / "a", md5(BODY))
    assert [path for path, _ in server.log] == ["/none", "/bad", "/good"]
    assert digest(tmp_path / "a", "md5") == md5(BODY)[4:]


def test_without_network_every_address_and_its_answer_is_named(server, tmp_path):
    nobody = Server()
    nobody.http.server_close()
    urls = [nobody.url("/a"), server.url("/none")]
    with pytest.raises(MetabenchError) as caught:
        download(urls, tmp_path / "a", md5(BODY))
    message = str(caught.value)
    assert "could not fetch a: " in message
    assert f"{urls[0]}: [Errno" in message
    assert f"{urls[1]}: not here" in message


# --- data sets -----------------------------------------------------------------------------------


def archive(names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name in names:
            packed.writestr(name, f"contents of {name}")
    return out.getvalue()


NAMES = ("inside/a/1.png", "inside/b/2.png", "inside/readme.txt")


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


def put_arrays(root):
    (root / "toy").mkdir(parents=True)
    (root / "toy" / "x.npz").write_bytes(b"abc")
    return root / "toy"


def put_pictures(root):
    for name in NAMES:
        path = root / "toy-py" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"contents of {name}")
    return root / "toy-py"


def test_an_empty_folder_is_no_data_set(toy, tmp_path, monkeypatch):
    """As a copy that broke off leaves it: a plan must say so, not a run."""
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    place = put_pictures(tmp_path)
    assert data.find("toy") == place
    for path in place.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataMissing, match=r"toy-py \(lacks \*\.png files in inside\)") as caught:
        data.find("toy")
    assert caught.value.mend.startswith("metabench data fetch toy")


def test_missing_says_where_it_looked_and_what_to_do(toy, tmp_path, monkeypatch):
    roots = [str(tmp_path / "one"), str(tmp_path / "two")]
    monkeypatch.setenv("METABENCH_DATA", os.pathsep.join(roots))
    with pytest.raises(DataMissing) as caught:
        data.find("toy")
    assert all(root in str(caught.value) for root in [*roots, "cache", "home/library"])
    assert caught.value.mend.startswith("metabench data fetch toy, or set METABENCH_DATA")
    assert caught.value.mend.endswith("the folder that holds toy or toy-py")
    (tmp_path / "two" / "toy").mkdir(parents=True)
    with pytest.raises(DataMissing) as caught:
        data.locate("toy", "arrays")
    assert f"{tmp_path / 'two' / 'toy'} (lacks x.npz)" in str(caught.value)
    assert "fetch" not in caught.value.mend  # fetching would not bring that layout


def test_unknown_names_get_near_ones(toy):
    with pytest.raises(UnknownName, match="no data set 'omniglt'; near: omniglot"):
        data.find("omniglt")
    with pytest.raises(UnknownName, match="no layout of toy 'array'; near: arrays"):
        data.locate("toy", "array")


def test_roots_are_searched_in_order_the_better_layout_first(toy, tmp_path, monkeypatch):
    cache, root, home = tmp_path / "cache", tmp_path / "root", tmp_path / "home" / "library"
    monkeypatch.setenv("METABENCH_DATA", str(root))
    for place in (home, cache, root):
        put_pictures(place)
        assert data.find("toy") == place / "toy-py"
    assert data.find("toy") == root / "toy-py"
    assert data.locate("toy").layout.name == "pictures"
    assert data.find("toy") != put_arrays(cache).parent / "toy-py"
    assert data.locate("toy").layout.name == "arrays"


def test_the_cache_follows_the_users_folders(monkeypatch, tmp_path):
    monkeypatch.delenv("METABENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache() == tmp_path / "xdg" / "metabench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache() == tmp_path / "home" / ".cache" / "metabench"


def test_home_is_meant_by_a_tilde_though_no_shell_was_there(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", f"/nowhere{os.pathsep}~/sets")
    monkeypatch.setenv("METABENCH_CACHE", "~/kept")
    home = tmp_path / "home"
    assert data.roots() == [Path("/nowhere"), home / "sets", home / "kept"]
    assert data.folders("~no_such_user_here/x") == [Path("~no_such_user_here/x")]


def test_a_folder_that_cannot_be_looked_into_is_passed_over(toy, tmp_path, monkeypatch):
    """Its error would hide the data that lies in the next one."""
    put_arrays(tmp_path / "good")
    too_long = "a" * 300
    monkeypatch.setenv("METABENCH_DATA", os.pathsep.join([too_long, str(tmp_path / "good")]))
    assert data.find("toy") == tmp_path / "good" / "toy"
    [found] = [s for s in data.status() if s.dataset.name == "toy"]
    assert found.bytes > 0


def test_a_folder_without_permission_is_told_as_that(toy, tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match=r"toy \(lacks "):
        data.find("toy")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataMissing, match=r"toy \(permission denied\)"):
        data.find("toy")


def test_what_cannot_be_read_is_a_verdict(toy, tmp_path, monkeypatch):
    def refuse(path, kind):
        raise PermissionError(13, "Permission denied", str(path))

    put_arrays(tmp_path)
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setattr(data, "digest", refuse)
    assert {v.wrong for v in data.verify("toy")} == {"cannot be read: Permission denied"}


def test_files_are_verified_by_size_and_checksum(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    folder = put_arrays(tmp_path)
    assert [(v.path.name, v.wrong) for v in data.verify("toy")] == [("x.npz", "")]
    (folder / "y.npz").write_bytes(b"abc")  # not needed, but wrong
    (folder / "x.npz").write_bytes(b"abcd")
    wrong = {v.path.name: v.wrong for v in data.verify("toy")}
    assert wrong["x.npz"] == "4 bytes instead of 3"
    assert re.fullmatch(r"sha256 \w{16}\.\.\. instead of \w{16}\.\.\.", wrong["y.npz"])


def test_fetching_unpacks_once_and_verifies(toy, server, tmp_path):
    folder = data.fetch("toy")
    assert folder == tmp_path / "cache" / "toy-py" == data.find("toy")
    assert (folder / "inside" / "a" / "1.png").read_text() == "contents of inside/a/1.png"
    assert [p.name for p in folder.iterdir()] == ["inside"]
    assert [(v.wrong, v.note) for v in data.verify("toy")] == [("", "")]
    data.fetch("toy")
    assert len(server.log) == 1


def test_changed_and_missing_pictures_are_seen_and_fetched_again(toy, server):
    folder = data.fetch("toy") / "inside"
    (folder / "a" / "1.png").write_text("CONTENTS of inside/a/1.png")
    assert data.verify("toy")[0].wrong == "files have changed since they were unpacked"
    (folder / "a" / "1.png").unlink()
    assert data.verify("toy")[0].wrong == "1 .png files instead of 2"
    data.fetch("toy")
    assert len(server.log) == 2
    assert data.verify("toy")[0].wrong == ""


def test_what_another_program_unpacked_is_counted_and_said_to_be(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    with zipfile.ZipFile(io.BytesIO(archive(NAMES))) as packed:
        packed.extractall(tmp_path / "toy-py")
    verdict = data.verify("toy")[0]
    assert verdict.wrong == ""
    assert verdict.note.startswith("counted only")


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
        data.fetch("toy")
    assert kept.read_text() == "mine"


def test_what_cannot_be_fetched_names_the_way_by_hand(toy, server, tmp_path):
    server.files.clear()
    with pytest.raises(MetabenchError, match="not here; by hand: copy toy-py"):
        data.fetch("toy", to=tmp_path / "data")


def test_a_folder_that_cannot_be_made_is_told(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MetabenchError, match=r"cannot write .*file.*: Not a directory"):
        data.fetch("toy", to=tmp_path / "file")


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
        data.fetch("private")


def test_status_tells_what_is_there(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    before = {s.dataset.name: s for s in data.status()}
    assert set(before) == set(catalogue.DATASETS)
    assert before["toy"].found is None
    assert before["toy"].mend.startswith("metabench data fetch toy")
    put_arrays(tmp_path)
    after = {s.dataset.name: s for s in data.status()}["toy"]
    assert (after.found.path, after.bytes, after.mend) == (tmp_path / "toy", 3, "")


def zipped_file(server, sha256, *before):
    """A layout's file "x" that the server has, gzipped."""
    server.files["/x.gz"] = body = gzip.compress(BODY)
    urls = (*before, server.url("/x.gz"))
    return catalogue.File("x", len(BODY), sha256, True, urls, md5(body))


def only(monkeypatch, name, layout):
    made = catalogue.DataSet(name, "", "", "", "", layouts=(layout,))
    monkeypatch.setitem(catalogue.DATASETS, name, made)


def test_single_files_are_fetched_unpacked_and_verified(server, tmp_path, monkeypatch):
    file = zipped_file(server, hashlib.sha256(BODY).hexdigest(), server.url("/none.gz"))
    only(monkeypatch, "toy", catalogue.Layout("idx", "toy/raw", files=(file,)))
    with pytest.raises(DataMissing, match=r"data fetch toy, or set .* holds toy/raw"):
        data.find("toy")
    folder = data.fetch("toy")
    assert folder == tmp_path / "cache" / "toy" / "raw" == data.find("toy")
    assert [p.name for p in folder.iterdir()] == ["x"]
    assert [v.wrong for v in data.verify("toy")] == [""]
    asked = len(server.log)
    data.fetch("toy")
    assert len(server.log) == asked
    (folder / "x").write_bytes(BODY[:-1] + b"?")
    data.fetch("toy")
    assert (folder / "x").read_bytes() == BODY


def test_a_file_that_unpacks_to_something_else_is_refused(server, tmp_path, monkeypatch):
    file = zipped_file(server, "0" * 64)
    only(monkeypatch, "toy", catalogue.Layout("idx", "toy/raw", files=(file,)))
    with pytest.raises(MetabenchError, match=r"x\.gz unpacks to sha256 \w+\.\.\. instead of 0000"):
        data.fetch("toy")
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
    folder = data.fetch("toy")
    assert folder == tmp_path / "cache" / "toy-py" == data.find("toy")
    assert (folder / "batch_2").read_text() == "toy-py/batch_2"
    assert [p.name for p in folder.parent.iterdir()] == ["toy-py"]
    assert [(v.wrong, v.note) for v in data.verify("toy")] == [("", "")]
    (folder / "batch_1").unlink()
    data.fetch("toy")
    assert (folder / "batch_1").exists()


@pytest.mark.parametrize("known", catalogue.DATASETS.values(), ids=lambda d: d.name)
def test_what_is_known_of_a_data_set_is_complete(known):
    assert all((known.title, known.origin, known.licence, known.cite, known.offline))
    for layout in known.layouts:
        assert layout.files or layout.archives or layout.groups
        assert all(re.fullmatch(r"[0-9a-f]{64}", f.sha256) for f in layout.files)
        sums = [x.checksum for x in (*layout.archives, *layout.files) if x.urls]
        assert all(re.fullmatch(r"md5:[0-9a-f]{32}", checksum) for checksum in sums)


def test_the_module_needs_no_torch():
    code = "import sys, metabench.datasets.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
