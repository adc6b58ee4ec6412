"""Proteins and what they interact with, as graphs: the labelled biology data of Hu et al.

Hu, Liu, Gomes, Zitnik, Liang, Pande, Leskovec: Strategies for Pre-training Graph Neural Networks,
ICLR 2020; layout and meaning by its code (snap-stanford/pretrain-gnns, bio/loader.py and
bio/splitters.py). The file is a pickle of torch_geometric's ``Data`` and the places where graphs
begin. It is read without that package: of its classes only what they hold is taken, and torch
refuses to unpickle anything else. Files that the package has written since read as well.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metabench.core.errors import MetabenchError
from metabench.core.text import type_of
from metabench.datasets import locate

PRETRAIN, DOWNSTREAM = 5000, 40
"""Functions (terms of the Gene Ontology) to pre-train on, and to fine-tune on."""

SPECIES = (3702, 6239, 511145, 7227, 10090, 4932, 7955)
"""Taxa to train on: thale cress, a roundworm, E. coli, fruit fly, mouse, yeast, zebrafish."""
TEST_SPECIES = 9606
"""Human."""

KINDS = 7
"""Kinds of evidence for an interaction; an edge has some of them."""

FILE = "supervised/processed/geometric_data_processed.pt"


class Cut(NamedTuple):
    """Some graphs side by side, their nodes numbered through."""

    graph: Tensor
    """int64 [nodes]: which graph a node is of."""
    source: Tensor
    target: Tensor
    """int64 [edges]: from which node to which."""
    incoming: Tensor
    """[nodes, kinds + 1]: edges of each kind that come to a node, and edges in all."""
    centre: Tensor
    """int64 [graphs]: a node of each."""
    size: Tensor
    """[graphs]: nodes of each."""


@dataclass(frozen=True)
class Graphs:
    """n graphs. ``first_node`` and ``first_edge`` int64 [n + 1]: where each begins; ``ends`` int32
    [2, edges]: numbers of the nodes in their graph, from and to; ``incoming`` int32 [nodes, 8]:
    edges of each kind that come to a node, and all; ``centre`` int64 [n]: the protein in question;
    ``species`` int64 [n]; its functions ``pretrain`` bool [n, 5000], ``downstream`` bool [n, 40].
    """

    first_node: Tensor
    first_edge: Tensor
    ends: Tensor
    incoming: Tensor
    centre: Tensor
    species: Tensor
    pretrain: Tensor
    downstream: Tensor

    def nodes(self, chosen: Tensor) -> int:
        """How many nodes these graphs int64 [k] have together."""
        return int((self.first_node[chosen + 1] - self.first_node[chosen]).sum())

    def cut(self, chosen: Tensor, device: torch.device, dtype: torch.dtype) -> Cut:
        """These graphs int64 [k] side by side."""
        size, rows = spans(self.first_node, chosen)
        count, edges = spans(self.first_edge, chosen)
        before = size.cumsum(0) - size
        ends = self.ends[:, edges].long() + before.repeat_interleave(count)
        return Cut(
            torch.arange(len(chosen)).repeat_interleave(size).to(device),
            ends[0].to(device),
            ends[1].to(device),
            self.incoming[rows].to(device, dtype),
            (self.centre[chosen] + before).to(device),
            size.to(device, dtype),
        )


def spans(first: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths int64 [k] of the spans ``chosen`` of those that begin at ``first``, and the places in
    all of them, one span after the other."""
    length = first[chosen + 1] - first[chosen]
    total = int(length.sum())
    gap = first[chosen] - (length.cumsum(0) - length)
    return length, torch.arange(total) + gap.repeat_interleave(length)


def load() -> Graphs:
    """All labelled graphs, in the order of the file.

    Raises DataMissing with the command that repairs it, MetabenchError where the file is damaged
    or another.
    """
    return _read(locate.locate("ppi_bio").path.resolve() / FILE)


class Held:
    """What an instance of a class of torch_geometric holds, in ``__dict__``."""


_CLASSES = ("data.Data", "data.DataTensorAttr", "data.DataEdgeAttr", "storage.GlobalStorage")
_SAFE = [(Held, f"torch_geometric.data.{name}") for name in _CLASSES]


@lru_cache(maxsize=1)
def _read(path: Path) -> Graphs:
    try:
        with torch.serialization.safe_globals([*_SAFE, defaultdict, dict]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.PickleError) as error:
        raise MetabenchError(f"{path} cannot be read ({error})") from error
    if not isinstance(held, tuple) or len(held) < 2 or not isinstance(held[1], dict):
        raise MetabenchError(f"{path} holds {type_of(held)}, not data and slices")
    return _graphs(path, contents(held[0]), held[1])


def contents(held: Any) -> dict[str, Any]:
    """Names and tensors of a ``Data`` of torch_geometric 1 or 2, or of its dict."""
    if isinstance(held, dict):
        return held
    inside = vars(held)
    store = inside.get("_store")
    found: dict[str, Any] = inside if store is None else vars(store)["_mapping"]
    return found


def _graphs(path: Path, found: dict[str, Any], slices: dict[str, Any]) -> Graphs:
    if lacks := {"x", "edge_index"} - slices.keys():
        raise MetabenchError(f"{path} does not say where the graphs' {min(lacks)} begins")
    n, edges = len(slices["x"]) - 1, int(slices["edge_index"][-1])
    for name, shape in {
        "edge_index": (2, edges),
        "edge_attr": (edges, KINDS + 2),
        "species_id": (n,),
        "center_node_idx": (n,),
        "go_target_pretrain": (n * PRETRAIN,),
        "go_target_downstream": (n * DOWNSTREAM,),
    }.items():
        value = found.get(name)
        if not isinstance(value, Tensor):
            raise MetabenchError(f"{path} has no tensor {name}: it is not the labelled part")
        if value.shape != shape:
            raise MetabenchError(
                f"{path}: {name} is {list(value.shape)}, not {list(shape)}: {n} graphs, {edges} "
                f"edges of {KINDS} + 2 kinds, {PRETRAIN} and {DOWNSTREAM} functions"
            )
    if strange := set(found["species_id"].tolist()) - {*SPECIES, TEST_SPECIES}:
        raise MetabenchError(f"{path}: species {sorted(strange)[0]} is none of the eight")
    first_node, first_edge = slices["x"].long(), slices["edge_index"].long()
    ends, kinds = found["edge_index"].int(), found["edge_attr"]
    size, count = first_node.diff(), first_edge.diff()
    if bool((ends < 0).any() | (ends >= size.repeat_interleave(count)).any()):
        raise MetabenchError(f"{path}: an edge ends outside of its graph")
    if bool(kinds[:, KINDS:].any()):
        raise MetabenchError(f"{path}: edges to oneself or masked, where there should be none")
    target = ends[1].long() + first_node[:-1].repeat_interleave(count)
    with_all = torch.cat([kinds[:, :KINDS].int(), torch.ones(len(kinds), 1, dtype=torch.int32)], 1)
    incoming = torch.zeros(int(first_node[-1]), KINDS + 1, dtype=torch.int32)
    return Graphs(
        first_node,
        first_edge,
        ends,
        incoming.index_add_(0, target, with_all),
        found["center_node_idx"].long(),
        found["species_id"].long(),
        found["go_target_pretrain"].view(n, PRETRAIN) > 0,
        found["go_target_downstream"].view(n, DOWNSTREAM) > 0,
    )
