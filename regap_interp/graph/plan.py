"""In which passes a graph runs: the one it edits, and those that only answer its questions."""

import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from regap_interp.graph.edits import Edit
from regap_interp.graph.nodes import LAYER_SITES, Constant, Node, Number, Read, walk
from regap_interp.graph.places import Place, place
from regap_interp.graph.values import reads_below

LAST_OF_LAYER = len(LAYER_SITES) - 1
"""Number of resid_post among the sites of a layer."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A pass with edits of its own, run as far as its deepest read."""

    edits: tuple[Edit, ...]
    reads: tuple[Read, ...]
    deepest: Place


@dataclass(frozen=True, eq=False)
class Plan:
    """The passes of one graph on a model of `n_layers` layers."""

    n_layers: int
    edits: tuple[Edit, ...]
    """Of the main pass, of both phases, in the order given."""
    reads: tuple[Read, ...]
    """Of the main pass, of both phases."""
    branches: tuple[Branch, ...]
    """Each after those that decide its edits."""

    @property
    def unknown(self) -> frozenset[Read]:
        """Reads of other passes."""
        return frozenset(read for branch in self.branches for read in branch.reads)

    @property
    def first(self) -> Place:
        """Where passes may begin to differ: the earliest edit of any of them in the prefill."""
        edits = [e for e in self.edits if e.phase != "decode"]
        edits += [edit for branch in self.branches for edit in branch.edits]
        return min((self.place(edit) for edit in edits), default=(self.n_layers - 1, LAST_OF_LAYER))

    @property
    def snapshot(self) -> Place:
        """Whose states passes that begin to differ start from: before any edit there."""
        layer, number = self.first
        return self.first if number == LAST_OF_LAYER or layer < 0 else (layer, 0)

    @property
    def first_layer(self) -> int:
        """The first layer that is run again for another pass."""
        layer, number = self.snapshot
        return layer + 1 if number == LAST_OF_LAYER else max(layer, 0)

    @property
    def decided(self) -> Place:
        """Where everything that other passes tell is known."""
        return max(branch.deepest for branch in self.branches)

    @property
    def decodes(self) -> bool:
        """Whether anything is to be done in steps of decoding."""
        return any(e.phase != "prefill" for e in self.edits) or any(
            r.phase == "decode" for r in self.reads
        )

    def place(self, one: Edit | Read) -> Place:
        """Where an edit is made or a value is read."""
        return place(one.site, one.layer, self.n_layers)

    def foretold(self, edit: Edit) -> bool:
        """Whether an edit of the main pass waits for reads of another pass."""
        return any(not self.unknown.isdisjoint(reads_below(node)) for node in edit.inputs())


def plan(edits: Iterable[Edit], outputs: Mapping[str, Node], n_layers: int) -> Plan:
    """The passes that edits and outputs need."""
    main = tuple(edits)
    reads = [
        node
        for node in walk([*outputs.values(), *(one for edit in main for one in edit.inputs())])
        if isinstance(node, Read)
    ]
    groups: dict[tuple[int, ...], list[Read]] = {}
    for read in reads:
        if read.under is not None:
            groups.setdefault(tuple(map(id, read.under)), []).append(read)
    waits = {
        key: {
            tuple(map(id, earlier.under or ()))
            for node in of[0].inputs()
            for earlier in reads_below(node)
        }
        for key, of in groups.items()
    }
    ordered = [groups[key] for key in graphlib.TopologicalSorter(waits).static_order()]
    return Plan(
        n_layers=n_layers,
        edits=main,
        reads=tuple(read for read in reads if read.under is None),
        branches=tuple(
            Branch(
                edits=of[0].under or (),
                reads=tuple(of),
                deepest=max(place(read.site, read.layer, n_layers) for read in of),
            )
            for of in ordered
        ),
    )


def same_effect(one: Edit, other: Edit) -> bool:
    """Whether two edits of equal strength do the same."""
    fields = ("op", "site", "layer", "at", "head", "keep_norm")
    return one is other or (
        all(getattr(one, name) == getattr(other, name) for name in fields)
        and _same(one.value, other.value)
        and _same(one.to, other.to)
        and _same(one.centre, other.centre)
    )


def _same(one: Node | None, other: Node | None) -> bool:
    match one, other:
        case Constant(), Constant():
            return one.value is other.value or torch.equal(one.value, other.value)
        case Number(), Number():
            return one.value == other.value
    return one is other
