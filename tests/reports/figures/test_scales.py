import pytest

from metabench.reports.figures import scales


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1.0, 1e-3], True),
        ([1.0, 1e-3, 0.0], True),
        ([1.0, 0.02], False),
        ([1.0, 0.0], False),
        ([1.0, 1e-3, -1e-9], False),
        ([0.0, 0.0], False),
    ],
)
def test_values_that_span_powers_of_ten_have_a_logarithmic_axis(values, log):
    assert scales.logarithmic([[values]], small=False) == [log]


def test_lines_at_the_bottom_of_a_linear_axis_have_a_logarithmic_one_where_small_is_good():
    lines = [[4.0, 1.0, 0.9], [4.0, 1.1, 1.0], [9.0, 9.0, 9.0]]
    assert scales.logarithmic([lines], small=True) == [True]
    assert scales.logarithmic([lines], small=False) == [False]
    # All begin high: the axis is not of one row alone, but 4 is no more than eight times 1.
    assert scales.logarithmic([lines[:2]], small=True) == [False]


def test_panels_have_one_scale_where_all_can():
    tall, flat, negative = [[1.0, 1e-3]], [[1.0, 0.9]], [[1.0, -0.9]]
    assert scales.logarithmic([tall, flat], small=True) == [True, True]
    assert scales.logarithmic([tall, flat, []], small=True) == [True, True, False]
    assert scales.logarithmic([tall, flat, negative], small=True) == [True, False, False]
    assert scales.logarithmic([flat, flat], small=True) == [False, False]


def test_a_floor_stands_for_0_alone():
    assert scales.floor_of([[1.0, 1e-3], [0.0]], least=0.0) == pytest.approx(5e-4)
    assert scales.floor_of([[1.0, 1e-3]], least=1e-9) is None


@pytest.mark.parametrize(
    ("around", "floor", "limits"),
    [
        ([], None, (1.0 / 1.2023, 100.0 * 1.2023)),
        ([0.5, 300.0], None, (0.5 / 1.2917, 300.0 * 1.2917)),
        # Ten times as far at most: the rest leaves the panel.
        ([1e-9, 1e9], None, (0.1 / 1.4454, 1000.0 * 1.4454)),
        ([1e-9], 0.5, (0.5, 100.0 * 1.2361)),
    ],
)
def test_an_axis_has_room_for_what_is_around_the_means(around, floor, limits):
    found = scales.ends([[1.0, 100.0], [10.0]], around, floor)
    assert found == pytest.approx(limits, rel=1e-4)
