"""Where nodes stand in a drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analyses.circuits.nodes import Node

_MLP = 0.42
"""How far an MLP stands above the heads of its layer, and what is added above both."""


@dataclass(frozen=True)
class Places:
    """Layers are one unit high; those without nodes are left out."""

    at: Mapping[Node, tuple[float, float]]
    width: float
    rows: tuple[str, ...]
    """Names of layers from bottom to top."""

    @property
    def height(self) -> float:
        """Number of layers shown."""
        return float(len(self.rows))


def place_nodes(nodes: Sequence[Node], readout: Node, ends: Sequence[tuple[Node, Node]]) -> Places:
    """Heads of a layer side by side, near what they are joined to; MLPs in a column at the right.

    Args:
        nodes: All that are drawn.
        readout: At the top, in the middle.
        ends: Of all edges.
    """
    every = sorted({*nodes, readout})
    layers = sorted({node.layer for node in every})
    free: dict[int, list[Node]] = {
        layer: [node for node in every if node.layer == layer and node.kind not in ("mlp", "added")]
        for layer in layers
    }
    columns = max(max(map(len, free.values())), 3)
    across = {node: float(columns) for node in every}
    beside: dict[Node, list[Node]] = {node: [node] for node in every}
    for sender, receiver in ends:
        beside[sender].append(receiver)
        beside[receiver].append(sender)

    def spread(row: Sequence[Node], width: int) -> None:
        for place, node in enumerate(row):
            across[node] = (place + 0.5) * width / len(row) - 0.5

    def wide(layer: int) -> int:
        return columns if 0 <= layer < readout.layer else columns + 1

    for layer, row in free.items():
        spread(row, wide(layer))
    for _ in range(6):
        for layer, row in free.items():
            middle = {node: sum(map(across.__getitem__, beside[node])) for node in row}
            order = sorted(row, key=lambda node: (middle[node] / len(beside[node]), node))
            spread(order, wide(layer))
    raised = {"mlp": _MLP, "added": 2 * _MLP}
    at = {
        node: (across[node], layers.index(node.layer) + raised.get(node.kind, 0.0))
        for node in every
    }
    names = {-1: "embed", readout.layer: ""}
    rows = tuple(names.get(layer, f"layer {layer}") for layer in layers)
    return Places(at, columns + 2.0, rows)
