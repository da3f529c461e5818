"""What circuits are made of: nodes, or edges; and random circuits of the same make."""

import random
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from analyses.circuits.circuit import Circuit
from analyses.circuits.nodes import Node
from analyses.circuits.runs import Runs

By = Literal["nodes", "edges"]
Pair = tuple[Node, Node]
Some = frozenset[Any]
"""Nodes, or pairs of them."""


@dataclass(frozen=True, eq=False)
class Parts(ABC):
    """All parts of a kind that runs have."""

    runs: Runs

    @property
    @abstractmethod
    def every(self) -> Some:
        """All of them."""

    @abstractmethod
    def within(self, circuit: Circuit) -> Some:
        """Those of a circuit.

        Raises:
            ValueError: the runs do not have them all.
        """

    @abstractmethod
    def removable(self, parts: Some) -> Some:
        """Those that can be ablated without replacing the request."""

    @abstractmethod
    def ablated(self, parts: Some) -> Float[Tensor, "item"]:
        """The metric without them."""

    @abstractmethod
    def alike(self, parts: Some, draw: random.Random) -> Some:
        """Random ones of the same make."""

    @staticmethod
    @abstractmethod
    def name(part: Any) -> str:
        """Of one of them."""


class NodeParts(Parts):
    """Nodes."""

    @property
    def every(self) -> Some:
        """All of them."""
        return frozenset(self.runs.nodes)

    def within(self, circuit: Circuit) -> Some:
        """Those of a circuit."""
        strange = set(circuit.nodes) - set(self.runs.nodes)
        if strange:
            raise ValueError(
                f"the circuit has {min(map(str, strange))}, which these runs do not have"
            )
        return frozenset(circuit.nodes)

    def removable(self, parts: Some) -> Some:
        """All but embeddings: to ablate those is to replace the request."""
        return frozenset(node for node in parts if node.kind != "embed")

    def ablated(self, parts: Some) -> Float[Tensor, "item"]:
        """The metric without them."""
        return self.runs.ablated(parts)

    def alike(self, parts: Some, draw: random.Random) -> Some:
        """The same embeddings, and random nodes, as many of every kind."""
        inner = self.removable(parts)
        found = set(parts - inner)
        for kind in sorted({node.kind for node in inner}):
            known = [node for node in self.runs.nodes if node.kind == kind]
            found |= set(draw.sample(known, sum(node.kind == kind for node in inner)))
        return frozenset(found)

    @staticmethod
    def name(part: Any) -> str:
        """Of a node."""
        return str(part)


class EdgeParts(Parts):
    """Edges, as pairs of nodes."""

    @property
    def every(self) -> Some:
        """All of them."""
        return frozenset(self.runs.edges)

    def within(self, circuit: Circuit) -> Some:
        """Those of a circuit."""
        ends = frozenset(edge.ends for edge in circuit.edges)
        for sender, receiver in sorted(ends - self.every):
            raise ValueError(
                f"the circuit has an edge from {sender} to {receiver}, which these runs do not have"
            )
        return ends

    def removable(self, parts: Some) -> Some:
        """All: an edge from an embedding is one of its ways only."""
        return parts

    def ablated(self, parts: Some) -> Float[Tensor, "item"]:
        """The metric without them."""
        return self.runs.ablated(edges=parts)

    def alike(self, parts: Some, draw: random.Random) -> Some:
        """Random edges between the same kinds of nodes, grown backwards from the readout.

        Where no edge of a kind that is wanted ends in a node that has been reached, one that ends
        elsewhere is taken.
        """
        wanted = Counter(map(_kind, parts))
        into: dict[Node, list[Pair]] = {}
        known: dict[tuple[str, str], list[Pair]] = {}
        for edge in self.runs.edges:
            into.setdefault(edge[1], []).append(edge)
            known.setdefault(_kind(edge), []).append(edge)
        found: set[Pair] = set()
        reached, border = {self.runs.readout}, list(into[self.runs.readout])
        while len(found) < len(parts):
            here = [at for at, edge in enumerate(border) if wanted[_kind(edge)]]
            if here:
                edge = border.pop(draw.choice(here))
            else:
                kind = next(kind for kind in sorted(wanted) if wanted[kind])
                edge = draw.choice([one for one in known[kind] if one not in found])
            if edge in found:
                continue
            found.add(edge)
            wanted[_kind(edge)] -= 1
            if edge[0] not in reached:
                reached.add(edge[0])
                border += into.get(edge[0], [])
        return frozenset(found)

    @staticmethod
    def name(part: Any) -> str:
        """Of an edge."""
        return " to ".join(map(str, part))


def parts_of(runs: Runs, by: By) -> Parts:
    """Nodes or edges of runs.

    Raises:
        ValueError: for another word.
    """
    if by not in get_args(By):
        raise ValueError(f'by is {by!r}; it is "nodes" or "edges"')
    return NodeParts(runs) if by == "nodes" else EdgeParts(runs)


def _kind(edge: Pair) -> tuple[str, str]:
    sender, receiver = edge
    return str(sender.part) if sender.kind == "embed" else sender.kind, receiver.kind
