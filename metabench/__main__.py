"""``metabench`` and ``python -m metabench``."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from metabench.cli import app

    app(prog_name="metabench")


if __name__ == "__main__":
    main()
