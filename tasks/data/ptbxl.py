"""PTB-XL: ten seconds of twelve leads at 100 Hz, five diagnostic superclasses, from its own files.

Wagner et al.: PTB-XL, a large publicly available electrocardiography dataset, Scientific Data 7,
2020; its versions on PhysioNet differ by some 40 records that were held twice. Signals are read as
WFDB has them (https://wfdb.io/spec): a header of text, int16 samples with the leads of an instant
side by side (format 16). Every signal is checked against the sum that its header has.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metabench.core.errors import MetabenchError
from metabench.datasets import locate

RATE = 100
"""Samples a second."""
LEADS, SAMPLES = 12, 1000

CLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
"""Normal, myocardial infarction, change of ST or T, conduction disturbance, hypertrophy."""

VERSIONS = {21837: "1.0.1", 21801: "1.0.2", 21799: "1.0.3"}
"""Records to version, as the versions' pages on PhysioNet have them; the paper of pre-training
uses 1.0.1."""

FOLDS = 10
"""Folds of patients; 9 and 10 were validated by a human, and 10 is the test's."""

_SIGNAL = re.compile(r"(?P<gain>[-+.\deE]+)(\((?P<baseline>-?\d+)\))?(/(?P<units>\S+))?$")


@dataclass(frozen=True)
class Hearts:
    """``signal`` int16 [n, 12, 1000] in steps of ``1 / gain`` mV from ``baseline``, both float32
    [n, 12]; ``label`` bool [n, 5], none to all of ``CLASSES``; ``fold`` int64 [n], 1 to 10.
    ``mean`` and ``deviation``: of all samples of folds 1 to 9, in mV."""

    signal: Tensor
    gain: Tensor
    baseline: Tensor
    label: Tensor
    fold: Tensor
    mean: float
    deviation: float

    def windows(self, chosen: Tensor, size: int) -> Tensor:
        """float32 [k, 12, size] of the records of these indices int64 [k], with the mean 0 and
        the deviation 1 over folds 1 to 9 in all leads together; zeros after the end."""
        value = self.millivolts(chosen)[..., :size]
        value = (value - self.mean) / self.deviation
        return torch.nn.functional.pad(value, (0, size - value.shape[2]))

    def millivolts(self, chosen: Tensor) -> Tensor:
        """float32 [k, 12, 1000]."""
        level = self.signal[chosen].float() - self.baseline[chosen, :, None]
        return level / self.gain[chosen, :, None]


def load() -> Hearts:
    """All records, in the order of the table.

    Raises DataMissing with the command that repairs it, MetabenchError where files are damaged or
    others.
    """
    return _read(locate.locate("ptbxl").path.resolve())


@lru_cache(maxsize=1)
def _read(folder: Path) -> Hearts:
    table = list(_rows(folder / "ptbxl_database.csv", "scp_codes", "filename_lr", "strat_fold"))
    if len(table) not in VERSIONS:
        known = ", ".join(f"{n} ({version})" for n, version in VERSIONS.items())
        raise MetabenchError(
            f"{folder / 'ptbxl_database.csv'} has {len(table)} records, none of PTB-XL's "
            f"versions: {known}"
        )
    superclass = _superclasses(folder / "scp_statements.csv")
    signal = np.empty((len(table), LEADS, SAMPLES), np.int16)
    scale = np.empty((2, len(table), LEADS), np.float32)
    label = torch.zeros(len(table), len(CLASSES), dtype=torch.bool)
    fold = torch.empty(len(table), dtype=torch.int64)
    for i, row in enumerate(table):
        signal[i], *scale[:, i] = read_record(folder / row["filename_lr"])
        try:
            codes, fold[i] = ast.literal_eval(row["scp_codes"]), int(float(row["strat_fold"]))
        except (ValueError, SyntaxError) as error:
            raise MetabenchError(
                f"{folder / 'ptbxl_database.csv'}: record {row['filename_lr']}: {error}"
            ) from error
        # As the paper's code has it: a statement counts whatever its likelihood, 0 included.
        label[i, [superclass[code] for code in codes if code in superclass]] = True
    gain, baseline = map(torch.from_numpy, scale)
    made = Hearts(torch.from_numpy(signal), gain, baseline, label, fold, 0.0, 1.0)
    mean, deviation = _moments(made, (fold < FOLDS).nonzero()[:, 0])
    return Hearts(made.signal, gain, baseline, label, fold, mean, deviation)


