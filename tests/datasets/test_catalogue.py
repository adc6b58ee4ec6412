"""What the catalogue says of every data set."""

import re

import pytest

from metabench.datasets import catalogue


@pytest.mark.parametrize("known", catalogue.DATASETS.values(), ids=lambda d: d.name)
def test_what_is_known_of_a_data_set_is_complete(known):
    assert all((known.title, known.origin, known.licence, known.cite, known.offline))
    for layout in known.layouts:
        assert layout.files or layout.archives or layout.groups
        assert all(re.fullmatch(r"[0-9a-f]{64}", f.sha256) for f in layout.files)
        sums = [x.checksum for x in (*layout.archives, *layout.files) if x.urls]
        assert all(re.fullmatch(r"md5:[0-9a-f]{32}", checksum) for checksum in sums)
