"""What can go wrong, each error naming the thing, the value and the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 20
"""That a message lists beside the near ones; all of 150 would hide these."""


class MetabenchError(Exception):
    """Base of every error that is the user's to repair; shown without a traceback."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are most like another one, at most three, the nearest first; capital
    letters and the sign between words do not count."""
    plain: dict[str, list[str]] = {}
    for each in sorted(known):
        plain.setdefault(_plain(each), []).append(each)
    found = difflib.get_close_matches(_plain(str(name)), plain, n=3, cutoff=0.5)
    return [each for near in found for each in plain[near]][:3]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


class UnknownName(MetabenchError):
    """A name that nothing is registered, declared or known under. Its message lists what is known
    where that is short, or where nothing is near."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = nearest(name, known)
        message = f"no {kind} {name!r}"
        if near:
            message += f"; near: {', '.join(near)}"
        if not near or len(known) <= MOST_NAMES:
            message += f"; known: {', '.join(known) if known else '(none)'}"
        super().__init__(message + (f"; {hint}" if hint else ""))
        self.kind, self.name, self.known, self.near = kind, name, known, near


class SettingError(MetabenchError):
    """A setting with a value that it cannot have."""


class Unpriced(SettingError):
    """A budget of cost has no price for a count: what the run has cost cannot be said, and neither
    nothing nor all that there is would be true."""

    def __init__(self, count: str, who: str = "a run") -> None:
        super().__init__(
            f"budget: {who} uses {count}, which has no price in it; to measure it: metabench "
            "calibrate FILE"
        )
        self.count, self.who = count, who

    def __reduce__(self) -> tuple[type[Unpriced], tuple[str, str]]:
        return type(self), (self.count, self.who)


class SuiteError(MetabenchError):
    """A suite file that cannot be read as one; names the file and the place in it."""


class StoreError(MetabenchError):
    """The store cannot keep or give back what was asked."""


class WrongPath(SettingError, StoreError):
    """A file or a folder that was named, and is not there or is not what was asked for."""


class NothingFound(MetabenchError):
    """A store has nothing of what was to be shown."""


class DataMissing(MetabenchError):
    """A data set that is not on this machine; carries the command that repairs it."""

    def __init__(self, name: str, looked: Iterable[str], repair: str) -> None:
        where = ", ".join(looked)
        super().__init__(f"data set {name!r} not found; looked in {where}; repair: {repair}")
        self.name, self.repair = name, repair


class NotApplicable(MetabenchError):
    """A pair of a task and a method that the theory does not allow, with the reason."""


class NotDrawn(MetabenchError):
    """A figure would show nothing, or more than its numbers can say."""


class Diverged(Exception):
    """A run whose numbers stopped meaning anything; the reason becomes part of its record."""


class Distrusted(Diverged):
    """A hypergradient that the method's own guards warn of: a series that grows, a Hessian that is
    indefinite. Other settings may help; neither task nor method is at fault."""


class BudgetSpent(Exception):
    """An outer step that takes more than is left of the budget; what it has done is dropped."""

    def __init__(self, count: str, most: float) -> None:
        super().__init__(f"more than {most:,} {count.replace('_', ' ')}")
        self.count, self.most = count, most

    def __reduce__(self) -> tuple[type[BudgetSpent], tuple[str, float]]:
        return type(self), (self.count, self.most)


class TimedOut(Exception):
    """A run that used up the time it was given."""


class Stopped(Exception):
    """A run that was asked to stop; its checkpoint says where to go on."""


class RankLost(Exception):
    """Another process of the same cell cannot be reached any more; a checkpoint says where to go
    on."""


class Held(MetabenchError):
    """A cell that another live process is running."""
