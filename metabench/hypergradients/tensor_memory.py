"""The most bytes of tensors that a computation held at once, counted tensor by tensor.

Unlike a process's peak, the same on every machine with the same kind of device, and as fine for a
few kilobytes as for gigabytes. What an operation allocates and frees within itself is not seen, nor
what was there before: buffers that a thread keeps count in a new thread alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Footprint(TorchDispatchMode):
    """Context: ``peak`` is the most bytes alive at once of storages made inside, by this thread
    and by the backward passes that it starts on a CPU; ``now`` those alive at present."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation; count what it has made."""
        kwargs = kwargs or {}
        given = {id(x.untyped_storage()) for x in tensors((args, kwargs.values()))}
        out = func(*args, **kwargs)
        for x in tensors((out,)):
            storage = x.untyped_storage()
            if id(storage) not in given:  # else a view, or changed in place
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those in nested lists and tuples: all that an operation takes and gives."""
    for x in values:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, list | tuple | ValuesView):
            yield from tensors(x)
