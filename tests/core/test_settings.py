from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from metabench.core import settings
from metabench.core.errors import SettingError, UnknownName


@dataclass(frozen=True)
class Example:
    steps: Annotated[int, Field(ge=1)] = 5
    rate: Annotated[float, Field(gt=0)] = 0.1
    order: Literal["second", "first"] = "second"
    clip: float | None = None
    parts: tuple[int, ...] = (1, 2)
    flag: bool = False
    kind: ClassVar[str] = "no setting"
    made: int = field(init=False, default=0)


@dataclass(frozen=True)
class Grown(Example):
    test_steps: int | None = settings.later(None)


def test_a_later_setting_leaves_cells_without_it_as_they_were() -> None:
    assert settings.values(Grown()) == settings.values(Example())
    assert settings.values(Grown(test_steps=3)) == {**settings.values(Example()), "test_steps": 3}
    assert settings.build(Grown, settings.values(Grown()), "x") == Grown()


def test_fields_are_the_settable_ones() -> None:
    assert list(settings.fields(Example)) == ["steps", "rate", "order", "clip", "parts", "flag"]


def test_defaults_and_values() -> None:
    assert settings.build(Example, {}, "x") == Example()
    made = settings.build(Example, {"steps": 3, "order": "first", "parts": [4]}, "x")
    assert made == Example(steps=3, order="first", parts=(4,))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 0}, "setting steps cannot be 0: input should be greater than or equal to 1"),
        ({"steps": 1.5}, "steps cannot be 1.5"),
        ({"steps": "many"}, "steps cannot be 'many'"),
        ({"rate": -1}, "rate cannot be -1: input should be greater than 0"),
        ({"rate": None}, "rate cannot be None"),
        ({"order": "frist"}, "order cannot be 'frist': input should be 'second' or 'first'"),
        ({"parts": [1, "x"]}, "setting parts.1 cannot be 'x'"),
        ({"rate": math.inf}, "rate cannot be inf: not finite"),
        ({"clip": math.nan}, "clip cannot be nan: not finite"),
        ({"parts": [1, -math.inf]}, "not finite"),
        ({"steps": "2"}, "steps cannot be '2': input should be a valid integer"),
        ({"steps": "٢"}, "steps cannot be '٢'"),
        ({"steps": 2.0}, "steps cannot be 2.0"),
        ({"rate": "0.1"}, "rate cannot be '0.1'"),
        ({"flag": "yes"}, "flag cannot be 'yes': input should be a valid boolean"),
        ({"flag": 1}, "flag cannot be 1"),
        ({"parts": [1, "2"]}, "setting parts.1 cannot be '2'"),
        ({"parts": [1, True]}, "setting parts.1 cannot be True: true or false is no number"),
        ({"parts": "12"}, "parts cannot be '12'"),
        ({"order": datetime.date(2020, 1, 1)}, "order cannot be {'date': '2020-01-01'}"),
        ({"clip": settings.parse("[" * 250 + "]" * 250)}, "recursion limit exceeded"),
        ({"rate": 10**400}, "rate cannot be"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError) as error:
        settings.build(Example, values, "method maml")
    assert str(error.value).startswith("method maml: ")
    assert says in str(error.value)


def test_numbers_of_numpy_are_numbers() -> None:
    made = settings.build(Example, {"steps": np.int64(3), "rate": np.float32(0.5)}, "x")
    assert made == Example(steps=3, rate=0.5) and type(made.steps) is int


def test_unknown_names_come_with_near_ones() -> None:
    with pytest.raises(UnknownName, match="no setting of method maml called 'stesp'; near: steps"):
        settings.build(Example, {"stesp": 3}, "method maml")
    with pytest.raises(UnknownName):
        settings.build(Example, {"made": 3}, "x")
    with pytest.raises(UnknownName):
        settings.build(Example, {"kind": "y"}, "x")


@given(
    st.builds(
        Example,
        steps=st.integers(1, 10**6),
        rate=st.floats(1e-9, 1e9),
        order=st.sampled_from(["second", "first"]),
        clip=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        parts=st.lists(st.integers(-9, 9)).map(tuple),
        flag=st.booleans(),
    )
)
def test_values_survive_json(example: Example) -> None:
    plain = json.loads(json.dumps(settings.values(example)))
    assert settings.build(Example, plain, "x") == example


scalars = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)


@given(scalars | st.lists(scalars, max_size=4))
def test_toml_values_are_read_as_such(value: Any) -> None:
    text = json.dumps(value).replace("Infinity", "inf")
    read = settings.parse(text)
    assert read == value
    assert type(read) is type(value)


@given(scalars | st.none() | st.lists(scalars | st.text("ab \"'"), max_size=4))
def test_what_is_typed_is_read_again(value: Any) -> None:
    assert settings.parse(settings.typed(value)) == value


@pytest.mark.parametrize("name", ["steps", "rate", "clip"])
def test_true_and_false_are_no_numbers(name: str) -> None:
    with pytest.raises(SettingError, match=f"setting {name} cannot be True: true or false is no"):
        settings.build(Example, {name: True}, "x")
    assert settings.build(Example, {"flag": True}, "x").flag is True


def test_a_setting_can_be_unset() -> None:
    assert settings.typed(None) == "unset"
    assert settings.build(Example, {"clip": settings.parse("unset")}, "x").clip is None
    with pytest.raises(SettingError, match="setting steps cannot be None"):
        settings.build(Example, {"steps": settings.parse("unset")}, "x")


@given(st.text())
def test_any_text_can_be_parsed(text: str) -> None:
    settings.parse(text)


def test_text_that_is_no_toml_stays_text() -> None:
    assert settings.parse("second") == "second"
    assert settings.parse('"0.1"') == "0.1"
    assert settings.parse("1e-3") == 0.001
    assert settings.parse("true") is True
    assert settings.parse("1\nw = 2") == "1\nw = 2"
    assert settings.parse("[" * 5000) == "[" * 5000
    assert settings.parse("1" * 5000) == "1" * 5000
