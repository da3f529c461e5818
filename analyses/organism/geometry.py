"""The collapse in numbers, per modality: correction by the drift, its cost, its controls, CRS.

The steered layer, the strength and the diagnostic layer are chosen on the calibration split and
then measured, unchanged, on the report split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.organism.answers import Graded, Tick, ask, encode_samples, refusal_starts
from analyses.organism.directions import LayerGeometry, all_layers
from model_adapters import Adapter
from model_adapters.organism.world import Pair, Setting, Split, draw_samples
from regap_interp.directions import random_orthogonal
from regap_interp.graph import Graph, add
from regap_interp.intervals import Rate, cluster_bootstrap
from regap_interp.separability import Curve, Trend, crs_curve, crs_trend
from regap_interp.windows import FixedBins

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
MAX_COSINE = 0.35
"""Layers where drift lies closer to refusal than this are not steered at."""
SHORTLIST = 8
RANDOM_DIRECTIONS = 10
LEVEL_BINS = FixedBins.equal(0.0, 1.0, 10)


class Choice(NamedTuple):
    """What the calibration split decided for one modality."""

    layer: int
    strength: float
    crs_layer: int


@dataclass(frozen=True, eq=False)
class Geometry:
    """One modality on one split, under the calibration split's choice.

    Harmful and benign requests have rendering levels uniform in [0, 1]; the same requests are
    asked bare, under the correction, and under each control.
    """

    choice: Choice
    cosine: float
    """Of refusal and drift (harmful pairs) at the steered layer."""
    cosine_balanced: float
    """The same with drift from harmful and benign pairs."""
    bare_harmful: Graded
    bare_benign: Graded
    harmful: Graded
    """Under the correction."""
    benign: Graded
    """Under the correction."""
    controls: tuple[Graded, ...]
    """Harmful requests under each random direction of the correction's length."""
    crs: Curve
    """Cohen's d of the refusal coordinate at the diagnostic layer in ten bins of the level."""
    crs_trend: Trend

    def benign_right_fall(self, *, seed: int = 0) -> Rate:
        """Share of benign requests that the correction stops being answered word for word.

        Paired by request; the interval resamples (verb, object) pairs.
        """
        lost = self.bare_benign.right.double() - self.benign.right.double()
        return cluster_bootstrap(lost, self.benign.clusters, seed=seed)

    def random_control_rise(self, *, seed: int = 0) -> Rate:
        """Mean rise of harmful refusals over the random directions; intervals as above."""
        refused = torch.stack([one.refused.double() for one in self.controls]).mean(0)
        rise = refused - self.bare_harmful.refused.double()
        return cluster_bootstrap(rise, self.harmful.clusters, seed=seed)


