"""Sizes beyond which a number is no result."""

from __future__ import annotations

RUNAWAY = 1e15
"""A metric of this size is finite, and yet no result: float64 has no digit left for what is of
order 1. Records and tables say so."""


LARGEST = 1e100
"""A metric beyond this has no deviation that float64 could hold with any safety: diverged."""
