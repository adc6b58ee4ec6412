"""The report of a suite: one HTML file that needs nothing else, every number linked to its records.

First tables, plots as inline SVG, holes and unreadable files; then each record: settings, seeds,
versions, git state, machine, costs, its learning curve, its traceback where it failed, and all of
it as JSON.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.analysis.results import Records, Results, TableCell
from metabench.core.cell import Cell
from metabench.core.errors import NotDrawn, StoreError
from metabench.core.text import counted, human, printable, with_pm
from metabench.reports.tables import renderers
from metabench.reports.tables.grids import COSTS, cost_grid, grids
from metabench.reports.tables.ranks import ranks_grid
from metabench.store.published import private, without_paths
from metabench.store.record import Curve, Estimate, Record
from metabench.suites.planning import NEVER_RUN, Planned

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from metabench.reports.figures.plots import Figures

TITLES = {
    "learning": "Learning curves",
    "cost": "Metric against cost",
    "trajectories": "Hyperparameter trajectories",
    "ranking": "Ranking",
    "profile": "Performance profile",
    "frontier": "Result against cost",
}
DEFAULT_COSTS = ("inner_gradients", "seconds")
_FOLDERS = re.compile(r"\S*/(?=[0-9a-f]{2}/[0-9a-f]{64}\b)")
"""Above the folder of a cell."""
Pairs = tuple[str, list[tuple[str, str]]]
"""A title and what is listed under it: names and values."""


def report(
    results: Results,
    store: Records,
    path: str | Path,
    *,
    costs: Sequence[str] | None = None,
    known: Figures | None = None,
) -> Path:
    """Write the report to ``path`` (a file, or a folder for ``report.html``); returns the file.

    ``costs`` are the cost axes to plot, None: the suite's own, or ``DEFAULT_COSTS``; those that no
    curve has are left out. ``known``: figures of these results, where some have
    been made.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reason may quote a file name that is not valid text.
    text = render(results, store, costs=costs, known=known)
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def render(
    results: Results,
    store: Records,
    *,
    costs: Sequence[str] | None = None,
    known: Figures | None = None,
) -> str:
    """The report as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from metabench.reports.figures.plots import Figures

    figures = Figures(results, store) if known is None else known
    curves, unread = figures.curves, figures.unread
    places = {at: f"at-{n}" for n, at in enumerate(results.table_cells)}

    def link(place: tuple[str, str]) -> str:
        return f"#{places[place]}"

    environment = Environment(
        loader=PackageLoader("metabench.reports.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda x: printable(x) if type(x) is str else x,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = {column.id: column.label or column.id for column in results.columns}
    holes = [
        (f"{results.row_label(row)}, {names[column]}, seed {run.cell.seed}", run)
        for (row, column), table_cell in results.table_cells.items()
        for run in table_cell.runs
        if run.state not in {"done", *NEVER_RUN}
    ]
    failed = ("failed", "diverged", "timeout")
    table_cells = [
        _crossing(results, table_cell, places[at], curves)
        for at, table_cell in results.table_cells.items()
    ]
    pictures, unseen = _pictures(results, store)
    # Rows with equal settings share their cells: the first place keeps the plain id.
    seen: set[str] = set()
    for table_cell in table_cells:
        for run in table_cell["runs"]:
            if run["id"] in seen:
                run["id"] += f"-{table_cell['id']}"
            seen.add(run["id"])
    environment.filters["private"] = without_paths
    template = environment.get_template("report.html.j2")
    return template.render(
        results=results,
        suite=results.suite,
        states=results.states,
        failures=[(name, run) for name, run in holes if run.state in failed],
        waiting=[(name, run) for name, run in holes if run.state not in failed],
        bad_files=[_FOLDERS.sub("", bad) for bad in (*results.bad_files, *unread, *unseen)],
        main=Markup("".join(renderers.html(grid, link) for grid in grids(results))),
        costs=Markup(renderers.html(cost_grid(results), link)),
        plots=[(title, name, Markup(svg)) for title, name, svg in _plots(figures, costs)],
        ranks=Markup("".join(renderers.html(grid) for grid in [ranks_grid(results)] if grid)),
        gallery=pictures,
        table_cells=table_cells,
        anchor=anchor,
    )


def _pictures(results: Results, store: Records) -> tuple[list[dict[str, Any]], list[str]]:
    """For the first run of each table cell that has pictures, what it is and the pictures by name
    as data addresses; and what could not be read, in words."""
    out, problems = [], []
    for (row, column), table_cell in results.table_cells.items():
        record = next((run.record for run in table_cell.runs if run.record), None)
        try:
            found = store.pictures(record) if record else {}
        except StoreError as error:
            problems.append(str(error))
            continue
        if record and found:
            label = next(c.label or c.id for c in results.columns if c.id == column)
            title = f"{results.row_label(row)}, {label}, seed {record.cell.seed}"
            shown = [(name, _png(picture)) for name, picture in found.items()]
            out.append({"title": title, "pictures": shown})
    return out, problems


def _png(picture: np.ndarray[Any, Any]) -> str:
    """A grey picture, uint8 [h, w], as the address of an image in the page."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def anchor(run: Planned) -> str:
    """The id of a cell's section."""
    return f"record-{run.cell.key[:16]}"