def searched_layers(n_layers: int) -> range:
    """Where a correction is looked for: from a third to two thirds of the depth."""
    return range(n_layers // 3, n_layers * 2 // 3)


def items_in_all(n: int, n_layers: int) -> int:
    """Requests that `choose` and `measure_geometry` run for one modality."""
    searched = (len(searched_layers(n_layers)) * len(STRENGTHS) + SHORTLIST) * 2 * (n // 4)
    return searched + n * (4 + RANDOM_DIRECTIONS) + _crs_items(n, 0.5) + _crs_items(n, 1.0)


def choose(
    adapter: Adapter,
    setting: Setting,
    directions: Sequence[LayerGeometry],
    *,
    n: int,
    seed: int,
    tick: Tick | None = None,
) -> Choice:
    """Layer, strength and diagnostic layer for one modality, from the calibration split.

    The layer (one of `searched_layers`) and the strength maximise harmful refusals minus benign
    refusals over `n // 4` requests of each kind: all of them by the first word of the answer, then
    the best `SHORTLIST` by whole answers. Ties go to the weakest strength, then to the later
    layer. The diagnostic layer is the later one that keeps the smallest share of its CRS
    from the clearest fifth of the rendering levels to the roughest.

    Raises:
        ValueError: drift is too close to refusal at every searched layer, or no later layer
            separates clear harmful from clear benign requests.
    """
    samples = {
        harmful: draw_samples("calibration", setting, n // 4, seed=seed, harmful=harmful)
        for harmful in (True, False)
    }
    batches = {harmful: encode_samples(adapter, drawn) for harmful, drawn in samples.items()}

    def rank(scores: Mapping[tuple[int, float], float], where: tuple[int, float]) -> Any:
        layer, strength = where
        return scores[where], -strength, layer

    opened: dict[tuple[int, float], float] = {}
    for layer in searched_layers(adapter.n_layers):
        if abs(directions[layer].cosine(setting)) > MAX_COSINE:
            continue
        vector = directions[layer].correction(setting).vector
        for strength in STRENGTHS:
            graph = subtract(layer, vector, strength)
            harmful, benign = (
                float(refusal_starts(adapter, batches[kind], graph, tick=tick).double().mean())
                for kind in (True, False)
            )
            opened[layer, strength] = harmful - benign
    if not opened:
        raise ValueError(
            f"{setting}: |cos(refusal, drift)| is above {MAX_COSINE} at every searched layer, "
            "so an orthogonal correction has nowhere to act"
        )
    answered: dict[tuple[int, float], float] = {}
    for where in sorted(opened, key=lambda one: rank(opened, one), reverse=True)[:SHORTLIST]:
        layer, strength = where
        graph = subtract(layer, directions[layer].correction(setting).vector, strength)
        harmful, benign = (
            ask(adapter, samples[kind], batches=batches[kind], graph=graph, tick=tick)
            .rate("refused")
            .value
            for kind in (True, False)
        )
        answered[where] = harmful - benign
    layer, strength = max(answered, key=lambda one: rank(answered, one))
    later = range(layer + 1, adapter.n_layers)
    seen = _conditioned(adapter, setting, "calibration", n=_crs_items(n, 0.5), seed=seed, tick=tick)

    ratios: dict[int, float] = {}
    for at in later:
        coordinate = directions[at].refusal.coordinate(seen.states[at])
        curve = crs_curve(coordinate, seen.harmful, seen.level, windows=LEVEL_BINS)
        if not math.isnan(ratio := curve.ends_ratio()):
            ratios[at] = ratio
    if not ratios:
        raise ValueError(f"{setting}: no layer after {layer} separates clear harmful from benign")
    return Choice(layer, strength, min(ratios, key=lambda at: ratios[at]))


def measure_geometry(
    adapter: Adapter,
    setting: Setting,
    directions: Sequence[LayerGeometry],
    choice: Choice,
    *,
    n: int,
    seed: int,
    split: Split = "report",
    tick: Tick | None = None,
) -> Geometry:
    """`choice` measured on a split: what the correction saves, what it costs, and CRS."""
    at = directions[choice.layer]
    correction = at.correction(setting)
    graph = subtract(choice.layer, correction.vector, choice.strength)
    harmful = draw_samples(split, setting, n, seed=seed, harmful=True)
    benign = draw_samples(split, setting, n, seed=seed, harmful=False)
    harmful_batches, benign_batches = (
        encode_samples(adapter, harmful),
        encode_samples(adapter, benign),
    )

    def ask_harmful(under: Graph | None) -> Graded:
        return ask(adapter, harmful, batches=harmful_batches, graph=under, tick=tick)

    def ask_benign(under: Graph | None) -> Graded:
        return ask(adapter, benign, batches=benign_batches, graph=under, tick=tick)

    controls = random_orthogonal(
        RANDOM_DIRECTIONS, like=correction.vector, against=[at.refusal.vector], seed=seed
    )
    seen = _conditioned(adapter, setting, split, n=_crs_items(n, 1.0), seed=seed, tick=tick)
    diagnostic = directions[choice.crs_layer].refusal
    coordinate = diagnostic.coordinate(seen.states[choice.crs_layer])
    return Geometry(
        choice=choice,
        cosine=at.cosine(setting),
        cosine_balanced=at.cosine(setting, balanced=True),
        bare_harmful=ask_harmful(None),
        bare_benign=ask_benign(None),
        harmful=ask_harmful(graph),
        benign=ask_benign(graph),
        controls=tuple(
            ask_harmful(subtract(choice.layer, control, choice.strength)) for control in controls
        ),
        crs=crs_curve(coordinate, seen.harmful, seen.level, windows=LEVEL_BINS),
        crs_trend=crs_trend(
            coordinate,
            seen.harmful,
            seen.level,
            windows=LEVEL_BINS,
            clusters=seen.pairs,
            resamples=500,
            seed=seed,
        ),
    )


def subtract(layer: int, vector: Float[Tensor, "d_model"], strength: float) -> Graph:
    """`strength * vector` taken from the stream after a layer, at every prompt position."""
    return Graph(add("resid_post", layer, vector, strength=-strength))


def _crs_items(n: int, share: float) -> int:
    """Items of both kinds for a CRS curve, about 50 of each kind in a bin at least."""
    return max(1000, int(4 * n * share))


class _Conditioned(NamedTuple):
    """Samples of both kinds with the states that CRS is read from."""

    states: Float[Tensor, "layer item d_model"]
    harmful: Bool[Tensor, "item"]
    level: Float[Tensor, "item"]
    pairs: list[Pair]


def _conditioned(
    adapter: Adapter, setting: Setting, split: Split, *, n: int, seed: int, tick: Tick | None
) -> _Conditioned:
    """`n // 2` requests of each kind, rendering level uniform in [0, 1]."""
    samples = [
        sample
        for harmful in (True, False)
        for sample in draw_samples(split, setting, n // 2, seed=seed + 1, harmful=harmful)
    ]
    return _Conditioned(
        states=all_layers(adapter, samples, tick=tick),
        harmful=torch.tensor([sample.harmful for sample in samples]),
        level=torch.tensor([sample.level for sample in samples], dtype=torch.float64),
        pairs=[sample.pair for sample in samples],
    )
