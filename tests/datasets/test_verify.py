"""Checking data sets against sizes and checksums."""

import io
import re
import zipfile

from dataset_server import NAMES, archive, put_arrays

from metabench.datasets import verify


def test_what_cannot_be_read_is_a_verdict(toy, tmp_path, monkeypatch):
    def refuse(path, kind):
        raise PermissionError(13, "Permission denied", str(path))

    put_arrays(tmp_path)
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    monkeypatch.setattr(verify, "digest", refuse)
    assert {v.wrong for v in verify.verify("toy")} == {"cannot be read: Permission denied"}


def test_files_are_verified_by_size_and_checksum(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    folder = put_arrays(tmp_path)
    assert [(v.path.name, v.wrong) for v in verify.verify("toy")] == [("x.npz", "")]
    (folder / "y.npz").write_bytes(b"abc")  # not needed, but wrong
    (folder / "x.npz").write_bytes(b"abcd")
    wrong = {v.path.name: v.wrong for v in verify.verify("toy")}
    assert wrong["x.npz"] == "4 bytes instead of 3"
    assert re.fullmatch(r"sha256 \w{16}\.\.\. instead of \w{16}\.\.\.", wrong["y.npz"])


def test_what_another_program_unpacked_is_counted_and_said_to_be(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("METABENCH_DATA", str(tmp_path))
    with zipfile.ZipFile(io.BytesIO(archive(NAMES))) as packed:
        packed.extractall(tmp_path / "toy-py")
    verdict = verify.verify("toy")[0]
    assert verdict.wrong == ""
    assert verdict.note.startswith("counted only")
