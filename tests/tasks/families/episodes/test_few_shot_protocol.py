"""How a few-shot task is tested: query images, inner batches and features of their own."""

import pytest
import torch

from metabench.analysis.results import collect
from metabench.contract.seeds import Seeds
from metabench.core.errors import SettingError
from metabench.core.registry import tasks
from metabench.core.settings import build
from metabench.reports.footnotes.protocol import protocol_footnotes
from metabench.tasks.families.images.class_images import nearest_neighbour

SMALL = {"ways": 3, "shots": 2, "queries": 4, "filters": 4, "meta_batch": 2}


def problem(**changes):
    task = build(tasks.get("glyphs"), {**SMALL, **changes}, "glyphs")
    return task.build(Seeds.of(0), torch.device("cpu"))


def test_test_queries_are_those_of_evaluation_alone():
    plain, other = problem(), problem(test_queries=1)
    for split, n in (("train", 12), ("valid", 3), ("test", 3)):
        assert len(other.episode(split, 5).outer["y"]) == n
        assert torch.equal(other.episode(split, 5).inner["x"], plain.episode(split, 5).inner["x"])
    assert len(plain.episode("test", 5).outer["y"]) == 12


def test_test_batches_go_through_the_support_set_and_the_floor_sees_all_of_it():
    plain, other = problem(), problem(test_inner_batch=4)
    whole, episode = plain.episode("test", 3), other.episode("test", 3)
    seen = torch.cat([episode.batch(t)["x"] for t in range(3)])
    assert len(episode.batch(0)["y"]) == 4
    order = lambda x: x.flatten(1).sum(1).sort().values  # noqa: E731
    assert torch.equal(order(seen), order(whole.inner["x"]).repeat_interleave(2))
    assert nearest_neighbour(episode) == nearest_neighbour(whole)
    assert torch.equal(episode.batch(1)["x"], other.episode("test", 3).batch(1)["x"])
    assert not callable(other.episode("train", 0).inner)


def test_features_may_be_all_of_the_maps():
    assert problem(filters=64).net.feature_size == 64
    assert problem(filters=64, reduction="flatten").net.feature_size == 256


def test_too_many_test_queries_are_refused_by_name():
    with pytest.raises(SettingError, match="test_queries = 1000"):
        problem(test_queries=1000)


def test_a_table_says_how_each_row_is_tested(helpers):
    def suite(**task):
        rows = [
            {"id": "a", "method": "maml", "label": "A"},
            {"id": "b", "method": "maml", "label": "B", "set": {"task": task}},
            {"id": "c", "method": "maml", "label": "C"},
        ]
        columns = [{"id": "k", "task": "glyphs", "label": "K", "set": {"task": {"queries": 3}}}]
        made = helpers.make_suite(rows=rows, columns=columns, paper=[], paper_rows=[], floor="")
        return collect(made, "smoke", helpers.Fake(), why_not=helpers.allowed)

    (same,) = protocol_footnotes(suite())
    assert same.text == "Tested with 3 query images a class (K)."
    first, second, mixed = protocol_footnotes(suite(test_queries=1))
    assert first.text == "Tested with 3 query images a class (K: all other rows)."
    assert second.text == "Tested with 1 query image a class (K: B)."
    assert "Rows tested in different ways (K)" in mixed.text
