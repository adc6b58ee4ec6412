from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import os
from metabench.core.environment import drawing
drawing.matplotlib()
from metabench.reports.figures.style import empty
from metabench.tasks import glyphs
assert glyphs._coverage(glyphs._fonts()[0])
empty("nothing", "yet").savefig(os.devnull, format="png")
print(os.environ.get("MPLBACKEND"))
"""


def test_a_backend_that_a_notebook_leaves_stops_no_figure_and_no_glyphs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "MPLBACKEND": "module_of_a_notebook"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module_of_a_notebook\n", "left as it was for whoever comes later"