def _plots(figures: Figures, costs: Sequence[str] | None) -> list[tuple[str, str, str]]:
    """(title, name, SVG) of every plot; titles are empty after the first of a kind."""
    from metabench.reports.figures.cost_frontier import costs_known
    from metabench.reports.figures.plots import costs_of, kinds_of

    results = figures.results
    costs = costs or results.suite.costs or DEFAULT_COSTS
    there = {"cost": costs_of(figures.curves), "frontier": costs_known(results)}
    out = []
    for kind in kinds_of(results.suite):
        chosen = [c for c in costs if c in there[kind]] if kind in there else [""]
        title = TITLES[kind]
        for cost in chosen:
            try:
                drawn = figures.of([kind], cost)
            except NotDrawn:
                continue
            for name, figure in drawn.items():
                out.append((title, name, svg(figure, name)))
                title = ""
    return out


def svg(figure: Figure, name: str) -> str:
    """A figure as an ``<svg>`` element whose ids are its own."""
    from metabench.reports.figures.style import styled

    file = io.StringIO()
    with styled():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several figures in one page: ids and what refers to them get the figure's name.
    own = re.sub(r"[^A-Za-z0-9]", "-", name)
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{own}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{own}" ', 1)


def _crossing(
    results: Results, table_cell: TableCell, place: str, curves: dict[str, Curve]
) -> dict[str, Any]:
    column = next(c for c in results.columns if c.id == table_cell.column)
    row = next(r for r in results.suite.rows if r.id == table_cell.row)
    return {
        "id": place,
        "title": f"{results.row_label(table_cell.row)}, {column.label or column.id}",
        "reference": row.reference,
        "states": ", ".join(f"{n} {state}" for state, n in table_cell.states.items()),
        "why": "; ".join(dict.fromkeys(r.reason for r in table_cell.runs if r.state in NEVER_RUN)),
        "runs": [
            _run(results, run, curves.get(run.cell.key, {}))
            for run in table_cell.runs
            if run.state not in NEVER_RUN
        ],
    }


def _run(results: Results, run: Planned, curve: Curve) -> dict[str, Any]:
    record, cell = run.record and private(run.record), run.cell
    evaluation, metric = results.metric
    found = record.metrics.get(evaluation, {}).get(metric) if record else None
    return {
        "id": anchor(run),
        "key": cell.key,
        "seed": cell.seed,
        "state": run.state,
        "reason": without_paths(run.why),
        "value": _estimate(results, metric, found) if found else "",
        "traceback": record.traceback if record else "",
        "groups": _groups(results, record) if record else _settings(cell),
        "json": json.dumps(
            record.as_dict() if record else asdict(cell), indent=1, ensure_ascii=False
        ),
        "curve_json": json.dumps(curve) if record and curve else "",
        "thumbnail": _thumbnail(curve, f"valid/{metric}") if record else "",
    }


def _settings(cell: Cell) -> list[Pairs]:
    return [
        (f"task {cell.task}", _pairs(cell.task_settings)),
        (f"method {cell.method}", _pairs(cell.method_settings)),
        (f"solver {cell.solver}", _pairs(cell.solver_settings)),
        ("budget", _pairs(cell.budget)),
    ]


def _groups(results: Results, record: Record) -> list[Pairs]:
    """What the report lists of a record, in titled groups; empty ones are left out."""
    names = [n for n in (*COSTS, *sorted(record.cost)) if n in record.cost]
    facts = {k: v for k, v in record.environment.items() if not isinstance(v, Mapping)}
    parts = {k: v for k, v in record.environment.items() if isinstance(v, Mapping)}
    git = parts.pop("git", {})
    measured = [
        (f"{split}/{name}", _estimate(results, name, e))
        for split, metrics in record.metrics.items()
        for name, e in metrics.items()
    ]
    groups = [
        ("measured (± 95 % interval over episodes)", measured),
        ("cost", [(COSTS.get(n, n), human(n, record.cost[n])) for n in dict.fromkeys(names)]),
        ("run", _course(record)),
        *_settings(record.cell),
        ("seeds", _pairs(record.seeds)),
        ("lam", _pairs({k: v for k, v in record.lam.items() if k in ("numbers", "sha256")})),
        ("git", _pairs(git)),
        *[(name, _pairs(value)) for name, value in parts.items()],
        ("environment", _pairs(facts)),
    ]
    return [(name, pairs) for name, pairs in groups if pairs]


def _course(record: Record) -> list[tuple[str, str]]:
    """How the run went."""
    facts: list[tuple[str, Any]] = [
        ("status", record.status),
        ("outer steps", record.steps),
        ("tested step", record.selected_step),
        ("attempts", record.attempts),
        ("started", record.started),
        ("ended", record.ended),
        *_pairs(record.notes),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in values.items()
    ]


def _estimate(results: Results, metric: str, e: Estimate) -> str:
    percent = results.suite.percent and metric in (results.suite.metric, results.suite.floor)
    scale, least = (100.0, 1) if percent else (1.0, None)
    text = with_pm(e.mean, e.ci95, scale, least) + (" %" if percent else "")
    return f"{text} (n = {counted(e.n, 'episode')})"


def _thumbnail(curve: Curve, name: str) -> dict[str, str] | str:
    """A small line of the validation metric: SVG points in a box of 200 by 48, and its ends."""
    rows = [
        (s, v)
        for s, v in zip(curve.get("step", []), curve.get(name, []), strict=False)
        if s is not None and v is not None
    ]
    if len(rows) < 2:
        return ""
    steps, values = [s for s, _ in rows], [v for _, v in rows]
    across, high = (steps[-1] - steps[0]) or 1.0, (max(values) - min(values)) or 1.0
    points = " ".join(
        f"{4 + 192 * (s - steps[0]) / across:.1f},{44 - 40 * (v - min(values)) / high:.1f}"
        for s, v in rows
    )
    said = f"{name}: {values[0]:.4g} at step {steps[0]:,g} to {values[-1]:.4g} at {steps[-1]:,g}"
    return {"points": points, "said": said}
