"""Episodes worked through one by one, on Python threads where there are several workers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any

import torch

from metabench.core.costs import Meter

_POOL = "episode-worker"


def spread(
    f: Callable[[Any], Any], items: Sequence[Any], workers: int, meter: Meter
) -> Iterator[Any]:
    """f of every item, in order, and each kept no longer than until it is taken; on ``workers``
    threads, each of which counts, or does not, as the caller's does in ``meter``."""
    inside = threading.current_thread().name.startswith(_POOL)  # its pool would wait for itself
    if workers == 1 or len(items) == 1 or inside:
        yield from map(f, items)
        return
    muted = meter.is_muted

    def counted(item: Any) -> Any:
        meter.mute(muted)
        return f(item)

    pool = _pool(workers, torch.get_num_threads())
    futures = deque([pool.submit(counted, item) for item in items])
    try:
        while futures:
            yield futures.popleft().result()
    finally:  # after a failure nothing goes on behind the caller's back
        for future in futures:
            future.cancel()
        wait(futures)


def joined(join: Callable[[Any, Any], Any], found: Iterator[Any]) -> Any:
    """``functools.reduce``, which keeps the last item while the next one is made."""
    whole = next(found)
    for more in found:
        whole = join(whole, more)
        del more
    return whole


@lru_cache(maxsize=4)
def _pool(workers: int, intra_op: int) -> ThreadPoolExecutor:
    """Threads that stay, with their buffers. Each must be told how many intra-op threads it has:
    the libraries below keep that by thread, and a new one would take every core."""
    return ThreadPoolExecutor(workers, _POOL, torch.set_num_threads, (intra_op,))
