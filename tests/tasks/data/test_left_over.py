"""What is kept to choose a state by."""

import pytest

from metabench.tasks.data.left_over import kept, lacks_kept, with_selection


@pytest.mark.parametrize(
    ("n_valid", "left", "n"),
    [
        (100, 500, 100),
        (100, 60, 60),
        (100, 25, 25),
        (100, 24, 0),
        (100, -3, 0),
        (3, 1, 1),
        (0, 9, 0),
    ],
)
def test_as_many_as_validate_and_not_less_than_a_quarter(n_valid, left, n):
    assert kept(n_valid, left) == n
    assert (lacks_kept(n_valid, left) is None) == (n > 0)
    sizes = with_selection({"train": 7, "valid": n_valid}, 7 + n_valid + left)
    assert [*sizes.items()][2:] == ([("selection", n)] if n else [])


def test_why_none_are_kept():
    assert lacks_kept(0, 9) == "there are no validation examples either"
    assert "leave 24 examples over, less than a quarter of the 100" in lacks_kept(100, 24)