def _moments(hearts: Hearts, chosen: Tensor) -> tuple[float, float]:
    """Mean and deviation of all samples of these records, in mV."""
    total, square, n = 0.0, 0.0, chosen.numel() * LEADS * SAMPLES
    for part in chosen.split(1024):
        value = hearts.millivolts(part).double()
        total, square = total + float(value.sum()), square + float(value.square().sum())
    mean = total / n
    return mean, max((square / n - mean**2) ** 0.5, 1e-6)


def _rows(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    """The rows of a table. Raises MetabenchError where it cannot be read or lacks a column."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            for name in needed:
                if name not in (table.fieldnames or ()):
                    raise MetabenchError(f"{path} has no column {name}")
            yield from table
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MetabenchError(f"{path} cannot be read ({error})") from error


def _superclasses(path: Path) -> dict[str, int]:
    """Diagnostic statement to the number of its superclass."""
    out = {}
    for row in _rows(path, "", "diagnostic", "diagnostic_class"):
        if row["diagnostic"] and float(row["diagnostic"]) == 1:
            if row["diagnostic_class"] not in CLASSES:
                raise MetabenchError(
                    f"{path}: statement {row['']} is of class {row['diagnostic_class']!r}, none of "
                    f"{', '.join(CLASSES)}"
                )
            out[row[""]] = CLASSES.index(row["diagnostic_class"])
    return out


def read_record(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples int16 [12, 1000], gains (steps a mV) and baselines (steps) [12] of one record, its
    name without an ending.

    Raises MetabenchError where it is not twelve signals of 1,000 samples in format 16, 100 a
    second, in mV, or where a signal is not what its header sums up.
    """
    header, body = path.with_name(path.name + ".hea"), path.with_name(path.name + ".dat")
    try:
        lines = header.read_text(encoding="ascii").splitlines()
        held = body.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise MetabenchError(f"{path}: cannot be read ({error})") from error
    first, *signals = [line.split() for line in lines if line and not line.startswith("#")] or [[]]
    expected = [str(LEADS), str(RATE), str(SAMPLES)]
    if first[1:4] != expected or len(signals) != LEADS:
        raise MetabenchError(
            f"{header}: {len(signals)} signals under {' '.join(first)!r}, not under "
            f"'NAME {' '.join(expected)}'"
        )
    if len(held) != 2 * LEADS * SAMPLES:
        raise MetabenchError(f"{body}: {len(held)} bytes instead of {2 * LEADS * SAMPLES}")
    samples = np.frombuffer(held, "<i2").reshape(SAMPLES, LEADS).T
    gain, baseline = np.empty(LEADS, np.float32), np.empty(LEADS, np.float32)
    for i, fields in enumerate(signals):
        name, form, scale, _, zero, _, total = (*fields, *[""] * 7)[:7]
        found = _SIGNAL.match(scale)
        if name != body.name or form != "16" or found is None or found["units"] != "mV":
            raise MetabenchError(f"{header}: {' '.join(fields)!r} is no signal in format 16 and mV")
        if (int(samples[i].sum(dtype=np.int64)) - int(total)) % 2**16:
            raise MetabenchError(f"{body}: signal {i} is not what its header sums up: damaged")
        gain[i], baseline[i] = float(found["gain"]), float(found["baseline"] or zero)
    return samples, gain, baseline
