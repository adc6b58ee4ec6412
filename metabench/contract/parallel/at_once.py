"""Episodes worked through at once: stacked, mapped by vmap, and replayed as a captured CUDA graph.

A looped step of a small network spends its time on starting operations. vmap starts each once for
all episodes; a captured graph starts all of them with one call. What is captured is the very
function that vmap runs otherwise, on buffers that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metabench.contract import autodiff
from metabench.contract.problem import Batch, Episode, Params
from metabench.core.costs import Meter

WARM_UPS = 3
"""Runs on a side stream before a capture, in which libraries choose and allocate."""

Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], object]]]
"""From a function of no arguments to its outputs, and to what computes them again in the same
place."""


@dataclass(frozen=True)
class Stack:
    """Episodes side by side: every tensor has one dimension more, in front.

    ``inner``: their batches by inner step, one where all steps have the same; ``noise``: a noisy
    solver's draws by inner step, else empty.
    """

    inner: list[Batch]
    outer: Batch
    noise: list[Params]
    fixed: bool

    @classmethod
    def of(cls, episodes: Sequence[Episode], steps: int, noise: list[Params]) -> Stack:
        """``steps``: how many inner batches of each may be asked for."""
        fixed = not any(callable(e.inner) for e in episodes)
        inner = [beside([e.batch(t) for e in episodes]) for t in range(1 if fixed else steps)]
        return cls(inner, beside([e.outer for e in episodes]), noise, fixed)

    @property
    def parts(self) -> tuple[list[Batch], Batch, list[Params]]:
        """All tensors, nested."""
        return self.inner, self.outer, self.noise

    def with_parts(self, parts: Any) -> Stack:
        """The same with other tensors."""
        inner, outer, noise = parts
        return Stack(inner, outer, noise, self.fixed)

    @property
    def number(self) -> int:
        """Of episodes."""
        return len(next(iter(self.outer.values())))

    def cut(self, size: int) -> Iterator[Stack]:
        """The same episodes, at most ``size`` of them in each."""
        for start in range(0, self.number, size):
            some = tree_map(lambda x, a=start, b=start + size: x[a:b], self.parts)
            yield self.with_parts(some)

    def mapped(self, f: Callable[[Episode], Any], meter: Meter) -> Any:
        """f of all, with torch.func derivatives: its results, stacked."""

        def one(inner: list[Batch], outer: Batch, noise: list[Params]) -> Any:
            batch = inner[0] if self.fixed else inner.__getitem__
            return f(Episode(batch, outer, -1, noise or None))

        with autodiff.functional(), meter.batch_of(self.number):
            return torch.func.vmap(one)(*self.parts)

    def each(self, f: Callable[[Episode], Any], meter: Meter) -> list[Any]:
        """:meth:`mapped`, the results one by one."""
        out = self.mapped(f, meter)
        return [tree_map(lambda x, i=i: x[i], out) for i in range(self.number)]


def beside(batches: Sequence[Batch]) -> Batch:
    """Batches of the same names and shapes, stacked."""
    return {k: torch.stack([b[k] for b in batches]) for k in batches[0]}


@dataclass(frozen=True)
class _Captured:
    inputs: list[Tensor]
    outputs: Any
    again: Callable[[], object]
    also: Any


class Graphs:
    """Functions of tensors, each captured when it is first called with tensors of such shapes.

    A function must do the same operations whenever it is called, and read no number on the host:
    only its tensors may differ from call to call. ``record`` is :func:`cuda_graph`, or
    :func:`rerun` where there is no GPU.
    """

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._known: dict[Hashable, _Captured] = {}

    def __call__(
        self, name: Hashable, f: Callable[[Any], Any], inputs: Any, also: Callable[[], Any]
    ) -> tuple[Any, Any]:
        """f of ``inputs`` (nested dicts, lists and tuples of tensors), and what ``also`` said after
        f had been captured under this name: what else it had done.

        The outputs are overwritten by the next call under the same name.
        """
        given = [x.detach() for x in autodiff.tensors(inputs)]
        key = (name, *((x.shape, x.stride(), x.dtype, x.device) for x in given))
        known = self._known.get(key)
        if known is None:
            held = [torch.empty_like(x).copy_(x) for x in given]
            outputs, again = self._record(lambda: f(autodiff.with_tensors(inputs, held)))
            known = self._known[key] = _Captured(held, outputs, again, also())
        else:
            torch._foreach_copy_(known.inputs, given)
        known.again()
        return known.outputs, known.also


def cuda_graph(f: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
    """Capture f: nothing is computed until the graph is replayed.

    The default generator of the device is registered with the graph by torch; f draws nothing (vmap
    refuses to), what is random is among its inputs. Raises what f raises. A process in which a
    capture has failed may be unable to go on: torch's generators can be left as if inside of it.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            f()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    cause: Exception | None = None
    try:
        with torch.cuda.graph(graph):
            try:
                outputs = f()
            except Exception as error:
                cause = error
                raise
    except Exception:
        # Ending a capture that is broken raises too, and says no more than that it is broken.
        if cause is not None:
            raise cause from None
        raise
    return outputs, graph.replay


def rerun(f: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
    """The same without a graph: f runs anew each time, into the outputs of its first run."""
    outputs = tree_map(torch.clone, f())

    def again() -> None:
        torch._foreach_copy_(autodiff.tensors(outputs), autodiff.tensors(f()))

    return outputs, again
