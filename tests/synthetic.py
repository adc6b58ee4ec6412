"""Synthetic suites and records: numbers by formula, no training, no torch but for the registry."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from metabench.analysis.results import collect
from metabench.store.prices import Prices
from metabench.store.record import Curve, Estimate, Record
from metabench.suites.loading import from_dict
from metabench.suites.suite import Suite, SuiteCell

COLUMNS = {"5w1s": ("5-way 1-shot", 40, 0.0), "5w5s": ("5-way 5-shot", 80, 0.028)}
ROWS = {  # id: label, accuracy reached, speed, inner gradients a step
    "maml": ("MAML", 0.951, 1.0, 5),
    "fomaml": ("MAML, first order", 0.947, 0.9, 5),
    "anil": ("ANIL", 0.921, 1.4, 5),
    "reptile": ("Reptile", 0.902, 0.6, 50),
    "bilevel": ("Bilevel representation", 0.955, 0.8, 25),
    "fixed": ("No outer learning", 0.487, 0.0, 0),
}


def make_suite(**changes: object) -> Suite:
    """Two columns, six rows, a floor, numbers of two papers, three budgets."""
    budget = {"eval_every": 100, "valid_episodes": 100, "test_episodes": 600}
    data = {
        "name": "synthetic",
        "title": "Few-shot characters",
        "metric": "accuracy",
        "percent": True,
        "floor": "nearest_neighbour",
        "no_learning": "fixed",
        "floor_label": "Pixel nearest neighbour",
        "command": "metabench reproduce synthetic",
        "budgets": {
            "smoke": {**budget, "test_episodes": 12, "seeds": [0], "outer_steps": 6},
            "laptop": {**budget, "seeds": [0, 1, 2], "outer_steps": 1000},
            "paper": {
                **budget,
                "test_episodes": 1000,
                "seeds": [0, 1, 2, 3, 4],
                "outer_steps": 60000,
            },
        },
        "columns": [
            {"id": i, "label": label, "task": "ridge", "set": {"task": {"rows": rows}}}
            for i, (label, rows, _) in COLUMNS.items()
        ],
        "rows": [
            {
                "id": i,
                "label": label,
                "method": "bilevel",
                "chosen": "own" if i == "fixed" else "published",
                "set": {"method": {"inner_steps": 10 + n}},
            }
            for n, (i, (label, *_)) in enumerate(ROWS.items())
        ],
        "paper_rows": [{"id": "metasgd", "label": "Meta-SGD"}],
        "paper": [
            {
                "row": "maml",
                "column": "5w1s",
                "value": 98.7,
                "pm": 0.4,
                "label": "2nd",
                "pm_meaning": "95 % interval over episodes",
                "source": "Finn et al. 2017",
            },
            {
                "row": "maml",
                "column": "5w5s",
                "value": 99.9,
                "pm": 0.1,
                "label": "2nd",
                "pm_meaning": "95 % interval over episodes",
                "source": "Finn et al. 2017",
            },
            {
                "row": "reptile",
                "column": "5w1s",
                "value": 97.68,
                "label": "memory",
                "source": "Nichol et al. 2018",
            },
            {
                "row": "metasgd",
                "column": "5w1s",
                "value": 99.53,
                "pm": 0.26,
                "label": "2nd",
                "pm_meaning": "95 % interval over episodes",
                "source": "Li et al. 2017",
            },
        ],
    }
    for row in data["rows"]:
        if row["id"] == "fixed":
            row["set"] = {**row["set"], "budget": {"outer_steps": 0}}
    data |= changes
    data["rows"] = [{"chosen": "own", **row} for row in data["rows"]]
    if "rows" in changes and "no_learning" not in changes:
        del data["no_learning"]
    return from_dict(data, Path("synthetic.toml"))


class Fake:
    """A store in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Record] = {}
        self.curves: dict[str, Curve] = {}
        self.bad: list[str] = []
        self.shown: dict[str, dict[str, np.ndarray]] = {}
        self.priced: list[Prices] = []

    def scan(self) -> tuple[list[Record], list[str]]:
        return list(self.kept.values()), self.bad

    def folder(self, key: str) -> Path:
        return Path("in memory", key)

    def closed(self, key: str) -> None:
        return None

    def holder(self, key: str) -> None:
        return None

    def curve(self, record: Record) -> Curve:
        return self.curves.get(record.key, {})

    def prices(self) -> dict[str, Prices]:
        return {p.key: p for p in self.priced}

    def pictures(self, record: Record) -> dict[str, np.ndarray]:
        return self.shown.get(record.key, {})

    def add(self, place: SuiteCell, **changes: object) -> Record:
        """A plausible record of this place, with a curve."""
        cell = place.cell
        noise = random.Random(f"{place.row}/{place.column}/{cell.seed}")
        _, goal, speed, gradients = ROWS.get(place.row, ("", 0.8, 1.0, 5))
        lift = COLUMNS[place.column][2] if place.column in COLUMNS else 0.0
        goal = min(0.995, goal + lift + noise.gauss(0, 0.004))
        steps = cell.budget["outer_steps"]
        curve: Curve = {"step": [], "valid/accuracy": [], "train/outer_loss": []}
        names = [
            "inner_gradients",
            "outer_gradients",
            "hvps",
            "mixed_products",
            "function_evaluations",
            "trainings",
            "seconds",
        ]
        curve |= {f"cost/{n}": [] for n in names}
        curve |= {f"lam/log_penalty[{i}]": [] for i in range(6)}
        for step in sorted({*range(0, steps + 1, max(1, steps // 10)), steps}):
            reached = 0.3 + (goal - 0.3) * (1 - math.exp(-speed * step / 150)) ** 0.6
            value = goal if steps == 0 else reached + noise.gauss(0, 0.006)
            costs = [
                gradients * step,
                step,
                4 * step * (place.row == "maml"),
                step,
                0,
                0,
                step * gradients * 0.004,
            ]
            curve["step"].append(step)
            curve["valid/accuracy"].append(min(1.0, value))
            curve["train/outer_loss"].append(None if step == 0 else 2 * (1 - value))
            for n, value in zip(names, costs, strict=True):
                curve[f"cost/{n}"].append(value)
            for i in range(6):
                drift = (1 if i < 3 else -1) * (i + 1) * (1 - math.exp(-step / 400))
                curve[f"lam/log_penalty[{i}]"].append(drift + noise.gauss(0, 0.1))
        std = math.sqrt(goal * (1 - goal) / 5)
        n = cell.budget["test_episodes"]
        floor = 0.456 + 0.15 * (place.column == "5w5s") + 0.002 * cell.seed
        record = Record(
            **{
                "key": cell.key,
                "cell": cell,
                "status": "done",
                "steps": steps,
                "selected_step": steps,
                "seeds": {"data": 11 + cell.seed, "init": 22 + cell.seed},
                "metrics": {
                    "test": {
                        "accuracy": Estimate(goal, n, std, 1.96 * std / math.sqrt(n)),
                        "nearest_neighbour": Estimate(floor, n, 0.1, 0.008),
                    },
                    "valid": {"accuracy": Estimate(goal + 0.002, 100, std, 1.98 * std / 10)},
                },
                "cost": {n: float(curve[f"cost/{n}"][-1] or 0) for n in names}
                | {"evaluation_seconds": 12.5, "peak_memory_bytes": 4.2e8 + 1e6 * gradients},
                "lam": {"numbers": 6, "sha256": "ab" * 32, "shapes": {"log_penalty": [6]}},
                "environment": {
                    "versions": {"python": "3.13.1", "torch": "2.9.0", "metabench": "0.1.0"},
                    "git": {"commit": "0123456789abcdef", "dirty": False},
                    "machine": {"host": "node", "processor": "a processor", "cores": 2},
                },
                "started": "2026-01-05T10:00:00+00:00",
                "ended": "2026-01-05T10:05:00+00:00",
                **changes,
            }
        )
        self.kept[cell.key], self.curves[cell.key] = record, curve
        return record


def allowed(*_: object) -> None:
    """Every crossing of the synthetic suite is meant."""


def fill(suite: Suite, budget: str, store: Fake | None = None) -> Fake:
    """A store with a done record for every cell of a budget."""
    store = store or Fake()
    for place in suite.cells(budget):
        if not place.skip:
            store.add(place)
    return store


def failure(status: str) -> dict[str, object]:
    """What a record that came to nothing has and lacks."""
    reasons = {
        "failed": "RuntimeError: <script>alert(1)</script> & 50 % of x_1",
        "diverged": "loss on episode 3 of 'valid' is nan",
        "timeout": "60 s are used up at outer step 400",
    }
    return {
        "status": status,
        "reason": reasons[status],
        "metrics": {},
        "selected_step": None,
        "traceback": "Traceback (most recent call last):\n  <script>alert(1)</script>\n"
        if status == "failed"
        else "",
    }


@pytest.fixture(scope="session")
def suite() -> Suite:
    return make_suite()


@pytest.fixture(scope="session")
def full(suite):
    """Every cell of the laptop budget done; shared, so not to be added to."""
    store = fill(suite, "laptop")
    return collect(suite, "laptop", store, why_not=allowed), store


@pytest.fixture(scope="session")
def few():
    """As ``full``, with one row that learns and one that does not: every kind of figure with the
    fewest panels and lines. Shared, so not to be added to."""
    of = {"fixed": {"budget": {"outer_steps": 0}}, "maml": {"method": {"inner_steps": 20}}}
    rows = [{"id": i, "label": ROWS[i][0], "method": "bilevel", "set": of[i]} for i in of]
    suite = make_suite(rows=rows, no_learning="fixed", paper=[], paper_rows=[])
    store = fill(suite, "laptop")
    return collect(suite, "laptop", store, why_not=allowed), store


@pytest.fixture(scope="session")
def holed(suite):
    """The laptop budget with one of every kind of hole; shared, so not to be added to."""
    store = fill(suite, "laptop")
    places = suite.cells("laptop")
    at = {(p.row, p.column, p.cell.seed): p for p in places}
    store.add(at["anil", "5w1s", 1], **failure("failed"))
    for seed in (0, 1, 2):
        store.add(at["reptile", "5w5s", seed], **failure("diverged" if seed else "timeout"))
    for seed in (1, 2):
        del store.kept[at["fomaml", "5w5s", seed].cell.key]
    del store.kept[at["bilevel", "5w5s", 2].cell.key]
    store.bad = ["ab/cdef/record.json: cannot be read as a record: not a record <b>"]

    def why_not(task, method, solver):
        return (
            "a head of its own is needed, which ridge does not offer"
            if (method.inner_steps == 15 and task.rows == 80)
            else None
        )

    return collect(suite, "laptop", store, why_not=why_not), store


@pytest.fixture(scope="session")
def helpers():
    """The functions of this file, for tests that build their own."""
    import types

    return types.SimpleNamespace(
        make_suite=make_suite,
        Fake=Fake,
        fill=fill,
        failure=failure,
        allowed=allowed,
        COLUMNS=COLUMNS,
        ROWS=ROWS,
    )
