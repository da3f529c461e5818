"""What circuits do when the rest of the model, or they themselves, are really ablated."""

import math
import random
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.circuit import Circuit
from analyses.circuits.nodes import Node
from analyses.circuits.outcomes import Curves, Minimality
from analyses.circuits.runs import Runs
from analyses.patching import statistics
from regap_interp.intervals import percentile_interval
from regap_interp.views import About
from regap_interp.views.bands import Band

Progress = Callable[[int, int], None]
"""Called with finished passes and all passes."""


def curves(
    runs: Runs,
    circuits: Sequence[Circuit],
    *,
    controls: int = 8,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Curves:
    """Ablate the rest of each circuit, and each circuit, really; and random circuits like them.

    Args:
        runs: Made by `record_runs`.
        circuits: Of rising size, such as `[scores.greedy(n) for n in (5, 10, 20, 40)]`.
        controls: Random circuits for each: the same embeddings, as many heads and MLPs.
        resamples: Of items, for intervals.
        confidence: Of intervals, and the middle share of random circuits.
        seed: Of both.
        progress: Called after every pass.

    Raises:
        ValueError: for no circuits, or runs that ablating does not change.
    """
    if not circuits or controls < 0:
        raise ValueError(f"{len(circuits)} circuits, {controls} controls; give some of the former")
    full, none = _ends(runs)
    draw, done = random.Random(seed), 0
    everything = 2 * len(circuits) * (1 + controls)
    kept: list[Tensor] = []
    lost: list[Tensor] = []
    for circuit in circuits:
        inside = [_within(runs, circuit)]
        inside += [_alike(runs, inside[0], draw) for _ in range(controls)]
        for nodes in inside:
            kept.append(runs.ablated(frozenset(runs.nodes) - nodes))
            lost.append(runs.ablated(_inner(nodes)))
            done += 2
            if progress is not None:
                progress(done, everything)
    shape = (-1, len(circuits), 1 + controls)
    bands = []
    for raw, ends in ((kept, (none, full)), (lost, (full, none))):
        values = torch.stack(raw, dim=1).reshape(shape)
        mine = _band(values[..., 0], *ends, resamples, confidence, seed)
        others = statistics.recovered(values[..., 1:], *ends)
        bands += [mine, _spread(others, confidence)]
    about = About(
        model=runs.adapter.model_id,
        n=len(full),
        seed=seed,
        note=f"{runs.reader.metric.name}; ablated by {_FILLS[runs.fill]}; {controls} random "
        f"circuits each; {confidence:.0%} intervals over items",
    )
    return Curves(
        tuple(len(circuit.nodes) for circuit in circuits),
        tuple(len(circuit.edges) for circuit in circuits),
        bands[0],
        bands[2],
        bands[1],
        bands[3],
        controls,
        about=about,
    )


_FILLS = {"run": "the other run's values", "mean": "mean values"}


def minimality(
    runs: Runs,
    circuit: Circuit,
    *,
    controls: int = 8,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Minimality:
    """Take each node out of a circuit, and look what that costs.

    Args:
        runs: Made by `record_runs`.
        circuit: Whose nodes are tried.
        controls: Random nodes outside of it that are put in instead, for comparison.
        resamples: Of items, for intervals.
        confidence: Of intervals.
        seed: Of both.

    Raises:
        ValueError: for runs that ablating does not change.
    """
    full, none = _ends(runs)
    inside, every = _within(runs, circuit), frozenset(runs.nodes)
    whole = runs.ablated(every - inside)
    nodes = sorted(inside)
    # Losses are shares of the same distance: differences of metrics, from a zero of their own.
    losses = [whole - runs.ablated(every - inside | {node}) for node in nodes]
    outside = sorted(every - inside)
    drawn = random.Random(seed).sample(outside, min(controls, len(outside)))
    gains = [runs.ablated(every - inside - {node}) - whole for node in drawn]
    zero, gap = torch.zeros_like(full), full - none
    band = _band(torch.stack(losses, dim=1), zero, gap, resamples, confidence, seed)
    order = band.value.argsort(descending=True)
    control = torch.stack(gains, dim=1) if gains else torch.zeros(len(full), 0).double()
    about = About(
        model=runs.adapter.model_id,
        n=len(full),
        seed=seed,
        note=f"{runs.reader.metric.name}; {len(drawn)} random nodes outside for comparison",
    )
    return Minimality(
        tuple(nodes[i] for i in order.tolist()),
        Band(band.value[order], band.low[order], band.high[order]),
        statistics.recovered(control, zero, gap),
        about=about,
    )


def _ends(runs: Runs) -> tuple[Tensor, Tensor]:
    full, none = runs.ablated(()), runs.ablated(runs.nodes)
    if not float((full - none).mean()):
        raise ValueError(
            f"{runs.reader.metric.name} is the same with every node ablated; there is nothing that "
            "a circuit could explain"
        )
    return full, none


def _within(runs: Runs, circuit: Circuit) -> frozenset[Node]:
    """Its nodes, if the runs have them all."""
    strange = set(circuit.nodes) - set(runs.nodes)
    if strange:
        raise ValueError(f"the circuit has {min(map(str, strange))}, which these runs do not have")
    return frozenset(circuit.nodes)


def _alike(runs: Runs, nodes: frozenset[Node], draw: random.Random) -> frozenset[Node]:
    """The same embeddings, and random nodes, as many of every kind."""
    found = set(nodes - _inner(nodes))
    for kind in sorted({node.kind for node in _inner(nodes)}):
        known = [node for node in runs.nodes if node.kind == kind]
        found |= set(draw.sample(known, sum(node.kind == kind for node in nodes)))
    return frozenset(found)


def _inner(nodes: frozenset[Node]) -> frozenset[Node]:
    return frozenset(node for node in nodes if node.kind != "embed")


def _band(
    raw: Tensor, zero: Tensor, one: Tensor, resamples: int, confidence: float, seed: int
) -> Band:
    value = statistics.recovered(raw, zero, one)
    if len(raw) < 2:
        nothing = torch.full_like(value, math.nan)
        return Band(value, nothing, nothing)
    return Band(value, *statistics.bootstrap(raw, zero, one, resamples, confidence, seed))


def _spread(values: Float[Tensor, "place draw"], confidence: float) -> Band:
    """Mean over draws, and their middle share."""
    if not values.shape[1]:
        nothing = torch.full(values.shape[:1], math.nan).double()
        return Band(nothing, nothing, nothing)
    ends = torch.tensor([percentile_interval(one, confidence) for one in values]).double()
    return Band(values.mean(dim=1), ends[:, 0], ends[:, 1])
