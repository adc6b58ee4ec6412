"""The method of the package in tests/third_party, as a file that can be ranked."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests" / "third_party"))

from hypercleaning.central_differences import CentralDifferences

from metabench import method

method("central_differences")(CentralDifferences)
