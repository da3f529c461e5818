"""How much every edge and every node carries of the metric, and circuits chosen by it."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits import gradients
from analyses.circuits.circuit import Circuit, Edge
from analyses.circuits.nodes import Node, edges
from analyses.circuits.runs import Runs
from model_adapters.tracer import lock_of


@dataclass(frozen=True, eq=False)
class Scores:
    """Signed contributions: what the metric would lose, to first order, if a part were ablated."""

    nodes: tuple[Node, ...]
    """In the order in which they are computed; the readout is not among them."""
    readout: Node
    senders: tuple[int, ...]
    """Of every edge, as a place in `nodes`."""
    receivers: tuple[int, ...]
    """Likewise; the number of nodes for the readout."""
    of_nodes: Float[Tensor, "item node"]
    of_edges: Float[Tensor, "item edge"]
    metric: str
    model: str
    method: str

    @property
    def n(self) -> int:
        """Items."""
        return len(self.of_nodes)

    def top(self, n: int, *, positive: bool | None = None) -> Circuit:
        """The circuit of the `n` edges with the largest mean contributions, whatever their sign.

        Args:
            n: Edges, at least 1; all if there are no more.
            positive: Only those that raise the metric, or only those that lower it.

        Raises:
            ValueError: for fewer than 1.
        """
        _check(n)
        means = self.of_edges.mean(dim=0)
        order = means.abs().argsort(descending=True, stable=True).tolist()
        signed = [i for i in order if positive is None or (float(means[i]) > 0) == positive]
        return self._circuit(signed[:n], f"top {n}")

    def threshold(self, least: float) -> Circuit:
        """The circuit of all edges whose mean contributions are at least so large."""
        means = self.of_edges.mean(dim=0).abs()
        return self._circuit((means >= least).nonzero().flatten().tolist(), f"at least {least:g}")

    def greedy(self, n: int) -> Circuit:
        """The circuit grown backwards from the readout, always by the largest edge that ends in it.

        Every node has a way to the readout.

        Raises:
            ValueError: for fewer than 1 edge.
        """
        _check(n)
        means = self.of_edges.mean(dim=0).abs().tolist()
        into: dict[int, list[int]] = {}
        for edge, receiver in enumerate(self.receivers):
            into.setdefault(receiver, []).append(edge)
        reached = {len(self.nodes)}
        chosen: list[int] = []
        border = [(-means[edge], edge) for edge in into.get(len(self.nodes), [])]
        heapq.heapify(border)
        while border and len(chosen) < n:
            _, edge = heapq.heappop(border)
            chosen.append(edge)
            sender = self.senders[edge]
            if sender not in reached:
                reached.add(sender)
                for other in into.get(sender, []):
                    heapq.heappush(border, (-means[other], other))
        return self._circuit(chosen, f"greedy {n}")

    def _circuit(self, chosen: Sequence[int], selection: str) -> Circuit:
        every = (*self.nodes, self.readout)
        ends = [(self.senders[edge], self.receivers[edge]) for edge in chosen]
        means = self.of_edges.mean(dim=0).tolist()
        of_nodes = self.of_nodes.mean(dim=0).tolist()
        used = sorted({place for pair in ends for place in pair} - {len(self.nodes)})
        return Circuit(
            nodes={self.nodes[place]: of_nodes[place] for place in used},
            edges=tuple(
                Edge(every[sender], every[receiver], means[edge])
                for edge, (sender, receiver) in zip(chosen, ends, strict=True)
            ),
            readout=self.readout,
            metric=self.metric,
            model=self.model,
            n=self.n,
            method=self.method,
            selection=selection,
        )


def score_edges(runs: Runs, *, steps: int = 0) -> Scores:
    """Edge attribution: what each sender writes, times the metric's gradient by what a receiver
    reads.

    The edges that leave a node add up to the contribution of the node.

    Args:
        runs: Made by `record_runs`.
        steps: Points between the embeddings of both runs over which gradients are averaged; 0 takes
            those of the run itself. Gates that saturate need some.

    Raises:
        ValueError: for negative `steps`.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; give 0, or the number of points on the path")
    points, weights = np.polynomial.legendre.leggauss(steps) if steps else ([-1.0], [2.0])
    size = len(runs.nodes)
    of_nodes = torch.zeros(len(runs.base.batch), size, dtype=torch.float64)
    table = torch.zeros(len(runs.base.batch), size, size + 1, dtype=torch.float64)
    with lock_of(runs.adapter.module):
        for point, weight in zip(points, weights, strict=True):
            some = gradients.scores(runs, (float(point) + 1) / 2)
            of_nodes += float(weight) / 2 * some[0]
            table += float(weight) / 2 * some[1]
    senders, receivers = zip(*edges(runs.nodes, runs.readout, runs.parallel), strict=True)
    return Scores(
        nodes=runs.nodes,
        readout=runs.readout,
        senders=senders,
        receivers=receivers,
        of_nodes=of_nodes,
        of_edges=table[:, list(senders), list(receivers)],
        metric=runs.reader.metric.name,
        model=runs.adapter.model_id,
        method=f"edge attribution, {steps} points" if steps else "edge attribution",
    )


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"n is {n}; a circuit has at least one edge")
