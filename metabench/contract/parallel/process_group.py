"""Several processes at one cell: each computes a share of the episodes, and all know all results.

Every rank runs the same outer loop on the same state, and everything that is not a pure function of
the cell (clocks, whether to stop, what a checkpoint holds) is rank 0's word. So nothing is summed
across ranks but counts, and the arithmetic is that of one process, to the last bit.

All talk is one operation, :meth:`ProcessGroup.exchange`: a message of each rank to all. An
exception is a message too, and is raised everywhere; so ranks cannot wait for each other in
different places.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from metabench.core.errors import RankLost
from metabench.core.text import type_of

T = TypeVar("T")


class ProcessGroup:
    """This process among the ``world`` processes of a cell; by default it is alone.

    ``device`` is where tensors go that were on another rank's device. ``fate`` says what has become
    of the others when they cannot be reached.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
        fate: Callable[[], str] = lambda: "",
    ) -> None:
        self.rank, self.world = rank, world
        self.device = device or torch.device("cpu")
        self._fate = fate
        self._sharing = False
        self._heard: Exception | None = None

    def exchange(self, said: Any) -> list[Any]:
        """What every rank has said, in their order. Tensors arrive without a graph, in their own
        memory and with the strides that they had.

        Raises what a rank has raised (:meth:`together`, :meth:`share`), and RankLost.
        """
        if self.world == 1:
            return [said]
        import torch.distributed as dist

        heard: list[Any] = [None] * self.world
        mine = _packed(said, self.rank)
        try:
            dist.all_gather_object(heard, mine)
        except (RuntimeError, ValueError) as error:  # ValueError: the group is gone
            said_so = str(error).strip().splitlines() or [type(error).__name__]
            raise RankLost(self._fate() or f"another rank is out of reach: {said_so[0]}") from None
        found = [_unpacked(data, self.device) for data in heard]
        raised = [(x.place, rank, x) for rank, x in enumerate(found) if isinstance(x, _Raised)]
        if raised:
            _, rank, first = min(raised, key=lambda item: item[:2])
            own = rank == self.rank and isinstance(said, _Raised)
            self._heard = said.error if own else first.rebuilt(rank)
            raise self._heard
        return found

    def agree(self, value: T) -> T:
        """The ``value`` of rank 0."""
        first: T = self.exchange(value if self.rank == 0 else None)[0]
        return value if self.rank == 0 else first

    def together(self, f: Callable[[], T]) -> T:
        """f(), done by every rank; what it raises on one of them is raised on all."""
        if self.world == 1:
            return f()
        try:
            value = f()
        except RankLost:
            raise
        except Exception as error:
            if error is not self._heard:  # else everybody has had it
                self.exchange(_Raised(error, 0))
            raise
        self.exchange(None)
        return value

    def divides(self, items: Sequence[Any]) -> bool:
        """Whether items are shared out: there are several, and they are no part of a share."""
        return self.world > 1 and len(items) > 1 and not self._sharing

    def share(
        self,
        work: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]],
        f: Callable[[Any], Any],
        items: Sequence[Any],
        also: Callable[[], Any],
    ) -> tuple[list[Any], list[Any]]:
        """f of every item in order, and what ``also`` says on each rank after its part.

        Rank r does the items r, r + world, ... by ``work(f, them)``. Of several that raise, the
        first in the order of items is raised, as in one process.
        """
        mine = items[self.rank :: self.world]
        place = {id(item): self.rank + i * self.world for i, item in enumerate(mine)}
        failed: list[tuple[Exception, int]] = []

        def noted(item: Any) -> Any:
            try:
                return f(item)
            except Exception as error:
                failed.append((error, place.get(id(item), self.rank)))
                raise

        said: Any
        self._sharing = True
        try:
            said = work(noted, mine), also()
        except Exception as error:
            at = next((at for e, at in failed if e is error), self.rank)
            said = _Raised(error, at)
        finally:
            self._sharing = False
        found = self.exchange(said)
        results = [found[i % self.world][0][i // self.world] for i in range(len(items))]
        return results, [more for _, more in found]


@contextlib.contextmanager
def joined(
    store: Any, rank: int, world: int, seconds: float, leave: Callable[[], object]
) -> Iterator[None]:
    """Inside, this process is one of a torch.distributed group that meets in ``store``.

    Gloo, on a GPU too: what is exchanged is small and comes from memory, and gloo notices at once
    when a process at the other end dies. ``seconds`` is how long ranks wait for each other.
    ``leave`` is called before the group is left at an end that all ranks have come to: rank 0 must
    be the first, because to gloo a connection that closes behind the last message is a failure, of
    that message too where it has not been taken yet.
    """
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
        )
    except RuntimeError as error:
        raise RankLost(f"the ranks cannot meet: {str(error).splitlines()[0]}") from None
    try:
        yield
        leave()
    except RankLost:
        raise
    except Exception:  # that all have had
        leave()
        raise
    finally:
        dist.destroy_process_group()


class _Elsewhere(Exception):
    """The traceback of another rank."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class _Raised:
    """An exception on its way to the other ranks, in parts that need no constructor."""

    error: Any
    """Here the exception itself; on its way its class."""
    place: int
    args: tuple[Any, ...] = ()
    made_by: tuple[Any, ...] = ()
    """What its class makes it from; of an OSError more than ``args``."""
    state: Any = None
    trace: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        trace = "".join(traceback.format_exception(error))
        parts: tuple[Any, ...] = (
            type(error), self.place, error.args, _arguments(error), vars(error), trace,
        )  # fmt: skip
        try:
            _Raised(*pickle.loads(pickle.dumps(parts))).rebuilt(0)
        except Exception:  # a class or an argument that only its own process knows
            text = f"{type(error).__name__}: {error}"
            parts = (RuntimeError, self.place, (text,), (text,), {}, trace)
        return _Raised, parts

    def rebuilt(self, rank: int) -> Exception:
        """The exception, as it was on ``rank``."""
        error: Exception = self.error.__new__(self.error, *self.made_by)
        error.args = self.args
        vars(error).update(self.state)
        error.__cause__ = _Elsewhere(f"on rank {rank}:\n{self.trace}")
        return error


def _arguments(error: Exception) -> tuple[Any, ...]:
    reduced: Any = error.__reduce__()
    return tuple(reduced[1])


class _Packer(pickle.Pickler):
    """Pickles tensors by their values, wherever they are."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        if type(obj) not in (Tensor, torch.nn.Parameter):
            raise TypeError(f"{type_of(obj)} cannot be a result that ranks share")
        dense = obj.detach().cpu().clone()  # of a view only what it shows
        flat = dense.as_strided((dense.numel(),), (1,))
        data = flat.view(torch.uint8).numpy().tobytes()
        return data, obj.dtype, tuple(obj.shape), dense.stride(), obj.device.type != "cpu"


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: bytes, device: torch.device) -> None:
        super().__init__(io.BytesIO(data))
        self.device = device

    def persistent_load(self, pid: Any) -> Tensor:
        data, dtype, shape, stride, moved = pid
        out = torch.empty_strided(shape, stride, dtype=dtype)
        if data:
            flat = out.as_strided((out.numel(),), (1,))
            flat.copy_(torch.frombuffer(bytearray(data), dtype=dtype))
        return out.to(self.device) if moved else out


def _packed(said: Any, rank: int) -> bytes:
    """As bytes; what cannot be pickled becomes the exception that says so."""
    try:
        return _pickled(said)
    except Exception as error:
        return _pickled(_Raised(error, rank))


def _pickled(said: Any) -> bytes:
    buffer = io.BytesIO()
    _Packer(buffer, pickle.HIGHEST_PROTOCOL).dump(said)
    return buffer.getvalue()


def _unpacked(data: bytes, device: torch.device) -> Any:
    return _Unpacker(data, device).load()
