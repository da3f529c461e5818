"""The run whose circuit is looked for, and the values that stand in for its parts."""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.circuits.ablation import states
from analyses.circuits.circuit import Edge
from analyses.circuits.nodes import SPANS, Node, edges
from analyses.circuits.recording import TOLERANCE, Recording, record
from analyses.patching import align as aligning
from analyses.patching.align import Alignment, Pair, Policy, Selector
from analyses.patching.metrics import Coordinate, as_metric
from analyses.patching.recorded import Reader
from analyses.patching.setup import Metrics
from model_adapters import Adapter, Batch
from model_adapters.tracer import lock_of

Fill = Literal["run", "mean"]


@dataclass(frozen=True, eq=False)
class Runs:
    """Made by `record_runs`; what circuits are found and tested on."""

    adapter: Adapter
    reader: Reader
    base: Recording
    """The run that is explained."""
    other: Recording
    """Values that ablated parts take, at the positions of `base`."""
    mask: Bool[Tensor, "batch position"]
    """Positions at which parts are ablated; elsewhere they are free."""
    nodes: tuple[Node, ...]
    """All parts that come before the metric."""
    depth: int
    """Layers that run."""
    seen: Float[Tensor, "item width"]
    """What the metric sees of the run."""
    fill: Fill

    @property
    def readout(self) -> Node:
        """Where edges end: the metric."""
        return Node(self.depth, "readout")

    @property
    def parallel(self) -> list[int]:
        """Layers whose MLP reads what attention reads."""
        sites = self.adapter.resid_mid.sites[: self.depth]
        return [layer for layer, site in enumerate(sites) if site.obstacle]

    def measured(self, read: Tensor) -> Float[Tensor, "item"]:
        """The metric of states at the place where it is read."""
        items = range(len(self.base.batch))
        return self.reader.metric.of(self.reader.seen(read), items, self.seen)

    def spans(self, node: Node) -> Bool[Tensor, "batch position"]:
        """Positions at which an ablated node takes other values."""
        if node.kind != "embed":
            return self.mask
        return self.mask & self.base.batch.mask(str(node.part)).to(self.mask.device)

    @functools.cached_property
    def edges(self) -> tuple[tuple[Node, Node], ...]:
        """Senders and receivers of all edges."""
        every = (*self.nodes, self.readout)
        found = edges(self.nodes, self.readout, self.parallel)
        return tuple((every[sender], every[receiver]) for sender, receiver in found)

    @torch.no_grad()
    def ablated(
        self, nodes: Collection[Node] = (), *, edges: Collection[Edge | tuple[Node, Node]] = ()
    ) -> Float[Tensor, "item"]:
        """The metric of every item when these parts are really ablated; all others compute.

        Args:
            nodes: Write the other values.
            edges: The receiver reads the sender's other value in place of what the sender wrote in
                this very pass; all other readers get the real one. A head's queries, keys and
                values all read it, those of the other heads do not. Costs attention of a layer once
                more for every set of senders that heads in it are cut off from, and memory for what
                each sender wrote at the ablated positions.

        Raises:
            ValueError: for nodes or edges that the runs do not have.
        """
        unknown = set(nodes) - set(self.nodes)
        if unknown:
            raise ValueError(
                f"there is no {min(map(str, unknown))} before the metric in these runs; the "
                f"nodes are {', '.join(map(str, self.nodes[:6]))}, ..."
            )
        pairs = {edge.ends if isinstance(edge, Edge) else edge for edge in edges}
        known, parallel = {*self.nodes, self.readout}, self.parallel
        for sender, receiver in pairs:
            if {sender, receiver} <= known and sender.reaches(receiver, parallel):
                continue
            raise ValueError(
                f"there is no edge from {sender} to {receiver} in these runs; edges lead from what "
                "a node writes to a later node that reads it, or to the readout (`runs.edges`)"
            )
        with lock_of(self.adapter.module):
            read = states(self, nodes, pairs)
        return self.measured(read).double().cpu()


