"""A coordinate taken apart into what every part of the model writes."""

import torch
from torch import Tensor

from analyses.circuits.direct import DirectAttribution
from analyses.circuits.nodes import SPANS
from analyses.circuits.reading import read_by_span
from analyses.circuits.writing import written
from analyses.patching.metrics import Coordinate
from analyses.patching.recorded import Reader
from model_adapters import Adapter, Batch
from model_adapters.tracer import lock_of
from regap_interp.artefact.provenance import data_fingerprint
from regap_interp.directions import Direction
from regap_interp.graph.graph import Graph


@torch.no_grad()
def direct_attribution(
    adapter: Adapter,
    batch: Batch,
    direction: Direction,
    *,
    spans: bool = False,
    graph: Graph | None = None,
) -> DirectAttribution:
    """Take the coordinate of every row apart into what embeddings, heads and MLPs write.

    Where a norm or a multiplier stands behind the heads, what attention adds is one part.

    Args:
        adapter: The model.
        batch: Requests; the coordinate is that of their last prompt tokens.
        direction: Its origin says at which layer it is read, at `resid_post`.
        spans: Also take heads apart by the kind of positions that they read.
        graph: Edits that the requests run under. What they add to the stream is the part `added` of
            the layer in or behind which they do; embeddings hold what is edited before the first.
            `.minus` of the result without them shows which parts answer to the edits.

    Raises:
        ValueError: for a direction of another place or model, or a model whose layers do more than
            add; with `spans` for attention whose values cannot be told apart, or a graph.
        GraphError: for a graph that does not fit the model.
    """
    metric = Coordinate(direction)
    site, layer = metric.place
    if site != "resid_post":
        raise ValueError(f"the direction is read at {site}; parts add up at resid_post")
    if direction.origin is not None and direction.origin.model != adapter.fingerprint:
        raise ValueError("the direction was measured on another model")
    if graph is not None and spans:
        raise ValueError("what heads read is not told apart under a graph; ask with spans=False")
    if graph is not None:
        graph.check(adapter, batch)
    depth = adapter.resid_post.number(layer) + 1
    reader, unit = Reader(adapter, metric), direction.unit / direction.norm

    def along(value: Tensor) -> Tensor:
        return value.double().cpu() @ unit

    with lock_of(adapter.module):
        found = written(adapter, batch, reader, graph)
        of_spans = None
        if spans:
            of_spans = torch.full((len(batch), len(SPANS), len(found.nodes)), torch.nan).double()
            layers = sorted({node.layer for node in found.nodes if node.kind == "head"})
            taken = read_by_span(adapter, batch, reader, layers, depth)
            for place, node in enumerate(found.nodes):
                if node.kind == "head":
                    of_spans[:, :, place] = along(taken[node.layer][:, :, int(node.part)])
    return DirectAttribution(
        nodes=found.nodes,
        of_nodes=along(found.of_nodes).T.contiguous(),
        constant=along(found.rest) - direction.centre.double() @ unit,
        total=metric.of(found.stream, range(len(batch)), None).double().cpu(),
        of_spans=of_spans,
        name=metric.name,
        model=adapter.model_id,
        direction=data_fingerprint({"vector": direction.vector, "centre": direction.centre}),
    )
