"""Which parts of a model write a coordinate, to the last digit: the stream is a sum of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.nodes import SPANS, Kind, Node
from analyses.circuits.ranking import Ranking, mean_band
from regap_interp.views import About, HeatMap, Shown
from regap_interp.views.bands import Band
from regap_interp.views.view import View

if TYPE_CHECKING:
    from pandas import DataFrame

_KINDS = ("head", "attn", "mlp", "added")


@dataclass(frozen=True, eq=False)
class DirectAttribution(Shown):
    """Parts of a coordinate at the last prompt token, in units of the direction's length.

    `of_nodes` and `constant` add up to `total`, in differences (`minus`) as well.
    """

    nodes: tuple[Node, ...]
    """All that write before the coordinate is read; of embeddings that of the last token."""
    of_nodes: Float[Tensor, "item node"]
    constant: Float[Tensor, "item"]
    """What no node writes: biases behind heads, and the direction's centre."""
    total: Float[Tensor, "item"]
    """The coordinate."""
    of_spans: Float[Tensor, "item span node"] | None
    """Of what heads write, the share read at positions of every kind (`spans`), by their own
    attention; it adds up to `of_nodes` of the heads, and is NaN for other nodes."""
    name: str
    model: str
    difference: bool = False
    """Whether it is the difference of two."""
    direction: str = ""
    """sha256 in hex of the direction."""

    spans = SPANS

    @property
    def n(self) -> int:
        """Items."""
        return len(self.total)

    @property
    def quantity(self) -> str:
        """What the parts add up to."""
        return f"difference of {self.name}" if self.difference else self.name

    def __repr__(self) -> str:
        """One line."""
        means = self.of_nodes.mean(dim=0)
        order = means.abs().argsort(descending=True)[:3].tolist()
        shown = ", ".join(f"{self.nodes[i]} {float(means[i]):+.2f}" for i in order)
        total = float(self.total.mean())
        return f"<DirectAttribution of {self.quantity}: {total:.2f} = {shown}, ..., n={self.n}>"

    def view(self, title: str = "") -> View:
        """Differences as a `ranking`, others as a `map`."""
        return self.ranking(title=title) if self.difference else self.map(title)

    def map(self, title: str = "") -> HeatMap:
        """Means over items: layers by parts, or kinds of positions by heads if they are known."""
        about = About(model=self.model, n=self.n, note=f"means; {self._rest()}")
        if self.of_spans is not None:
            heads = [i for i, node in enumerate(self.nodes) if node.kind == "head"]
            kept = [i for i in range(len(SPANS)) if bool(self.of_spans[:, i, heads].any())]
            return HeatMap(
                self.of_spans[:, kept][:, :, heads].mean(dim=0),
                [SPANS[i] for i in kept],
                [f"{self.nodes[i].layer}.{self.nodes[i].part}" for i in heads],
                row_axis="read at",
                column_axis="head",
                quantity=f"part of the {self.quantity}",
                title=title,
                about=about,
            )
        inner = [node for node in self.nodes if node.kind != "embed"]
        order = sorted(inner, key=lambda node: (_KINDS.index(node.kind), node.part))
        columns = list(dict.fromkeys(map(_column, order)))
        layers = sorted({node.layer for node in inner})
        values = torch.full((len(layers), len(columns)), torch.nan, dtype=torch.float64)
        for node, value in zip(self.nodes, self.of_nodes.mean(dim=0), strict=True):
            if node in inner:
                values[layers.index(node.layer), columns.index(_column(node))] = value
        return HeatMap(
            values,
            layers,
            columns,
            column_axis="part",
            quantity=f"part of the {self.quantity}",
            title=title,
            about=about,
        )

    def minus(self, other: "DirectAttribution") -> "DirectAttribution":
        """What each part writes more here than there, row by row.

        `corrected.minus(uncorrected)` shows who writes a recovery. Parts that only one of the two
        has write nothing in the other.

        Raises:
            ValueError: the other one has other rows, or is of another coordinate or model.
        """
        if self.direction != other.direction:
            raise ValueError(f"{self.name} is along two directions; take the same one for both")
        if (self.n, self.name, self.model) != (other.n, other.name, other.model):
            raise ValueError(
                f"{self.name} of {self.n} rows of {self.model}, less {other.name} of {other.n} rows"
                f" of {other.model}: take the same coordinate of the same requests"
            )
        nodes = tuple(sorted({*self.nodes, *other.nodes}))
        spans = None
        if self.of_spans is not None and other.of_spans is not None:
            ours = _spread(self.nodes, self.of_spans, nodes, torch.nan)
            spans = ours - _spread(other.nodes, other.of_spans, nodes, torch.nan)
        of_nodes = _spread(self.nodes, self.of_nodes, nodes, 0.0)
        return DirectAttribution(
            nodes=nodes,
            of_nodes=of_nodes - _spread(other.nodes, other.of_nodes, nodes, 0.0),
            constant=self.constant - other.constant,
            total=self.total - other.total,
            of_spans=spans,
            name=self.name,
            model=self.model,
            difference=True,
            direction=self.direction,
        )

    def interval(self, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Band:
        """Means of `of_nodes` over items, with percentile intervals that resample items.

        Ends are NaN for one item. `confidence` is the coverage, `seed` draws the resamples.
        """
        return mean_band(self.of_nodes, confidence, resamples, seed)

    def ranking(
        self, n: int = 20, *, kinds: Sequence[Kind] | None = None, title: str = ""
    ) -> Ranking:
        """The parts that write most, whatever their sign, with 95 % intervals over items.

        Args:
            n: How many.
            kinds: Only some, such as `["head"]`; None for all.
            title: Above the picture.

        Raises:
            ValueError: there are none of these kinds.
        """
        band = self.interval()
        order = band.value.abs().argsort(descending=True, stable=True).tolist()
        kept = [i for i in order if kinds is None or self.nodes[i].kind in kinds]
        if not kept[:n]:
            raise ValueError(f"no parts of {list(kinds or ())}, n={n}; there is nothing to rank")
        note = f"{min(n, len(kept))} largest of {len(kept)} parts; 95% intervals over items"
        return Ranking(
            tuple(str(self.nodes[i]) for i in kept[:n]),
            Band(*(one[kept[:n]] for one in (band.value, band.low, band.high))),
            f"part of the {self.quantity}",
            title=title,
            about=About(model=self.model, n=self.n, seed=0, note=f"{note}; {self._rest()}"),
        )

    def to_frame(self) -> "DataFrame":
        """A row for each part: name, layer, kind, at which positions it reads ("all", or one kind
        of them), and the mean over items with its 95 % interval.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        bands = {"all": self.interval()}
        if self.of_spans is not None:
            for at, span in enumerate(SPANS):
                bands[span] = mean_band(self.of_spans[:, at], 0.95, 1000, 0)
        rows = [
            (str(node), node.layer, node.kind, span, *(float(one[place]) for one in ends))
            for span, band in bands.items()
            for ends in [(band.value, band.low, band.high)]
            for place, node in enumerate(self.nodes)
            if span == "all" or node.kind == "head"
        ]
        names = ["part", "layer", "kind", "read_at", "value", "low", "high"]
        table: DataFrame = pandas.DataFrame(rows, columns=names)
        return table

    def _rest(self) -> str:
        """What the map does not show."""
        places = [i for i, node in enumerate(self.nodes) if node.kind == "embed"]
        embedding = float(self.of_nodes[:, places].sum(dim=1).mean())
        return (
            f"with the embedding {embedding:+.3f} and the constant "
            f"{float(self.constant.mean()):+.3f} all parts add up to {float(self.total.mean()):.3f}"
        )


def _spread(
    nodes: Sequence[Node], values: Tensor, onto: Sequence[Node], missing: float
) -> Float[Tensor, "*place node"]:
    """Values of some nodes, as columns of all."""
    found = torch.full((*values.shape[:-1], len(onto)), missing, dtype=values.dtype)
    found[..., [onto.index(node) for node in nodes]] = values
    return found


def _column(node: Node) -> str:
    return f"h{node.part}" if node.kind == "head" else str(node).split()[0]
