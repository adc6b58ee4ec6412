"""MIT-BIH arrhythmia: beats of 44 half-hour recordings as windows of two leads.

Moody, Mark: The impact of the MIT-BIH Arrhythmia Database, IEEE Engineering in Medicine and Biology
20(3), 2001. Classes of the AAMI, patients split in DS1 and DS2 as by de Chazal, O'Dwyer, Reilly,
IEEE Transactions on Biomedical Engineering 51(7), 2004; the four paced recordings are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metabench.core.errors import MetabenchError
from metabench.datasets import locate

from .formats import arrays

RATE = 100
"""Samples a second."""

CLASSES = ("N", "S", "V", "F")
"""Normal, supraventricular, ventricular, fusion. The fifth, Q (15 beats in all), is left out."""

SHAPE = (48, 2, 180556)
"""Recordings, leads, samples."""


@dataclass(frozen=True)
class Beats:
    """``signal`` float32 [recordings, 2, samples], every lead with mean 0 and deviation 1 over its
    recording; of each beat of a class in ``CLASSES`` its ``record``, its ``sample`` and its
    ``label``, int64 [n]; ``part`` int64 [n]: 1 for patients of DS1, 2 for those of DS2."""

    signal: Tensor
    record: Tensor
    sample: Tensor
    label: Tensor
    part: Tensor

    def windows(self, chosen: Tensor, size: int) -> Tensor:
        """[k, 2, size] around the beats of these indices int64 [k], each beat in the middle.

        A window must lie in its recording: see :meth:`whole`.
        """
        at = self.sample[chosen, None] - size // 2 + torch.arange(size)
        return self.signal[self.record[chosen, None, None], torch.arange(2)[:, None], at[:, None]]

    def whole(self, size: int) -> Tensor:
        """Which beats have a whole window of this size, bool [n]."""
        first = self.sample - size // 2
        return (first >= 0) & (first + size <= self.signal.shape[2])


def load() -> Beats:
    """The recordings of DS1 and DS2.

    Raises DataMissing with the command that repairs it, MetabenchError where the file is damaged
    or another.
    """
    return _read(locate.locate("mitbih").path.resolve())


@lru_cache(maxsize=1)
def _read(folder: Path) -> Beats:
    path = folder / "mitbih_100hz.npz"
    with arrays.readable(path, "mitbih"):
        signal, split, record, sample, label = arrays.read(
            path, "signal", "split", "beat_record", "beat_sample", "beat_aami"
        )
    if signal.shape != SHAPE or signal.dtype != np.int16:
        raise MetabenchError(
            f"{path} holds {signal.dtype} {list(signal.shape)}, not int16 {list(SHAPE)}; look with:"
            " metabench data verify mitbih"
        )
    wave = torch.from_numpy(signal).float()
    wave = (wave - wave.mean(2, keepdim=True)) / wave.std(2, keepdim=True).clamp(min=1e-6)
    part = split[record]
    kept = (part < 2) & (label < len(CLASSES))
    of_beats = (x[kept].astype(np.int64) for x in (record, sample, label, part + 1))
    return Beats(wave, *map(torch.from_numpy, of_beats))
