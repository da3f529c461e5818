"""How much every edge and every node carries of the metric, and circuits chosen by it."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits import checking, gradients
from analyses.circuits.checking import Check
from analyses.circuits.circuit import Circuit, Edge, in_words
from analyses.circuits.nodes import Node, edges
from analyses.circuits.ranking import mean_band
from analyses.circuits.runs import Runs
from model_adapters.tracer import lock_of

if TYPE_CHECKING:
    from pandas import DataFrame


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
    check: Check | None = None
    """Of some edges that were really ablated."""

    def __repr__(self) -> str:
        """One line."""
        checked = f", {in_words(self.check.agreement)}" if self.check else ""
        return (
            f"<Scores of {len(self.senders)} edges between {len(self.nodes)} nodes and the "
            f"readout, {self.metric}, {self.method}, n={self.n}{checked}>"
        )

    @property
    def n(self) -> int:
        """Items."""
        return len(self.of_nodes)

    def to_frame(self) -> "DataFrame":
        """A row for each edge: sender, receiver, mean contribution with its 95 % interval over
        items (NaN for one item).

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        every = [str(node) for node in (*self.nodes, self.readout)]
        band = mean_band(self.of_edges, 0.95, 1000, 0)
        columns = {
            "sender": [every[place] for place in self.senders],
            "receiver": [every[place] for place in self.receivers],
            "contribution": band.value.tolist(),
            "low": band.low.tolist(),
            "high": band.high.tolist(),
        }
        table: DataFrame = pandas.DataFrame(columns)
        return table

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
        wanted = means.abs() if positive is None else means if positive else -means
        signed = [i for i in order if positive is None or float(wanted[i]) > 0]
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
            agreement=None if self.check is None else self.check.agreement,
        )


def score_edges(
    runs: Runs,
    *,
    steps: int = 0,
    check: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Edge attribution: what each sender writes, times the metric's gradient by what a receiver
    reads.

    The edges that leave a node add up to the contribution of the node.

    Args:
        runs: Made by `record_runs`.
        steps: Points between the embeddings of both runs over which gradients are averaged; 0 takes
            those of the run itself. Gates that saturate need some.
        check: How many edges to ablate really, one pass each, so that `check` of the result tells
            how far scores hold: half of them drawn from the twentieth of all edges with the largest
            scores, half from the others.
        seed: Of that draw.
        progress: Called after every pass of `check`, with finished passes and all passes.

    Raises:
        ValueError: for negative `steps` or `check`.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; give 0, or the number of points on the path")
    if check < 0:
        raise ValueError(f"check is {check}; give 0, or the number of edges to ablate really")
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
    of_edges = table[:, list(senders), list(receivers)]
    checked = None
    if check:
        drawn = checking.draw(of_edges.mean(dim=0), check, seed)
        ends = [runs.edges[edge] for edge in drawn]
        checked = checking.check(runs, ends, of_edges[:, drawn], seed, progress)
    return Scores(
        nodes=runs.nodes,
        readout=runs.readout,
        senders=senders,
        receivers=receivers,
        of_nodes=of_nodes,
        of_edges=of_edges,
        metric=runs.reader.name,
        model=runs.adapter.model_id,
        method=f"edge attribution, {steps} points" if steps else "edge attribution",
        check=checked,
    )


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"n is {n}; a circuit has at least one edge")
