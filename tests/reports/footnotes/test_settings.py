"""A table says what its budget sets, and what of that departs from the paper's budget."""

import pytest

from metabench.analysis.results import collect
from metabench.reports.footnotes.budget import budget_footnotes
from metabench.suites.overrides import parse_override
from metabench.suites.suite import merge

UNLIKE = "Unlike at budget paper, whose values are in brackets: "


def told(helpers, rows, budget="laptop", overrides=(), **changes):
    made = []
    for n, row in enumerate(rows, 1):  # rows with the same cells would be one
        own = merge([{"method": {"inner_lr": n / 100}}, row.get("set", {})])
        made.append({"method": "bilevel", "label": row["id"].upper(), **row, "set": own})
    suite = helpers.make_suite(rows=made, paper=[], paper_rows=[], **changes)
    given = [parse_override(text) for text in overrides]
    found = collect(suite, budget, helpers.Fake(), overrides=given, why_not=helpers.allowed)
    notes = [note.text for note in budget_footnotes(found)]
    return [text for text in notes if not text.startswith("Incomplete")]


def unlike(*args, **words):
    return [text.removeprefix(UNLIKE) for text in told(*args, **words) if text.startswith(UNLIKE)]


def budgets(**settings):
    """Budgets that set this of every cell."""
    common = {"seeds": [0], "outer_steps": 7}
    return {
        name: {**common, "set": settings.get(name, {})} for name in ("smoke", "laptop", "paper")
    }


DECAY = {"method": {"outer_decay": "linear"}}
RATES = {"laptop": {"5w1s": {"method": {"outer_lr": 1.0}}},
         "paper": {"5w1s": {"method": {"outer_lr": 0.3}}}}  # fmt: skip


def test_what_a_budget_sets_stands_beside_what_the_paper_has(helpers):
    own = {"laptop": DECAY}
    rows = [{"id": "maml", "budgets": own}, {"id": "reptile"}, {"id": "anil", "budgets": own}]
    assert unlike(helpers, rows) == ["MAML and ANIL: method.outer_decay = linear (none)."]
    assert unlike(helpers, rows, "smoke") == []


def test_what_differs_by_budget_and_column_is_no_less_told(helpers):
    assert unlike(helpers, [{"id": "maml", "cells": RATES}, {"id": "anil"}]) == [
        "MAML in 5-way 1-shot: method.outer_lr = 1.0 (0.3)."
    ]


def test_departures_stand_by_name(helpers):
    """A cell of a record has its settings by name, one just resolved as its class has them."""
    own = {"laptop": {"method": {"inner_steps": 6, "inner_lr": 0.7}}}
    (said,) = unlike(helpers, [{"id": "maml", "budgets": own}, {"id": "anil"}])
    assert said.index("method.inner_lr = 0.7") < said.index("method.inner_steps = 6")


def test_what_the_papers_budget_has_too_is_no_departure(helpers):
    both = {"laptop": DECAY, "paper": DECAY}
    default = {"laptop": {"method": {"outer_decay": "none"}}}
    rows = [{"id": "maml", "budgets": both}, {"id": "anil", "budgets": default}]
    assert unlike(helpers, rows) == []


def test_what_the_paper_alone_sets_is_a_departure(helpers):
    rows = [{"id": "maml", "budgets": {"paper": DECAY}}, {"id": "anil"}]
    assert unlike(helpers, rows) == ["MAML: method.outer_decay = none (linear)."]
    assert unlike(helpers, rows, "paper") == []


def test_what_is_set_by_hand_is_no_departure(helpers):
    overrides = ["method.outer_lr=0.5"]
    assert unlike(helpers, [{"id": "maml", "cells": RATES}], overrides=overrides) == []


def test_what_a_budget_sets_for_all_is_told_once(helpers):
    rows = [{"id": "maml"}, {"id": "anil"}]
    five, six = {"method": {"inner_steps": 5}}, {"method": {"inner_steps": 6}}
    found = told(helpers, rows, budgets=budgets(laptop=five, paper=six))
    assert found[1:] == [f"{UNLIKE}all rows: method.inner_steps = 5 (6)."]
    assert "inner_steps" not in found[0]
    (alone,) = told(helpers, rows, budgets=budgets(laptop=five, paper=five))
    assert alone.endswith("; method.inner_steps = 5.")
    assert unlike(helpers, rows, "paper", budgets=budgets(laptop=five, paper=six)) == []


def test_what_a_budget_sets_is_told_with_the_rows_that_have_another(helpers):
    five = {"method": {"inner_steps": 5}}
    rows = [{"id": "maml"}, {"id": "anil", "set": {"method": {"inner_steps": 1}}}]
    (alone,) = told(helpers, rows, budgets=budgets(laptop=five, paper=five))
    assert alone.endswith("; method.inner_steps = 5 (but ANIL 1).")


@pytest.mark.parametrize(("limits", "words"), [
    ({"outer_steps": 1}, "1 outer step;"),
    ({"outer_steps": 2}, "2 outer steps;"),
    ({"hvps": 1}, "1 Hessian product;"),
    ({"inner_gradients": 1500}, "1,500 inner gradients;"),
    ({"seconds": 60.0}, "60.0 training seconds;"),
])  # fmt: skip
def test_one_of_a_limit_is_no_plural(helpers, limits, words):
    given = {name: {"seeds": [0], **limits} for name in ("smoke", "laptop", "paper")}
    assert f"Budget laptop: {words}" in told(helpers, [{"id": "maml"}], budgets=given)[0]


BEST = "the state with the best validation metric"
OTHERS = "the state with the best metric on examples that the outer loss does not see"


def test_which_state_is_tested_where_all_rows_say_it_themselves(helpers):
    kept = {"set": {"budget": {"select": "best_selection"}}}
    found = told(helpers, [{"id": "maml", **kept}, {"id": "anil", **kept}])
    assert f"; tested: {OTHERS}; " in found[0] and len(found) == 1


def test_which_state_is_tested_where_rows_and_columns_differ(helpers):
    last = {"columns": {"5w5s": {"budget": {"select": "last"}}}}
    found = told(helpers, [{"id": "maml", **last}, {"id": "anil"}])
    assert (
        f"; tested: {BEST} (MAML in 5-way 1-shot; ANIL), the last state (MAML in 5-way 5-shot); "
    ) in found[0]
    assert len(found) == 1


def test_rows_with_another_budget_are_all_rows_or_all_but_a_few(helpers):
    ids = [f"r{n}" for n in range(8)]

    def others(having):
        own = {"set": {"budget": {"eval_every": 5}}}
        rows = [{"id": i, **(own if i in having else {})} for i in ids]
        return told(helpers, rows)[1:]

    assert others(ids) == ["Other budgets: all rows: eval_every = 5."]
    assert others(ids[:6]) == ["Other budgets: all rows but R6 and R7: eval_every = 5."]
    assert others(ids[:5]) == ["Other budgets: R0, R1, R2, R3 and R4: eval_every = 5."]


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ("test", "600 test episodes"),
        ("valid", "600 validation episodes"),
        ("test@1_steps", "600 test episodes, each after 1 inner step"),
        ("test@5_steps", "600 test episodes, each after 5 inner steps"),
        ("test@retrained", "600 test episodes"),
    ],
)
def test_episodes_are_of_a_split(helpers, evaluation, words):
    assert f"; {words}; " in told(helpers, [{"id": "maml"}], evaluation=evaluation)[0]
