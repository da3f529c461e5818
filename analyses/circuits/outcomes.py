"""Results of really ablating circuits, and their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.nodes import Node
from analyses.circuits.parts import By
from regap_interp.views import Shown
from regap_interp.views.bands import AXIS, Band, draw_band, styles
from regap_interp.views.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Curves(View, Shown):
    """Faithfulness and completeness of circuits, and of random ones of their size.

    Both are shares of the metric's distance between the run and the run with everything ablated:

    - Faithfulness: what is left of it when everything outside of the circuit is ablated: all other
      nodes, or all other edges.
    - Completeness: what is lost of it when the circuit's nodes are, but for embeddings (to ablate
      those is to replace the request), or its edges.

    A circuit of everything has faithfulness 1, an empty one has 0 in both.
    """

    n_nodes: tuple[int, ...]
    n_edges: tuple[int, ...]
    faithfulness: Band
    """Intervals resample items; NaN ends for one item."""
    completeness: Band
    random_faithfulness: Band
    """Of random circuits with as many nodes, or edges, of every kind: mean, and the middle share of
    them."""
    random_completeness: Band
    controls: int
    """Random circuits for each circuit."""
    by: By
    """What was ablated."""

    def view(self) -> View:
        """Itself."""
        return self

    def _summary(self) -> str:
        last = [float(one.value[-1]) for one in (self.faithfulness, self.completeness)]
        return (
            f"faithfulness and completeness by {self.by} of {len(self.n_nodes)} circuits; with "
            f"{self._sizes()[-1]} {self.by} {last[0]:.2f} and {last[1]:.2f}"
        )

    def _sizes(self) -> tuple[int, ...]:
        return self.n_nodes if self.by == "nodes" else self.n_edges

    def _columns(self) -> dict[str, Sequence[Any]]:
        found: dict[str, Sequence[Any]] = {"n_nodes": self.n_nodes, "n_edges": self.n_edges}
        for name, band in self._bands().items():
            found |= {
                name: band.value.tolist(),
                f"{name}_low": band.low.tolist(),
                f"{name}_high": band.high.tolist(),
            }
        return found

    def _bands(self) -> dict[str, Band]:
        names = ("faithfulness", "random_faithfulness", "completeness", "random_completeness")
        return {name: getattr(self, name) for name in names}

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, 2, (4.2, 3.2)

    def _draw(self, axes: list[list[Any]]) -> None:
        bands = self._bands()
        for ax, name in zip(axes[0], ("faithfulness", "completeness"), strict=True):
            looks = styles(2)
            draw_band(ax, self._sizes(), bands[name], "circuit", looks[1])
            draw_band(ax, self._sizes(), bands[f"random_{name}"], "random, same size", looks[0])
            for height in (0, 1):
                ax.axhline(height, color=AXIS, linewidth=0.6)
            ax.set_xlabel(self.by)
            ax.set_ylabel(name)
            ax.locator_params(axis="x", integer=True)
            ax.legend(loc="best").set_in_layout(False)


@dataclass(frozen=True, eq=False, repr=False)
class Minimality(View, Shown):
    """How much faithfulness a circuit loses without each of its nodes, or of its edges."""

    parts: tuple[Node, ...] | tuple[tuple[Node, Node], ...]
    """Of the circuit, the most needed first; edges by sender and receiver."""
    loss: Band
    """Faithfulness of the circuit less that without the part."""
    control: Float[Tensor, "draw"]
    """What random parts outside of the circuit add to it."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The parts, if they are nodes; otherwise none."""
        return tuple(part for part in self.parts if isinstance(part, Node))

    @property
    def edges(self) -> tuple[tuple[Node, Node], ...]:
        """The parts, if they are edges; otherwise none."""
        return tuple(part for part in self.parts if not isinstance(part, Node))

    @property
    def _names(self) -> list[str]:
        ends = [(part,) if isinstance(part, Node) else part for part in self.parts]
        return [" to ".join(map(str, nodes)) for nodes in ends]

    @property
    def _kind(self) -> str:
        return "edge" if self.edges else "node"

    def view(self) -> View:
        """Itself."""
        return self

    def _summary(self) -> str:
        return f"loss of faithfulness without each of {len(self.parts)} {self._kind}s"

    def _columns(self) -> dict[str, Sequence[Any]]:
        return {
            self._kind: self._names,
            "loss": self.loss.value.tolist(),
            "low": self.loss.low.tolist(),
            "high": self.loss.high.tolist(),
        }

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, 1, (5.0, 0.8 + 0.19 * max(len(self.parts), 6))

    def _draw(self, axes: list[list[Any]]) -> None:
        ax, places = axes[0][0], range(len(self.parts))
        value = self.loss.value
        ends = (value - self.loss.low, self.loss.high - value)
        bars = torch.stack(ends).clamp(min=0).nan_to_num(0).tolist()
        ax.errorbar(value.tolist(), places, xerr=bars, fmt="o", ms=4, color="#0072b2", lw=1.2)
        if len(self.control):
            low, high = float(self.control.min()), float(self.control.max())
            ax.axvspan(
                low, high, color="#d55e00", alpha=0.15, lw=0, label=f"{self._kind}s outside, added"
            )
            ax.legend(loc="best").set_in_layout(False)
        ax.axvline(0, color=AXIS, linewidth=0.6)
        ax.set_yticks(places, self._names, fontsize=7.5)
        ax.invert_yaxis()
        ax.set_xlabel(f"faithfulness lost without the {self._kind}")
