"""What every part writes to the stream of the last prompt token, with and without edits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.nodes import Node
from analyses.circuits.recording import Place, Recording, record, written_by_heads
from analyses.circuits.runs import nodes_of
from analyses.patching.recorded import Reader
from model_adapters import Adapter, Batch
from regap_interp.capture import capture
from regap_interp.graph.graph import Graph


@dataclass(frozen=True, eq=False)
class Written:
    """All that adds up to the stream where a coordinate is read."""

    nodes: tuple[Node, ...]
    of_nodes: Float[Tensor, "node item d_model"]
    rest: Float[Tensor, "item d_model"]
    """Biases behind heads."""
    stream: Float[Tensor, "item d_model"]
    """Where the coordinate is read."""


def written(adapter: Adapter, batch: Batch, reader: Reader, graph: Graph | None) -> Written:
    """Run the batch, and once more with edits if there are any.

    Raises:
        ValueError: a layer does more than add what attention and MLP write.
    """
    depth, rows = reader.layer + 1, torch.arange(len(batch))
    base, _ = record(adapter, batch, reader, depth)
    nodes = nodes_of(adapter, base, depth)
    sites = {place: value[rows, batch.last] for place, value in base.sites.items()}
    added = {layer: value[rows, batch.last] for layer, value in base.added.items()}
    biases = _biases(adapter, nodes, sites)
    if graph is not None:
        sites, added = _edited(adapter, batch, graph, nodes, biases, base)
        nodes = _with_edits(adapter, nodes, graph, depth)
    parts = []
    for node in nodes:
        if node.kind == "embed":
            last = batch.mask(str(node.part))[rows, batch.last][:, None]
            mine = sites["embed", None] * last.to(sites["embed", None])
        elif node.kind == "added":
            mine = added[node.layer]
        elif node.kind == "head":
            mine = _heads(adapter, node.layer, sites)[:, int(node.part)]
        else:
            mine = sites[f"{node.kind}_out", node.layer]
        parts.append(mine.double().cpu())
    rest = sum(biases.values(), torch.zeros_like(parts[0]))
    stream = sites["resid_post", depth - 1].double().cpu()
    return Written(nodes, torch.stack(parts), rest, stream)


def _heads(adapter: Adapter, layer: int, sites: dict[Place, Tensor]) -> Tensor:
    return written_by_heads(adapter, layer, sites["z", layer][:, None])[:, 0]


def _biases(
    adapter: Adapter, nodes: Sequence[Node], sites: dict[Place, Tensor]
) -> dict[int, Tensor]:
    """What attention adds beside its heads, by layer; the same in all runs."""
    layers = sorted({node.layer for node in nodes if node.kind == "head"})
    return {
        layer: (sites["attn_out", layer] - _heads(adapter, layer, sites).sum(dim=1)).double().cpu()
        for layer in layers
    }


def _edited(
    adapter: Adapter,
    batch: Batch,
    graph: Graph,
    nodes: Sequence[Node],
    biases: dict[int, Tensor],
    base: Recording,
) -> tuple[dict[Place, Tensor], dict[int, Tensor]]:
    """The same sites in the pass with edits, and what is added beside them in every layer."""
    depth = max(node.layer for node in nodes) + 1
    like = base.sites["mlp_out", 0]
    wide: list[Place] = [
        (name, layer) for layer in range(depth) for name in ("resid_pre", "attn_out", "mlp_out")
    ]
    wide.append(("resid_post", depth - 1))
    # Heads of some models differ from layer to layer; states of one width are had together.
    heads: dict[tuple[int, int], list[Place]] = {}
    for layer in biases:
        heads.setdefault(adapter.heads(layer), []).append(("z", layer))
    sites: dict[Place, Tensor] = {}
    for some in (wide, *heads.values()):
        found = capture(adapter, [batch], sites=some, at="last", graph=graph)
        sites |= {place: value.to(like) for place, value in zip(some, found, strict=True)}
    for layer in biases:
        sites["z", layer] = sites["z", layer].unflatten(-1, (adapter.heads(layer)[0], -1))
    sites["embed", None] = sites["resid_pre", 0]
    added: dict[int, Tensor] = {}
    for layer in range(depth):
        after = ("resid_pre", layer + 1) if layer + 1 < depth else ("resid_post", layer)
        attention = sites["attn_out", layer]
        if layer in biases:
            attention = _heads(adapter, layer, sites).sum(dim=1) + biases[layer].to(like)
        parts = sites["resid_pre", layer] + attention + sites["mlp_out", layer]
        added[layer] = sites[after] - parts
    return sites, added


def _with_edits(
    adapter: Adapter, nodes: Sequence[Node], graph: Graph, depth: int
) -> tuple[Node, ...]:
    """Nodes with those for edits of the stream, each of the layer behind which it arrives."""
    found = set(nodes)
    for edit in graph.edits:
        if edit.layer is None or edit.phase == "decode":
            continue
        layer = adapter.resid_post.number(edit.layer) - (edit.site == "resid_pre")
        if 0 <= layer < depth:
            found.add(Node(layer, "added"))
    return tuple(sorted(found))
