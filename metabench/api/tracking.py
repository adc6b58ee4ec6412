"""What ``--log`` asks for: trackers that are told of the cells of a launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from metabench.core.cell import place_names
from metabench.core.settings import several

if TYPE_CHECKING:
    from metabench.run.events import Listener
    from metabench.store.store import Store
    from metabench.suites.planning import Planned


def check_log(log: Sequence[str]) -> list[str]:
    """Each tracker that ``log`` asks for, and where its runs can be seen, in words.

    Raises UnknownName, SettingError, and MetabenchError for one that cannot be used here.
    """
    if not log:
        return []
    from metabench.run.tracking import opened

    found = opened(several("log", log))
    return [f"{text.partition('=')[0]}: {t.where}" for text, t in zip(log, found, strict=True)]


@contextlib.contextmanager
def tracked(
    log: Sequence[str],
    planned: Sequence[Planned],
    store: Store,
    listener: Listener | None,
    group: str,
) -> Iterator[Listener | None]:
    """Inside, the listener that a launch of these cells is given; errors as of :func:`check_log`,
    before anything runs."""
    if not log:
        yield listener
        return
    from metabench.run.events import ignore
    from metabench.run.tracking import Tracking, opened

    names = place_names((p.row, p.column, p.cell) for p in planned)
    with Tracking(
        opened(several("log", log)), listener or ignore, names=names, group=group, store=store.root
    ) as tracking:
        yield tracking
