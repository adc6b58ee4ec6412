"""``metabench`` and ``python -m metabench``."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line."""
    from metabench.cli.main import app

    for stream in (sys.stdout, sys.stderr):
        # A terminal without the sign for a hole or for plus-minus shows a question mark.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="metabench")


if __name__ == "__main__":
    main()
