"""Examples for the split "selection": what training, validation and test parts leave over."""

from __future__ import annotations

from collections.abc import Mapping

LEAST = 4
"""One in so many of the validation examples must be left over at least."""


def kept(n_valid: int, left: int) -> int:
    """How many of ``left`` examples are kept to choose a state by: as many as validation has, fewer
    where there are fewer, none where they are less than a quarter of that."""
    n = max(0, min(n_valid, left))
    return n if LEAST * n >= n_valid else 0


def with_selection(sizes: Mapping[str, int], there: int) -> dict[str, int]:
    """Sizes of the parts that are cut from so many examples, "selection" after the others where
    some are kept for it."""
    n = kept(sizes["valid"], there - sum(sizes.values()))
    return {**sizes, **({"selection": n} if n else {})}


def lacks_kept(n_valid: int, left: int) -> str | None:
    """Why none are kept; None: some are."""
    if not n_valid:
        return "there are no validation examples either"
    if kept(n_valid, left):
        return None
    return (
        f"training, validation and test leave {max(left, 0)} examples over, less than a quarter of "
        f"the {n_valid} that validate"
    )
