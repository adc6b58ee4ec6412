"""The kit's check of which examples the outer level learns on."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from metabench.conformance.harness import NotTested
from metabench.conformance.split_checks import (
    check_outer_on_validation,
    check_selection,
    check_unit_embedding,
    found,
)
from metabench.conformance.test_problems import Sample
from metabench.contract.seeds import Seeds
from metabench.core.registry import tasks

Ridge = tasks.get("ridge")


def test_a_task_that_does_not_say_what_it_learns_on():
    @dataclass(frozen=True)
    class Silent(Ridge):
        outer_on_validation: ClassVar[bool] = False

    check_outer_on_validation(Ridge())
    with pytest.raises(AssertionError, match=r"100% .* set outer_on_validation = True"):
        check_outer_on_validation(Silent())


def test_a_task_that_says_what_it_does_not_do():
    @dataclass(frozen=True)
    class Wrong(Sample):
        outer_on_validation: ClassVar[bool] = True

    check_outer_on_validation(Sample())
    with pytest.raises(AssertionError, match="is True, but 0% of the examples"):
        check_outer_on_validation(Wrong())


def test_without_validation_images_the_part_is_that_of_training():
    Prior = tasks.get("layerwise_prior")
    small = {"width": 4, "shrink": 4, "n_train": 40, "n_test": 30, "batch": 10}
    whole = Prior(validation=0.0, **small)
    assert not whole.outer_on_validation
    with pytest.raises(NotTested, match="'valid' is the training part"):
        check_outer_on_validation(whole)

    @dataclass(frozen=True)
    class Silent(Prior):
        outer_on_validation: ClassVar[bool] = False
        offers: ClassVar[frozenset[str]] = frozenset({"evidence"})

    with pytest.raises(AssertionError, match="0% of the examples of 'valid' are trained on"):
        check_outer_on_validation(Silent(validation=0.25, **small))


def test_a_part_of_the_validation_examples_is_found_too():
    whole = {"x": torch.arange(12.0).reshape(6, 2), "y": torch.zeros(6, dtype=torch.int64)}
    some = {k: v[[4, 1]] for k, v in whole.items()}
    other = {"x": whole["x"][:4] + 100, "y": whole["y"][:4]}
    assert found([some], [whole]) == 1
    assert found([other], [whole]) == 0
    assert (
        found([some, {k: torch.cat([v, other[k][:2]]) for k, v in some.items()}], [whole]) == 4 / 6
    )


def test_a_formula_has_no_examples():
    with pytest.raises(NotTested, match="no examples"):
        check_outer_on_validation(tasks.get("quadratic")())


def test_a_selection_split_that_shares_examples():
    class Shares(type(Ridge().build(Seeds.of(0), torch.device("cpu")))):
        def episode(self, split, index):
            return super().episode("test" if split == "selection" else split, index)

    @dataclass(frozen=True)
    class Leaking(Ridge):
        def build(self, seeds, device):
            return Shares(self, seeds, device)

    check_selection(Ridge())
    with pytest.raises(AssertionError, match=r"100% of the examples of 'selection' .* of 'test'"):
        check_selection(Leaking())
    with pytest.raises(NotTested, match="no split 'selection': its outer level does not learn"):
        check_selection(Sample())


def test_embeddings_that_are_not_of_unit_length():
    glyphs = tasks.get("glyphs")
    small = {"ways": 2, "filters": 4, "meta_batch": 1, "formulation": "representation"}

    @dataclass(frozen=True)
    class Wrong(glyphs):
        @property
        def offers(self):
            return super().offers | {"unit_embedding"}

    check_unit_embedding(glyphs(**small, unit_features=True))
    with pytest.raises(AssertionError, match="an embedding has length"):
        check_unit_embedding(Wrong(**small))
    with pytest.raises(NotTested):
        check_unit_embedding(glyphs(**small))
