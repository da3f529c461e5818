"""Circuits as layered graphs: nodes by layer from bottom to top, colours by contribution."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from analyses.circuits.layout import Places, place_nodes
from analyses.circuits.nodes import Node
from regap_interp.views import Scale
from regap_interp.views.about import label
from regap_interp.views.drawing import colour_bar
from regap_interp.views.markup import FAINT, PAPER, RULE
from regap_interp.views.view import View

if TYPE_CHECKING:
    from analyses.circuits.circuit import Edge

_PALE = 0.36


@dataclass(frozen=True, eq=False)
class Panel:
    """One circuit of a drawing."""

    name: str
    nodes: Mapping[Node, float]
    edges: Sequence["Edge"]
    pale: frozenset[tuple[Node, Node]] = frozenset()
    """Edges that stand back."""


@dataclass(frozen=True, eq=False, repr=False)
class CircuitView(View):
    """One or more circuits of a model, nodes at the same places and colours on the same scales.

    Orange raises the metric, blue lowers it. Nodes have a scale of their own; the width of an edge
    is its size.
    """

    panels: Sequence[Panel]
    readout: Node
    quantity: str
    """What contributions are to."""

    def _summary(self) -> str:
        sizes = ", ".join(
            f"{one.name + ': ' if one.name else ''}{len(one.nodes)} nodes, {len(one.edges)} edges"
            for one in self.panels
        )
        strongest = max(
            (edge for one in self.panels for edge in one.edges),
            key=lambda edge: abs(edge.contribution),
            default=None,
        )
        if strongest is None:
            return f"circuit of {self.quantity} without edges"
        return (
            f"circuit of {self.quantity}: {sizes}; strongest edge {strongest.sender} to "
            f"{strongest.receiver}, {strongest.contribution:+.3g}"
        )

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows = [
            (
                one.name,
                str(edge.sender),
                str(edge.receiver),
                edge.sender.layer,
                edge.receiver.layer,
                edge.contribution,
                edge.ends in one.pale,
            )
            for one in self.panels
            for edge in one.edges
        ]
        names = [
            "circuit",
            "sender",
            "receiver",
            "from_layer",
            "to_layer",
            "contribution",
            "shared",
        ]
        found: dict[str, Sequence[Any]] = {
            name: [row[i] for row in rows] for i, name in enumerate(names)
        }
        if len(self.panels) == 1:
            del found["circuit"], found["shared"]
        return found

    def _notes(self) -> str:
        return (
            "orange raises the metric, blue lowers it; wider edges carry more; nodes have a scale "
            f"of their own, \u00b1{self._scales()[1].limit:.3g}"
        )

    def _scales(self) -> tuple[Scale, Scale]:
        """Of edges and of nodes, over all panels."""
        weights = [edge.contribution for one in self.panels for edge in one.edges]
        own = [value for one in self.panels for value in one.nodes.values()]
        return Scale.of(torch.tensor(weights)), Scale.of(torch.tensor(own))

    def _places(self) -> Places:
        ends = [edge.ends for one in self.panels for edge in one.edges]
        return place_nodes([node for one in self.panels for node in one.nodes], self.readout, ends)

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        places = self._places()
        return 1, len(self.panels), (0.72 * places.width + 1.7, 0.52 * places.height + 0.7)

    def _draw(self, axes: list[list[Any]]) -> None:
        places = self._places()
        edges, nodes = self._scales()
        for ax, panel in zip(axes[0], self.panels, strict=True):
            _rows(ax, places)
            for edge in sorted(panel.edges, key=lambda edge: abs(edge.contribution)):
                _edge(ax, places, edge, edges, edge.ends in panel.pale)
            for node, value in {**panel.nodes, self.readout: 0.0}.items():
                _node(ax, places.at[node], node, value, nodes)
            if panel.name:
                ax.set_title(label(panel.name, 48), fontsize=9)
        negative = any(edge.contribution < 0 for one in self.panels for edge in one.edges)
        colour_bar(list(axes[0]), edges, f"edge: part of {self.quantity}", negative=negative)


def _rows(ax: Any, places: Places) -> None:
    """Layers as bands with numbers, no frame."""
    for height, name in enumerate(places.rows):
        if height % 2:
            ax.axhspan(height - 0.34, height + 0.66, color=RULE, alpha=0.25, lw=0)
        ax.text(-1.1, height + 0.16, name, fontsize=7.5, color=FAINT, va="center", ha="right")
    ax.set_xlim(-1.0, places.width)
    ax.set_ylim(-0.34, places.height - 0.6)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def _edge(ax: Any, places: Places, edge: "Edge", scale: Scale, pale: bool) -> None:
    """A curve that leaves upwards and arrives from below; long ones swing out of the way."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = places.at[edge.sender], places.at[edge.receiver]
    rise = y1 - y0
    # Between blocks of one column, or far apart, a straight line would run through others.
    out = 1.0 if x0 + x1 >= places.width - 1 else -1.0
    swing = out * min(0.22 * max(rise - 0.9, 0.0), 1.5)
    start, stop = (x0, y0 + 0.17), (x1, y1 - 0.2)
    if edge.sender.layer == edge.receiver.layer:
        stop = (x1 - 0.27, y1 - 0.02)
    curve = Path(
        [start, (x0 + swing, y0 + 0.4 * rise), (x1 + swing, y1 - 0.4 * rise), stop],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    share = abs(scale.share(edge.contribution))
    ax.add_patch(
        FancyArrowPatch(
            path=curve,
            arrowstyle="-|>",
            mutation_scale=5 + 3 * share,
            lw=0.5 + 2.6 * share,
            color=scale.fill(_strong(edge.contribution, scale)),
            alpha=_PALE if pale else 0.9,
            capstyle="round",
            shrinkA=0,
            shrinkB=0,
            zorder=2 + share,
        )
    )


def _strong(value: float, scale: Scale) -> float:
    """A value whose colour can be told from the paper: no weaker than a third of the scale."""
    least = 0.35 * scale.limit
    return value if abs(value) >= least else least * (1 if value >= 0 else -1)


def _node(ax: Any, at: tuple[float, float], node: Node, value: float, scale: Scale) -> None:
    readout = node.kind == "readout"
    name = {"head": f"h{node.part}", "readout": "readout"}.get(node.kind, str(node).split()[0])
    ax.text(
        *at,
        name,
        ha="center",
        va="center",
        fontsize=7.5,
        color=PAPER if readout else scale.ink(value),
        bbox={
            "boxstyle": "round,pad=0.3" if node.kind == "head" else "square,pad=0.3",
            "fc": FAINT if readout else scale.fill(value),
            "ec": FAINT,
            "lw": 0.7,
        },
        zorder=5,
    )
