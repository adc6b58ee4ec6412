"""The verb ``compare``: two suites, stores, files of records or runs, side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metabench.api.arguments import DEFAULT_BUDGET, Settings, load, once, open_store
from metabench.core.catalogue import suite_names
from metabench.core.errors import MetabenchError, SettingError, UnknownName
from metabench.store.files import ending
from metabench.store.published import RECORDS, Published
from metabench.store.store import Store
from metabench.suites import planning
from metabench.suites.arena import scores as arena_scores
from metabench.suites.suite import Suite

if TYPE_CHECKING:
    from metabench.analysis.side_by_side import Run, Side, SideBySide, View

Source = str | Path | Suite | Store
KEY = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, repr=False)
class Compared:
    """Two sets of runs side by side: text where it is printed, HTML in a notebook.

    ``found``: its lines, what one side alone has, files that cannot be trusted, and in what the two
    were made differently.
    """

    found: SideBySide

    @property
    def identical(self) -> bool:
        """Whether both have the same cells, with all bits of their results equal, and no file that
        cannot be trusted."""
        return self.found.identical

    def text(self, format: str = "text", width: int | None = None) -> str:
        """As "text" (of at most ``width`` characters), "markdown", "csv" or "html". Raises
        UnknownName for another format."""
        from metabench.reports.tables import side_by_side

        return side_by_side.draw(self.found, format, width)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.text("html")


def compare(
    a: Source,
    b: Source,
    *,
    budget: str | None = None,
    set: Settings = (),
    seeds: Sequence[int] | None = None,
    store: str | Path | Store | None = None,
    metric: str | None = None,
) -> Compared:
    """Two sides, cell by cell: mean difference over the seeds that both have, with its paired
    t-interval, Holm's p and the detectable difference; what one alone has; versions, machines and
    settings that differ.

    A side is a suite ("omniglot", or "omniglot@smoke" for another budget than ``budget``; its
    records are looked up in ``store``), the folder of a store, a file of published records or the
    folder that holds it, or the beginning of the key of a run in ``store``. ``budget`` (None:
    "laptop"), ``set`` and ``seeds`` are for suites. ``metric``: "test/loss" instead of the suite's
    or the task's own. Damaged records are left out and told.

    >>> from metabench import api
    >>> suite = api.suite_of_pairs(tasks=["quadratic"], methods=["bilevel"])
    >>> api.run(suite, budget="smoke", seeds=[0, 1]).count("done")
    2
    >>> api.compare(suite, suite, budget="smoke", seeds=[0, 1]).identical
    True

    Raises UnknownName for what is none of these, SettingError for ``budget``, ``set`` or ``seeds``
    where no side is a suite that has a use for it, MetabenchError where a side has no finished run,
    or none has a partner.
    """
    from metabench.analysis.side_by_side import side_by_side

    _check_used(a, b, {"budget": budget is not None, "set": bool(set), "seeds": seeds is not None})
    opened, set, seeds = open_store(store), once(set), once(seeds)
    one, suite = _side(a, budget or DEFAULT_BUDGET, set, seeds, opened)
    two, other = _side(b, budget or DEFAULT_BUDGET, set, seeds, opened)
    for side, own in ((one, suite), (two, other)):
        if not side.done:
            there = "there" if own is None else f"in {opened.place}"
            end = f" that can be trusted{ending(side.bad_files)}" if side.bad_files else ""
            raise MetabenchError(f"{side.name}: no finished run {there}{end or ': run it first'}")
    found = side_by_side(one, two, _view(suite or other, metric))
    if not found.lines:
        raise MetabenchError(
            f"{found.a} and {found.b} have no cell in common: neither a key, nor a row and column "
            "with a seed, nor a task, method and solver that stand once in each"
            f"{ending((*one.bad_files, *two.bad_files))}"
        )
    return Compared(found)


def _check_used(a: Source, b: Source, given: Mapping[str, bool]) -> None:
    """Raise SettingError for what is given and no side would look at."""
    suites = [side for side in (a, b) if _suite_of(side) is not None]
    own = [str(s) for s in suites if not isinstance(s, Suite) and "@" in str(s)]
    for name in (name for name, is_given in given.items() if is_given):
        if not suites:
            raise SettingError(
                f"{name} is for suites, and neither {_told(a)} nor {_told(b)} is one"
            )
        if name == "budget" and len(own) == len(suites):
            raise SettingError(f"budget has no use beside the one that stands in {own[0]}")


def looks_up(source: Source) -> bool:
    """Whether a side is looked up in the store: a suite, or the key of a run."""
    return _suite_of(source) is not None or not (
        isinstance(source, Store) or Path(str(source)).exists()
    )


def _suite_of(source: Source) -> str | Suite | None:
    """The suite that a side is, or its name or file; None where it is something else."""
    if isinstance(source, Suite | Store):
        return source if isinstance(source, Suite) else None
    text = str(source)
    name = text.rpartition("@")[0] or text
    return name if name in suite_names() or name.endswith(".toml") else None


def _told(source: Source) -> str:
    return str(source.root if isinstance(source, Store) else source)


def _side(
    source: Source, budget: str, set: Settings, seeds: Sequence[int] | None, store: Store
) -> tuple[Side, Suite | None]:
    """The runs of one side, and its suite where it is one."""
    from metabench.analysis.side_by_side import Run, Side

    if isinstance(source, Store):
        return _all_of(source, str(source.root)), None
    if isinstance(source, Suite):
        return _of_suite(source, budget, set, seeds, store), source
    text = str(source)
    name, _, own = text.rpartition("@")
    name, own = (name, own) if name else (text, budget)
    if name in suite_names() or name.endswith(".toml"):
        suite = load(name)
        return _of_suite(suite, own, set, seeds, store), suite
    path = Path(text)
    if path.is_dir():
        for file in (path / RECORDS, path / arena_scores.FILE):
            if file.is_file():
                return _of_file(file, text)
        return _all_of(Store(path), text), None
    if path.is_file():
        return _of_file(path, text)
    if KEY.fullmatch(text):
        known = store.keys()
        keys = [key for key in known if key.startswith(text)]
        if len(keys) != 1:
            raise UnknownName("one run whose key begins with", text, [k[:16] for k in keys])
        record, bad = store.look(keys[0])
        runs = () if record is None else (Run(record, store.curve),)
        return Side(f"run {keys[0][:10]}", runs, tuple(map(str, bad))), None
    hint = f"no folder or file is called so; the keys of runs are those of {store.place}"
    raise UnknownName("suite, store, file of records or key", text, suite_names(), hint)


def _all_of(
    source: Store | Published, name: str, places: Mapping[str, tuple[str, str]] | None = None
) -> Side:
    """Every record, at its place (key to row and column) where it has one."""
    from metabench.analysis.side_by_side import Run, Side

    known = places or {}
    order = {key: number for number, key in enumerate(known)}
    records, bad = source.scan()
    records = sorted(records, key=lambda r: order.get(r.key, len(order)))
    runs = (Run(r, source.curve, *known.get(r.key, ("", ""))) for r in records)
    return Side(name, tuple(runs), tuple(map(str, bad)))


def _of_file(file: Path, name: str) -> tuple[Side, Suite | None]:
    """Published records. In a folder SUITE/BUDGET of a built-in suite they stand where it has
    them, as long as they have the settings that it has now."""
    published = Published(file)
    *_, suite_name, budget = file.absolute().parent.parts
    if suite_name not in suite_names():
        return _all_of(published, name), None
    suite = load(suite_name)
    if budget not in suite.budgets:
        return _all_of(published, name), None
    places: dict[str, tuple[str, str]] = {}
    for item in planning.choose(suite, budget):
        places.setdefault(item.cell.key, (item.row, item.column))
    return _all_of(published, name, places), suite


def _of_suite(
    suite: Suite, budget: str, set: Settings, seeds: Sequence[int] | None, store: Store
) -> Side:
    from metabench.analysis.side_by_side import Run, Side

    cells = planning.choose(suite, budget, set=set, seeds=seeds)
    known = {key: store.look(key) for key in sorted({item.cell.key for item in cells})}
    runs = (
        Run(record, store.curve, item.row, item.column)
        for item in cells
        if item.skip is None and (record := known[item.cell.key][0]) is not None
    )
    bad = tuple(str(b) for _, damaged in known.values() for b in damaged)
    return Side(f"{suite.name} (budget {budget})", tuple(runs), bad)


def _view(suite: Suite | None, metric: str | None) -> Callable[[Run, Run], View]:
    """By which number a pair is compared: the one asked for, the first suite's, or its task's."""
    from metabench.analysis.side_by_side import View
    from metabench.core.registry import tasks

    evaluation, slash, name = (metric or "").partition("/")
    if metric is not None and not (slash and name):
        raise SettingError(f"metric cannot be {metric!r}: write EVALUATION/METRIC, as test/loss")

    def view(a: Run, b: Run) -> View:
        if suite is not None and metric in (None, f"{suite.evaluation}/{suite.metric}"):
            return View(
                suite.evaluation,
                suite.metric,
                suite.goal,
                suite.percent,
                suite.logs,
                suite.resolution,
            )
        task = tasks.get(a.cell.task)
        own, goal = task.metric, task.goal  # type: ignore[attr-defined]
        if metric is None:
            return View("test", own, goal)
        if not any(View(evaluation, name, goal).of(run.record) is not None for run in (a, b)):
            known = {f"{e}/{m}" for e, found in a.record.metrics.items() for m in found}
            raise UnknownName("metric of these runs called", metric, known)
        return View(evaluation, name, goal)

    return view
