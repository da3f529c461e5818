"""Scores of all edges and nodes from gradients, a few passes in all."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.nodes import Node
from analyses.circuits.recording import Hook, Place, run, written_by_heads
from analyses.circuits.runs import Runs


@dataclass
class _Pass:
    """A pass with gradients: values of sites, and zeros added behind them to differentiate by."""

    runs: Runs
    share: float
    """How far the embeddings are moved to the other run's."""
    values: dict[Place, Tensor] = field(default_factory=dict)
    leaves: dict[Place, Tensor] = field(default_factory=dict)

    def hooks(self) -> dict[Place, Hook]:
        """For all sites that are read or written by nodes."""
        places: list[Place] = [("embed", None)]
        for layer in range(self.runs.depth):
            names = ["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
            if layer in self.runs.parallel:
                names.remove("resid_mid")
            places += [(name, layer) for name in names]
        return {place: functools.partial(self._hook, place) for place in places}

    def _hook(self, place: Place, value: Tensor) -> Tensor:
        if place[0] == "embed":
            # What lies before the embeddings takes no part.
            value = value.detach()
            value = value + self.share * (self.runs.other.sites[place] - value)
        self.values[place] = value
        self.leaves[place] = torch.zeros_like(value, requires_grad=True)
        return value + self.leaves[place]


@torch.enable_grad()
def scores(
    runs: Runs, share: float
) -> tuple[Float[Tensor, "item node"], Float[Tensor, "item node receiver"]]:
    """Contributions of nodes and of edges, to first order at one point between the runs.

    The contribution of a node is the gradient by what it writes times how that differs between the
    runs; that of an edge takes the gradient by what its receiver reads. Receivers are the nodes and
    then the readout; 0 where there is no edge.
    """
    found = _Pass(runs, share)
    batch = runs.base.batch
    read = run(runs.adapter, batch, runs.reader, found.hooks(), runs.depth)
    value = runs.measured(read).sum()
    leaves = found.leaves
    gradients = dict(
        zip(
            leaves,
            torch.autograd.grad(
                value, [*leaves.values()], retain_graph=True, materialize_grads=True
            ),
            strict=True,
        )
    )
    with torch.no_grad():
        nodes = torch.stack([_of_node(runs, node, gradients) for node in runs.nodes], dim=1)
    size = len(runs.nodes)
    table = torch.zeros(len(batch), size, size + 1, dtype=torch.float64)
    for receivers, pulled in _received(found, gradients):
        # Only nodes of earlier layers can be senders; one layer of them is held at a time.
        for layer in range(-1, receivers[0].layer + 1):
            places = [
                i
                for i, node in enumerate(runs.nodes)
                if node.layer == layer and node.reaches(receivers[0], runs.parallel)
            ]
            if not places:
                continue
            with torch.no_grad():
                moved = torch.stack([written(runs, runs.nodes[i]) for i in places])
                products = torch.einsum("sbpd,rbpd->bsr", moved.double(), pulled.double()).cpu()
            columns = [
                size if one.kind == "readout" else runs.nodes.index(one) for one in receivers
            ]
            table[:, torch.tensor(places)[:, None], torch.tensor(columns)[None]] = products
    return nodes.double().cpu(), table


def written(runs: Runs, node: Node) -> Float[Tensor, "batch position d_model"]:
    """What a node adds to the stream in the run, less what it adds in the other one."""
    layer = node.layer
    if node.kind == "added":
        return runs.base.added[layer] - runs.other.added[layer]
    place: Place = {
        "embed": ("embed", None),
        "head": ("z", layer),
        "attn": ("attn_out", layer),
    }.get(node.kind, ("mlp_out", layer))
    moved = runs.base.sites[place] - runs.other.sites[place]
    if node.kind == "head":
        return written_by_heads(runs.adapter, layer, moved)[:, :, int(node.part)]
    return moved * runs.spans(node)[..., None]


def _of_node(runs: Runs, node: Node, gradients: dict[Place, Tensor]) -> Tensor:
    place: Place = {
        "embed": ("embed", None),
        "added": ("resid_pre", node.layer + 1),
        "mlp": ("mlp_out", node.layer),
    }.get(node.kind, ("attn_out", node.layer))
    return (gradients[place].double() * written(runs, node).double()).sum(dim=(1, 2))


def _received(
    found: _Pass, gradients: dict[Place, Tensor]
) -> Iterator[tuple[list[Node], Float[Tensor, "receiver batch position d_model"]]]:
    """Nodes of one kind and layer, with the metric's gradient by what each of them reads."""
    runs = found.runs
    for layer in range(runs.depth):
        here = [node for node in runs.nodes if node.layer == layer]
        heads = [node for node in here if node.kind in ("head", "attn")]
        site: Place = ("z" if heads[0].kind == "head" else "attn_out", layer)
        pulled = []
        for node in heads:
            wanted = gradients[site]
            if node.kind == "head":
                only = torch.zeros_like(wanted)
                only[:, :, int(node.part)] = wanted[:, :, int(node.part)]
                wanted = only
            pulled.append(_pulled(found, site, ("resid_pre", layer), wanted))
        yield heads, torch.stack(pulled)
        reads = "resid_pre" if layer in runs.parallel else "resid_mid"
        out: Place = ("mlp_out", layer)
        mlps = [node for node in here if node.kind == "mlp"]
        yield mlps, _pulled(found, out, (reads, layer), gradients[out])[None]
    yield [runs.readout], gradients["resid_post", runs.depth - 1][None]


def _pulled(found: _Pass, out: Place, reads: Place, wanted: Tensor) -> Tensor:
    """The gradient by what a block reads, through that block alone."""
    (gradient,) = torch.autograd.grad(
        found.values[out],
        [found.leaves[reads]],
        grad_outputs=wanted,
        retain_graph=True,
        materialize_grads=True,
    )
    return gradient
