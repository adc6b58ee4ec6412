"""Where the cache is."""

from metabench.datasets import cache


def test_it_follows_the_users_folders(monkeypatch, tmp_path):
    monkeypatch.delenv("METABENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "metabench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == tmp_path / "home" / ".cache" / "metabench"
