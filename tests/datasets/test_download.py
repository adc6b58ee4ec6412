"""Downloading one file from a server on this machine."""

import pytest
from dataset_server import BODY, Server, md5

from metabench.core.errors import MetabenchError
from metabench.datasets.download import digest, download, reach


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


def test_a_network_that_answers_nothing_is_found_out_in_seconds(tmp_path, monkeypatch):
    """As behind a firewall: what is sent is dropped, and the system waits for minutes."""
    tries = []

    def nothing(address, timeout, *more):
        tries.append((address[0], timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr("socket.create_connection", nothing)
    urls, told = ["http://one.invalid/a", "https://two.invalid/a"], []
    with pytest.raises(MetabenchError, match=r"one\S*/a: timed out; .*two\S*/a: timed out"):
        download(urls, tmp_path / "a", md5(BODY), lambda *now: told.append(now))
    assert [name for name, _ in tries] == ["one.invalid", "two.invalid"]
    assert all(seconds <= 5 for _, seconds in tries)
    assert told == [(url, 0, None) for url in urls], "each try is told before it is made"
    with pytest.raises(MetabenchError, match=r"cannot reach https://two\S*/a: timed out"):
        reach(urls[1])


def test_a_server_may_think_before_it_answers(server, tmp_path, monkeypatch):
    server.files["/a"] = BODY
    monkeypatch.setattr("metabench.datasets.download.CONNECT_SECONDS", 0.05)
    server.seconds = 0.15
    download([server.url("/a")], tmp_path / "a", md5(BODY))
    reach(server.url("/none"))


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
