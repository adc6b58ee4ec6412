"""Whether an outer step can be captured as a graph, and what is in the way."""

from __future__ import annotations

import pytest
import torch

from metabench.contract.parallel.process_group import ProcessGroup
from metabench.contract.seeds import Seeds
from metabench.core.cell import instances, make_cell
from metabench.core.errors import SettingError
from metabench.run import engines
from metabench.run.events import ignore
from metabench.run.options import RunOptions


@pytest.mark.parametrize(
    ("task", "method", "device", "why"),
    [
        ("glyphs", "maml", "cpu", "needs a CUDA device, not cpu"),
        ("ridge", "bilevel", "cuda", "needs several episodes an outer step"),
        ("glyphs", "reptile", "cuda", "needs a capturable method, which reptile is not here"),
        ("sinusoid", "maml", "cuda", "needs a capturable task, which sinusoid is not"),
        ("glyphs", "maml", "cuda", None),
    ],
)
def test_a_graph_is_refused_with_the_reason(
    task: str, method: str, device: str, why: str | None
) -> None:
    cell = make_cell(task, method, set={"budget": {"outer_steps": 2}})
    options = RunOptions(torch.device(device), ignore, 60.0, None, 1, "graph", lambda: False)
    parts = instances(cell)
    problem = parts[0].build(Seeds.of(cell.seed), torch.device("cpu"))
    given = cell, parts, problem, options, ProcessGroup()
    if why is None:
        engines.check_capturable(*given)
        return
    with pytest.raises(SettingError, match=why):
        engines.check_capturable(*given)
