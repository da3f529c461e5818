"""What circuits do when the rest of the model, or they themselves, are really ablated."""

import math
import random
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.circuit import Circuit
from analyses.circuits.outcomes import Curves, Minimality
from analyses.circuits.parts import By, parts_of
from analyses.circuits.runs import Runs
from analyses.patching import statistics
from regap_interp.intervals import percentile_interval
from regap_interp.views import About
from regap_interp.views.bands import Band

Progress = Callable[[int, int], None]
"""Called with finished passes and all passes."""
_FILLS = {"run": "the other run's values", "mean": "mean values"}


def curves(
    runs: Runs,
    circuits: Sequence[Circuit],
    *,
    by: By = "nodes",
    controls: int = 8,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Curves:
    """Ablate the rest of each circuit, and each circuit, really; and random circuits like them.

    That takes `2 * len(circuits) * (1 + controls) + 2` passes over the batch. With `by="edges"` a
    pass costs more: attention of a layer is computed again for every set of senders that heads in
    it are cut off from. It can be interrupted at any time; the model is left as it was.

    Args:
        runs: Made by `record_runs`.
        circuits: Of rising size, such as `[scores.greedy(n) for n in (5, 10, 20, 40)]`.
        by: "nodes": a circuit is its nodes with all edges between them. "edges": it is its edges,
            as is usual for edge attribution, and all others are ablated one by one.
        controls: Random circuits for each. By nodes: the same embeddings, as many heads and MLPs.
            By edges: as many edges between nodes of the same kinds, grown back from the readout.
        resamples: Of items, for intervals.
        confidence: Of intervals, and the middle share of random circuits.
        seed: Of both.
        progress: Called after every pass.

    Raises:
        ValueError: for no circuits, circuits of other runs, or runs that ablating does not change.
    """
    if not circuits or controls < 0:
        raise ValueError(f"{len(circuits)} circuits, {controls} controls; give some of the former")
    parts, draw = parts_of(runs, by), random.Random(seed)
    inside = [parts.within(circuit) for circuit in circuits]
    full, none = _ends(runs)
    counted = _counted(progress, 2 * len(circuits) * (1 + controls))
    kept: list[Tensor] = []
    lost: list[Tensor] = []
    for mine in inside:
        for some in (mine, *(parts.alike(mine, draw) for _ in range(controls))):
            kept.append(counted(parts.ablated(parts.every - some)))
            lost.append(counted(parts.ablated(parts.removable(some))))
    shape = (-1, len(circuits), 1 + controls)
    bands = []
    for raw, ends in ((kept, (none, full)), (lost, (full, none))):
        values = torch.stack(raw, dim=1).reshape(shape)
        own = _band(values[..., 0], *ends, resamples, confidence, seed)
        others = statistics.recovered(values[..., 1:], *ends)
        bands += [own, _spread(others, confidence)]
    return Curves(
        tuple(len(circuit.nodes) for circuit in circuits),
        tuple(len(circuit.edges) for circuit in circuits),
        bands[0],
        bands[2],
        bands[1],
        bands[3],
        controls,
        by,
        about=_about(runs, seed, f"by {by}; {controls} random circuits each; {confidence:.0%}"),
    )


def minimality(
    runs: Runs,
    circuit: Circuit,
    *,
    by: By = "nodes",
    controls: int = 8,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Minimality:
    """Take each node or edge out of a circuit, and look what that costs.

    That takes a pass over the batch for each of them and each control, and three more.

    Args:
        runs: Made by `record_runs`.
        circuit: Whose parts are tried.
        by: Which: "nodes" or "edges", as for `curves`.
        controls: Random parts outside of it that are put in instead, for comparison.
        resamples: Of items, for intervals.
        confidence: Of intervals.
        seed: Of both.
        progress: Called after every pass.

    Raises:
        ValueError: for a circuit of other runs, or runs that ablating does not change.
    """
    parts = parts_of(runs, by)
    inside, every = parts.within(circuit), parts.every
    outside = sorted(every - inside)
    drawn = random.Random(seed).sample(outside, min(controls, len(outside)))
    full, none = _ends(runs)
    counted = _counted(progress, len(inside) + len(drawn))
    whole = parts.ablated(every - inside)
    mine = sorted(inside)
    # Losses are shares of the same distance: differences of metrics, from a zero of their own.
    losses = [whole - counted(parts.ablated(every - inside | {one})) for one in mine]
    gains = [counted(parts.ablated(every - inside - {one})) - whole for one in drawn]
    zero, gap = torch.zeros_like(full), full - none
    loss = torch.stack(losses, dim=1) if losses else torch.zeros(len(full), 0).double()
    band = _band(loss, zero, gap, resamples, confidence, seed)
    order = band.value.argsort(descending=True)
    control = torch.stack(gains, dim=1) if gains else torch.zeros(len(full), 0).double()
    note = f"{len(drawn)} random {by} outside for comparison; {confidence:.0%}"
    return Minimality(
        tuple(mine[i] for i in order.tolist()),
        Band(band.value[order], band.low[order], band.high[order]),
        statistics.recovered(control, zero, gap),
        about=_about(runs, seed, note),
    )


def _counted(progress: Progress | None, passes: int) -> Callable[[Tensor], Tensor]:
    """Hands on what a pass gave, and says that it is done."""
    done = 0

    def count(value: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, passes)
        return value

    return count


def _about(runs: Runs, seed: int, note: str) -> About:
    return About(
        model=runs.adapter.model_id,
        n=len(runs.base.batch),
        seed=seed,
        note=f"{runs.reader.metric.name}; ablated by {_FILLS[runs.fill]}; {note} intervals over "
        "items",
    )


def _ends(runs: Runs) -> tuple[Tensor, Tensor]:
    full, none = runs.ablated(()), runs.ablated(runs.nodes)
    if not float((full - none).mean()):
        raise ValueError(
            f"{runs.reader.metric.name} is the same with every node ablated; there is nothing that "
            "a circuit could explain"
        )
    return full, none


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
