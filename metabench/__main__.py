"""``metabench`` and ``python -m metabench``."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from metabench.core.environment import garbage


class OutputEnded(SystemExit):
    """Nobody takes what is printed: the command ends, whatever it is at."""


class Output(io.FileIO):
    """Standard output; where it takes nothing more, the command ends. A full disk or a closed
    stream is an error, a reader (head, less) that has ended is none."""

    _ended = False

    def write(self, data: Any) -> int:
        """All of ``data``, or, once the command has to end, none of it."""
        try:
            return len(data) if self._ended else super().write(data)
        except BrokenPipeError:
            self._ended = True
            raise OutputEnded(0) from None
        except OSError as error:
            self._ended = True
            print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
            raise OutputEnded(1) from None


def main() -> None:
    """Run the command line. Ctrl-C is one line from here on: imports alone take a while."""
    try:
        with garbage.uncollected():
            from metabench.cli.main import app
        garbage.keep()

        _streams()
        try:
            app(prog_name="metabench")
        finally:
            sys.stdout.flush()  # an error is told now; when Python itself ends, it would not be
            garbage.end()  # no time to look through all that was imported
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _streams() -> None:
    """Streams that were closed (``>&-``) as ones that take and give nothing: the next file opened
    would get their number, and what is printed. A sign that a terminal lacks is a question mark."""
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    was = sys.stdout
    if was is None or (isinstance(was, io.TextIOWrapper) and not was.isatty()):
        number = os.open(os.devnull, os.O_RDONLY) if was is None else was.fileno()
        told = io.BufferedWriter(Output(number, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(told, None if was is None else was.encoding)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    main()
