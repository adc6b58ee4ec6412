"""The photographs of scikit-image: all there, grey, different, and told where they are not."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch
from optional import needs

from metabench.core.errors import MetabenchError

scikit_image = importlib.import_module("metabench.tasks.data.scikit_image")


def test_twelve_grey_photographs():
    needs("skimage")
    images = scikit_image.load(16)
    assert images.shape == (12, 16, 16) and images.dtype == torch.float64
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    assert torch.equal((images * 255).round() / 255, images)
    apart = torch.cdist(images.flatten(1), images.flatten(1)) + torch.eye(12)
    assert float(apart.min()) > 0.5
    # Brightness survives the squeezing to a square.
    means = scikit_image.load(128).mean((1, 2))
    torch.testing.assert_close(images.mean((1, 2)), means, rtol=0.02, atol=0)


def test_a_missing_package_is_told(monkeypatch):
    scikit_image.load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetabenchError, match="skimage is not installed"):
        scikit_image.load(17)
