"""What circuits do when the rest of the model, or they themselves, are really ablated."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.circuit import Circuit
from analyses.circuits.outcomes import Curves, Minimality
from analyses.circuits.parts import By, parts_of
from analyses.circuits.passes import Passes
from analyses.circuits.runs import Runs
from analyses.patching import statistics
from analyses.resuming import Partial, Progress
from regap_interp.intervals import percentile_interval
from regap_interp.views import About
from regap_interp.views.bands import Band

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
    progress: Progress | bool = False,
    checkpoint: str | Path | None = None,
    resume: Partial | None = None,
) -> Curves:
    """Ablate the rest of each circuit, and each circuit, really; and random circuits like them.

    That takes `2 * len(circuits) * (1 + controls) + 2` passes over the batch. With `by="edges"` a
    pass costs more: attention of a layer is computed again for every set of senders that heads in
    it are cut off from.

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
        progress: Called after every pass with (requests run, in all), counted once for each pass;
            True draws a bar on standard error.
        checkpoint: A file that what is finished is written to as the passes go. If it is there,
            they go on from it.
        resume: `partial` of what Ctrl-C raised in the same call.

    Raises:
        ValueError: for no circuits, circuits of other runs, runs that ablating does not change, or
            what was finished belongs to another call.
        ArtefactError: the checkpoint is damaged or of another make.
        Interrupted: on Ctrl-C; it carries what is finished.
    """
    if not circuits:
        raise ValueError("there are no circuits; give some, such as [scores.greedy(10)]")
    _check(controls, resamples, confidence)
    parts, draw = parts_of(runs, by), random.Random(seed)
    inside = [parts.within(circuit) for circuit in circuits]
    tried = [
        some
        for mine in inside
        for some in (mine, *(parts.alike(mine, draw) for _ in range(controls)))
    ]
    passes = Passes(
        "curves",
        parts,
        [without for some in tried for without in (parts.every - some, parts.removable(some))],
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    full, none = _ends(runs)
    raw = passes.run().reshape(-1, len(circuits), 1 + controls, 2)
    bands = []
    for values, ends in ((raw[..., 0], (none, full)), (raw[..., 1], (full, none))):
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
    progress: Progress | bool = False,
    checkpoint: str | Path | None = None,
    resume: Partial | None = None,
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
        progress: As for `curves`.
        checkpoint: As for `curves`.
        resume: As for `curves`.

    Raises:
        ValueError: for a circuit of other runs, runs that ablating does not change, or what was
            finished belongs to another call.
        ArtefactError: the checkpoint is damaged or of another make.
        Interrupted: on Ctrl-C; it carries what is finished.
    """
    _check(controls, resamples, confidence)
    parts = parts_of(runs, by)
    inside, every = parts.within(circuit), parts.every
    outside = sorted(every - inside)
    drawn = random.Random(seed).sample(outside, min(controls, len(outside)))
    mine = sorted(inside)
    rest = every - inside
    passes = Passes(
        "minimality",
        parts,
        [rest, *(rest | {one} for one in mine), *(rest - {one} for one in drawn)],
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    full, none = _ends(runs)
    whole, *others = passes.run().split([1, len(mine), len(drawn)], dim=1)
    # Losses are shares of the same distance: differences of metrics, from a zero of their own.
    loss, control = whole - others[0], others[1] - whole
    zero, gap = torch.zeros_like(full), full - none
    band = _band(loss, zero, gap, resamples, confidence, seed)
    order = band.value.argsort(descending=True)
    note = f"{len(drawn)} random {by} outside for comparison; {confidence:.0%}"
    return Minimality(
        tuple(mine[i] for i in order.tolist()),
        Band(band.value[order], band.low[order], band.high[order]),
        statistics.recovered(control, zero, gap),
        about=_about(runs, seed, note),
    )


def _check(controls: int, resamples: int, confidence: float) -> None:
    if controls < 0 or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"controls={controls}, resamples={resamples}, confidence={confidence}; give 0 and more "
            "controls, a resample at least, and a confidence between 0 and 1"
        )


def _about(runs: Runs, seed: int, note: str) -> About:
    return About(
        model=runs.adapter.model_id,
        n=len(runs.base.batch),
        seed=seed,
        note=f"{runs.reader.name}; ablated by {_FILLS[runs.fill]}; {note} intervals over items",
    )


def _ends(runs: Runs) -> tuple[Tensor, Tensor]:
    full, none = runs.ablated(()), runs.ablated(runs.nodes)
    gap = float((full - none).mean())
    if gap == 0 or not math.isfinite(gap):
        raise ValueError(
            f"{runs.reader.name} changes by {gap} with every node ablated; there is nothing that a "
            "circuit could explain"
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
