"""Whether scores of edges hold: some of them, drawn at random, are really ablated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.circuit import in_words
from analyses.circuits.nodes import Node
from analyses.circuits.runs import Runs
from analyses.patching.agreement import Agreement
from regap_interp.views import About, Shown
from regap_interp.views.bands import AXIS, styles
from regap_interp.views.view import View

_LARGE = 0.05
"""Share of edges that count as large."""


@dataclass(frozen=True, eq=False, repr=False)
class Check(View, Shown):
    """What some edges were estimated to carry, and what the metric really lost without each."""

    edges: tuple[tuple[Node, Node], ...]
    """Half of them drawn from the twentieth with the largest scores, half from all others."""
    estimated: Float[Tensor, "item edge"]
    exact: Float[Tensor, "item edge"]
    """The metric of the run less that of the run with the edge ablated."""
    agreement: Agreement
    """Of means over items; `largest` in units of what ablating everything changes."""

    def view(self) -> View:
        """Itself."""
        return self

    def _summary(self) -> str:
        return f"scores of edges: {in_words(self.agreement)}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        return {
            "sender": [str(sender) for sender, _ in self.edges],
            "receiver": [str(receiver) for _, receiver in self.edges],
            "estimated": self.estimated.mean(dim=0).tolist(),
            "exact": self.exact.mean(dim=0).tolist(),
        }

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, 1, (4.2, 3.4)

    def _draw(self, axes: list[list[Any]]) -> None:
        ax, (colour, _, marker) = axes[0][0], styles(1)[0]
        ours, theirs = self.estimated.mean(dim=0), self.exact.mean(dim=0)
        ax.axline((0, 0), slope=1, color=AXIS, linewidth=0.8)
        ax.scatter(ours.tolist(), theirs.tolist(), color=colour, marker=marker, s=18, alpha=0.8)
        ax.set_xlabel("score of the edge")
        ax.set_ylabel("really lost without it")


def draw(means: Float[Tensor, "edge"], count: int, seed: int) -> list[int]:
    """Half of them from the largest edges, half from the others, each only once."""
    order = means.abs().argsort(descending=True, stable=True)
    generator = torch.Generator().manual_seed(seed)
    half = -(-min(count, len(order)) // 2)
    split = max(round(_LARGE * len(order)), half)
    large, small = order[:split], order[split:]
    rest = min(count - half, len(small))
    taken = [
        some[torch.randperm(len(some), generator=generator)[:number]]
        for some, number in ((large, min(count, len(order)) - rest), (small, rest))
    ]
    return sorted(torch.cat(taken).tolist())


def check(
    runs: Runs,
    edges: Sequence[tuple[Node, Node]],
    estimated: Float[Tensor, "item edge"],
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Check:
    """Ablate edges one by one."""
    bare, none = runs.ablated(), runs.ablated(runs.nodes)
    lost = []
    for edge in edges:
        lost.append(bare - runs.ablated(edges=[edge]))
        if progress is not None:
            progress(len(lost), len(edges))
    exact = torch.stack(lost, dim=1)
    agreement = Agreement.of(exact.mean(dim=0), estimated.mean(dim=0), float((bare - none).mean()))
    about = About(
        model=runs.adapter.model_id,
        n=len(bare),
        seed=seed,
        note=f"{runs.reader.name}; {in_words(agreement)}",
    )
    return Check(tuple(edges), estimated, exact, agreement, about=about)
