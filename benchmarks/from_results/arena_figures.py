"""The figures of docs/which-method.md: three of arena-1's, from the scores that ship with it.

    python -m benchmarks.from_results.arena_figures            prints what would be drawn
    python -m benchmarks.from_results.arena_figures --write    draws them

They are results/arena-1/KIND-TRACK.png, drawn as ``metabench arena arena-1 --figures DIR`` draws
them, in few colours. Nothing is run. A file keeps the SHA-256 of the scores that it shows
(``Description``), so that a test can tell whether it is of these.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARENA, BUDGET = "arena-1", "laptop"
SCORES = ROOT / "results" / ARENA / BUDGET / "scores.jsonl.gz"
SHOWN = {"overfitting": "A", "retrained": "C", "robustness": "A"}
"""Kind of figure to the track it is of, in the order of the findings."""


def picture(kind: str) -> Path:
    """Where the figure of a kind is kept."""
    return ROOT / "results" / ARENA / f"{kind}-{SHOWN[kind].lower()}.png"


def digest() -> str:
    """What tells these scores from others."""
    return hashlib.sha256(SCORES.read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the paths, or draw the figures. Raises ValueError where one is too large."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.from_results.arena_figures",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("--write", action="store_true", help="draw the figures")
    if parser.parse_args(arguments).write:
        write()
    for kind, track in SHOWN.items():
        print(f"{picture(kind).relative_to(ROOT)}: {kind} of track {track}")
    return 0


def write() -> None:
    """Draw them."""
    from metabench.api.arena import tournament
    from metabench.core.environment import drawing

    drawing.matplotlib()
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from metabench.reports.arena.figures import KINDS
    from metabench.reports.figures.small import small_png
    from metabench.reports.figures.style import styled

    with tempfile.TemporaryDirectory() as empty:
        plan = tournament.plan(ARENA, budget=BUDGET, store=empty)
        tracks = {found.track: found for found in tournament.tracks(plan, store=empty)}
    for kind, track in SHOWN.items():
        with styled():
            data = small_png(KINDS[kind].draw(tracks[track]))
        if data is None:
            raise ValueError(f"the figure {kind} of track {track} is too large to be committed")
        said = PngInfo()
        said.add_text("Description", digest())
        Image.open(io.BytesIO(data)).save(picture(kind), pnginfo=said, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
