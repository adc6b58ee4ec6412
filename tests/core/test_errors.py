"""Names that are near: whatever their capitals, and whatever stands between their words."""

from __future__ import annotations

import pytest

from metabench import api
from metabench.core.errors import MOST_NAMES, UnknownName, nearest


def test_capitals_and_signs_between_words_do_not_count() -> None:
    known = ["maml", "few-shot-cifarfs", "few_shot", "imaml"]
    assert nearest("MAML", known)[0] == "maml"
    assert nearest("few_shot_cifarfs", known)[0] == "few-shot-cifarfs"
    assert nearest("Few-Shot", known)[0] == "few_shot"
    assert nearest("zzz", known) == []
    assert nearest("a_b", ["a-b", "a_b", "A_B"]) == ["A_B", "a-b", "a_b"]


@pytest.mark.parametrize(
    ("kind", "typed", "near"),
    [
        ("task", "Quadratc", "quadratic"),
        ("method", "MAML", "maml"),
        ("solver", "Adamw1", "adamw"),
        ("suite", "omniglto", "omniglot"),
        (None, "sinusiod", "sinusoid"),
    ],
)
def test_show_suggests_what_is_near(kind: str | None, typed: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        api.show(typed, kind)
    assert near in caught.value.near


def test_data_and_trackers_have_their_own_lists() -> None:
    with pytest.raises(UnknownName, match="near: omniglot"):
        api.data_find("omnigot")
    with pytest.raises(UnknownName, match="mnist is a data set: metabench data list"):
        api.show("mnist")
    with pytest.raises(UnknownName, match="wandb is a tracker: --log wandb"):
        api.show("wandb")


def test_all_names_are_listed_where_they_are_few_or_nothing_is_near() -> None:
    many = [f"name{n}" for n in range(MOST_NAMES + 1)]
    assert str(UnknownName("thing", "nam", ["name", "other"])).endswith("known: name, other")
    assert str(UnknownName("thing", "name1x", many)) == (
        "no thing 'name1x'; near: name1, name19, name18"
    )
    assert "name20" in str(UnknownName("thing", "zzz", many))
