"""Which parts of a model write a coordinate, to the last digit: the stream is a sum of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.nodes import SPANS, Node
from analyses.circuits.reading import read_by_span
from analyses.circuits.recording import record
from analyses.circuits.runs import nodes_of
from analyses.patching.metrics import Coordinate
from analyses.patching.recorded import Reader
from model_adapters import Adapter, Batch
from model_adapters.tracer import lock_of
from regap_interp.directions import Direction
from regap_interp.views import About, HeatMap, Shown

_KINDS = ("head", "attn", "mlp", "added")


@dataclass(frozen=True, eq=False)
class DirectAttribution(Shown):
    """Parts of a coordinate at the last prompt token, in units of the direction's length.

    `of_nodes` and `constant` add up to `total`.
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

    spans = SPANS

    @property
    def n(self) -> int:
        """Items."""
        return len(self.total)

    def __repr__(self) -> str:
        """One line."""
        means = self.of_nodes.mean(dim=0)
        order = means.abs().argsort(descending=True)[:3].tolist()
        shown = ", ".join(f"{self.nodes[i]} {float(means[i]):+.2f}" for i in order)
        total = float(self.total.mean())
        return f"<DirectAttribution of {self.name}: {total:.2f} = {shown}, ..., n={self.n}>"

    def view(self, title: str = "") -> HeatMap:
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
                quantity=f"part of the {self.name}",
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
            quantity=f"part of the {self.name}",
            title=title,
            about=about,
        )

    def _rest(self) -> str:
        """What the map does not show."""
        places = [i for i, node in enumerate(self.nodes) if node.kind == "embed"]
        embedding = float(self.of_nodes[:, places].sum(dim=1).mean())
        return (
            f"with the embedding {embedding:+.3f} and the constant "
            f"{float(self.constant.mean()):+.3f} all parts add up to {float(self.total.mean()):.3f}"
        )


@torch.no_grad()
def direct_attribution(
    adapter: Adapter, batch: Batch, direction: Direction, *, spans: bool = False
) -> DirectAttribution:
    """Take the coordinate of every row apart into what embeddings, heads and MLPs write.

    Where a norm or a multiplier stands behind the heads, what attention adds is one part.

    Args:
        adapter: The model.
        batch: Requests; the coordinate is that of their last prompt tokens.
        direction: Its origin says at which layer it is read, at `resid_post`.
        spans: Also take heads apart by the kind of positions that they read.

    Raises:
        ValueError: for a direction of another place or model, or a model whose layers do more than
            add; with `spans` for attention whose values cannot be told apart.
    """
    metric = Coordinate(direction)
    site, layer = metric.place
    if site != "resid_post":
        raise ValueError(f"the direction is read at {site}; parts add up at resid_post")
    if direction.origin is not None and direction.origin.model != adapter.fingerprint:
        raise ValueError("the direction was measured on another model")
    depth = adapter.resid_post.number(layer) + 1
    reader, unit = Reader(adapter, metric), direction.unit / direction.norm
    rows = torch.arange(len(batch))
    with lock_of(adapter.module):
        base, read = record(adapter, batch, reader, depth)
        nodes = nodes_of(adapter, base, depth)

        def along(value: Tensor) -> Tensor:
            return (value.double() @ unit.to(value.device)).cpu()

        parts = []
        for node in nodes:
            if node.kind == "embed":
                mine = base.sites["embed", None] * batch.mask(str(node.part))[..., None]
            elif node.kind == "added":
                mine = base.added[node.layer]
            elif node.kind == "head":
                mine = base.results(adapter, node.layer)[:, :, int(node.part)]
            else:
                mine = base.sites[f"{node.kind}_out", node.layer]
            parts.append(along(mine[rows, batch.last]))
        of_nodes, total = torch.stack(parts, dim=1), metric.of(read, range(len(batch)), None).cpu()
        of_spans = None
        if spans:
            of_spans = torch.full((len(batch), len(SPANS), len(nodes)), torch.nan).double()
            layers = sorted({node.layer for node in nodes if node.kind == "head"})
            taken = read_by_span(adapter, batch, reader, layers, depth)
            for place, node in enumerate(nodes):
                if node.kind == "head":
                    of_spans[:, :, place] = along(taken[node.layer][:, :, int(node.part)])
        constant = -along(direction.centre).expand(len(batch))
        for layer in sorted({node.layer for node in nodes if node.kind == "head"}):
            biased = base.sites["attn_out", layer] - base.results(adapter, layer).sum(dim=2)
            constant = constant + along(biased[rows, batch.last])
    return DirectAttribution(
        nodes=nodes,
        of_nodes=of_nodes,
        constant=constant,
        total=total,
        of_spans=of_spans,
        name=metric.name,
        model=adapter.model_id,
    )


def _column(node: Node) -> str:
    return f"h{node.part}" if node.kind == "head" else str(node).split()[0]
