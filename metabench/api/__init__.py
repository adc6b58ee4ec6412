"""The verbs of metabench as functions: :func:`run`, :func:`table`, :func:`reproduce` and the rest.

They do what the commands of the same names do, and import what is heavy when they are called.

>>> from metabench import api
>>> suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel", "fixed"])
>>> api.run(suite, budget="smoke", set=["budget.outer_steps=2"]).count("done")
2
>>> table = api.table(suite, budget="smoke", set=["budget.outer_steps=2"])
>>> print(table)  # doctest: +ELLIPSIS
bilevel, fixed on quadratic (budget smoke)
...
>>> table.frame["row"].tolist()
['bilevel', 'fixed']

Records are kept in the folder ``results/runs``, or where ``store`` says.
"""

from metabench.api.arguments import suite_of_pairs
from metabench.api.calibration import Calibration, calibrate
from metabench.api.comparison import Compared, compare
from metabench.api.describe import show
from metabench.api.inventory import check, data_fetch, data_find, data_list, data_verify, doctor
from metabench.api.output import Table
from metabench.api.publication import publish
from metabench.api.rendering import Rendered, plot, render, report, reproduce, results, table
from metabench.api.running import Status, plan, run, status, submit
from metabench.api.scaffold import new
from metabench.core.catalogue import listing as list_

__all__ = [
    "Calibration",
    "Compared",
    "Rendered",
    "Status",
    "Table",
    "calibrate",
    "check",
    "compare",
    "data_fetch",
    "data_find",
    "data_list",
    "data_verify",
    "doctor",
    "list_",
    "new",
    "plan",
    "plot",
    "publish",
    "render",
    "report",
    "reproduce",
    "results",
    "run",
    "show",
    "status",
    "submit",
    "suite_of_pairs",
    "table",
]