@torch.no_grad()
def record_runs(
    adapter: Adapter,
    batch: Batch,
    reference: Batch,
    *,
    metric: Metrics,
    positions: Sequence[Selector | Pair] = ("prompt",),
    align: Policy = "same",
    fill: Fill = "run",
) -> Runs:
    """Run two batches once, and keep what every part wrote in them.

    Args:
        adapter: The model.
        batch: The runs to be explained.
        reference: Row i has the values that parts take in row i of `batch` when they are ablated.
        metric: What the circuit is for; a coordinate is read at `resid_post` of its layer.
        positions: Of `batch`, at which parts are ablated, as for `patch_sweep`.
        align: Which positions of `reference` belong to them, likewise.
        fill: "run", or "mean": the mean over all prompt positions of all rows of `reference`,
            whatever their number; `align` has no part in that.

    Raises:
        ValueError: for runs that cannot be aligned, a metric of another model or that is not finite
            on `batch`, or a model whose layers do more than add.
    """
    if fill not in get_args(Fill):
        raise ValueError(f'fill is {fill!r}; it is "run" or "mean"')
    if adapter.family.altup:
        raise ValueError("this model has several streams (AltUp); its parts do not add up in one")
    if fill == "run" and len(batch) != len(reference):
        raise ValueError(
            f"{len(batch)} runs and {len(reference)} references; row i belongs to row i"
        )
    reader = Reader(adapter, as_metric(metric))
    site, layer = reader.place
    if site != "resid_post" or layer is None:
        raise ValueError(f"the metric reads {site}; circuits end at resid_post or at logits")
    read_by = reader.metric
    origin = read_by.direction.origin if isinstance(read_by, Coordinate) else None
    if origin is not None and origin.model != adapter.fingerprint:
        raise ValueError("the direction of the metric was measured on another model")
    depth = adapter.resid_post.number(layer) + 1
    with lock_of(adapter.module):
        base, read = record(adapter, batch, reader, depth)
        raw, _ = record(adapter, reference, reader, depth)
        rows, targets, sources = _aligned(batch, reference, positions, align, fill)
        mask = torch.zeros_like(batch.roles, dtype=torch.bool)
        for row, into in zip(rows, targets, strict=True):
            mask[row, into] = True

        def brought(ours: Tensor, theirs: Tensor) -> Tensor:
            new = ours.clone()
            if fill == "mean":
                new[mask] = theirs[reference.prompt_mask].mean(dim=0)
                return new
            for row, into, taken in zip(rows, targets, sources, strict=True):
                new[row, into] = theirs[row, taken].mean(dim=1)
            return new

        other = Recording(batch)
        for place, ours in base.sites.items():
            other.sites[place] = brought(ours, raw.sites[place])
        for at, ours in base.added.items():
            other.added[at] = brought(ours, raw.added[at])
        nodes = nodes_of(adapter, base, depth)
    found = Runs(adapter, reader, base, other, mask, nodes, depth, reader.seen(read), fill)
    if not bool(found.measured(read).isfinite().all()):
        raise ValueError(f"the metric {reader.name} is not finite on the runs themselves")
    return found


def _aligned(
    batch: Batch,
    reference: Batch,
    positions: Sequence[Selector | Pair],
    policy: Policy,
    fill: Fill,
) -> tuple[list[int], list[Tensor], list[Tensor]]:
    rows, targets, sources = [], [], []
    for row in range(len(batch)):
        taken: set[int] = set()
        for one in positions:
            if fill == "mean":
                found = _within(batch, row, one)
            else:
                found = aligning.align(batch, reference, row, one, policy)
            if taken & set(found.targets.tolist()):
                raise ValueError(f"row {row}: the positions overlap; name each position once")
            taken |= set(found.targets.tolist())
            rows.append(row)
            targets.append(found.targets)
            sources.append(found.sources)
    return rows, targets, sources


def _within(batch: Batch, row: int, position: Selector | Pair) -> Alignment:
    """Positions of a row, each with itself."""
    chosen = position.target if isinstance(position, Pair) else position
    return aligning.align(batch, batch, row, chosen, "same")


def nodes_of(adapter: Adapter, base: Recording, depth: int) -> tuple[Node, ...]:
    """Embeddings of every kind of positions that there is, then layer by layer."""
    batch = base.batch
    found = [Node(-1, "embed", span) for span in SPANS if bool(batch.mask(span).any())]
    for layer in range(depth):
        if _heads_add_up(adapter, base, layer):
            found += [Node(layer, "head", head) for head in range(adapter.heads(layer)[0])]
        else:
            found.append(Node(layer, "attn"))
        found.append(Node(layer, "mlp"))
        if layer in base.added and layer + 1 < depth:
            found.append(Node(layer, "added"))
    return tuple(found)


def _heads_add_up(adapter: Adapter, base: Recording, layer: int) -> bool:
    """Whether attention adds what its heads write, but for a constant: no norm stands between."""
    mask = base.batch.prompt_mask
    out = base.sites["attn_out", layer][mask]
    rest = out - base.results(adapter, layer).sum(dim=2)[mask]
    return bool((rest - rest[:1]).abs().max() <= TOLERANCE * out.abs().max())
