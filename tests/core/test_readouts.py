"""Names of evaluations after a number of inner steps."""

import pytest

from metabench.core.readouts import ending, steps_of


@pytest.mark.parametrize("steps", [1, 12])
def test_the_number_is_read_back_from_the_name(steps: int) -> None:
    assert steps_of("test" + ending(steps)) == steps


@pytest.mark.parametrize("name", ["test", "test@retrained", "test@5_steps_more", "@steps"])
def test_other_names_have_none(name: str) -> None:
    assert steps_of(name) is None
