"""Commands to type next about a submission: each chooses the same cells from any folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metabench.cluster.profile import PREFIX
from metabench.store.store import Store


@dataclass(frozen=True)
class Words:
    """What was typed to choose the cells of a submission, and how they were submitted."""

    suite: list[str]
    """The suite, or tasks and methods; budget and plug-ins."""
    cells: list[str]
    """What chooses some of its cells, and changes their settings."""
    cluster: list[str]


def words(
    suite: Sequence[str],
    cluster: str | Path,
    set: Iterable[str],
    **cells: Iterable[object] | None,
) -> Words:
    """The words of a submission; ``set`` holds those about the cluster, too."""
    own = [word for word in set if word.startswith(PREFIX)]
    return Words(
        [*suite],
        options(set=[word for word in set if word not in own], **cells),
        ["--cluster", absolute(cluster), *options(set=own)],
    )


def options(**given: Iterable[object] | None) -> list[str]:
    """Each value after its option."""
    return [
        w for name, many in given.items() for one in many or () for w in (f"--{name}", str(one))
    ]


def absolute(name: str | Path) -> str:
    """A name as it is, the path of a file from the root."""
    return str(Path(name).absolute()) if str(name).endswith(".toml") else str(name)


def command(words: Sequence[str], root: Path) -> str:
    """A command about the store at ``root``, as it can be typed here."""
    where = [] if Store().root == root else ["--store", str(root)]
    return shlex.join(["metabench", *words, *where])
