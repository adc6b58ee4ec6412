"""Versions of other packages: those of the committed results, and the newest that were tested."""
