"""The collapse in numbers, per modality: correction by the drift, its cost, its controls, CRS.

The steered layer, the strength and the diagnostic layer are chosen on the calibration split and
then measured, unchanged, on the report split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.organism.answers import Tick, ask, encode_samples, refusal_starts
from analyses.organism.directions import LayerGeometry, all_layers
from model_adapters import Adapter
from model_adapters.organism.world import Pair, Setting, Split, draw_samples
from regap_interp.intervals import Rate
from regap_interp.separability import Curve, Trend, crs_curve, crs_trend
from regap_interp.steering import Steer, random_orthogonal
from regap_interp.windows import FixedBins

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
MAX_COSINE = 0.35
"""Layers where drift lies closer to refusal than this are not steered at."""
RANDOM_DIRECTIONS = 10
LEVEL_BINS = FixedBins.equal(0.0, 1.0, 10)


class Choice(NamedTuple):
    """What the calibration split decided for one modality."""

    layer: int
    strength: float
    crs_layer: int


@dataclass(frozen=True, eq=False)
class Geometry:
    """One modality on the report split, under the calibration split's choice."""

    choice: Choice
    cosine: float
    """Of refusal and drift (harmful pairs) at the steered layer."""
    cosine_balanced: float
    """The same with drift from harmful and benign pairs."""
    harmful_refused: Rate
    """Under the correction; rendering level uniform in [0, 1], as in the next four."""
    benign_refused: Rate
    benign_right: Rate
    """Benign requests answered word for word, under the correction."""
    bare_harmful_refused: Rate
    bare_benign_right: Rate
    random_refused: tuple[Rate, ...]
    """Harmful requests refused under each random direction of the correction's length."""
    crs: Curve
    """Cohen's d of the refusal coordinate at the diagnostic layer in ten bins of the level."""
    crs_trend: Trend

    @property
    def benign_right_fall(self) -> float:
        """Share of benign requests that the correction stops being answered right."""
        return self.bare_benign_right.value - self.benign_right.value

    @property
    def random_control_rise(self) -> float:
        """Mean rise of harmful refusals over the random directions."""
        mean = sum(rate.value for rate in self.random_refused) / len(self.random_refused)
        return mean - self.bare_harmful_refused.value


def items_in_all(n: int, layers: int) -> int:
    """Requests that `choose` and `measure_geometry` run for one modality."""
    searched = (layers // 2 - 2) * len(STRENGTHS) * 2 * (n // 4)
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

    The layer (in the second quarter of the depth up to the middle) and the strength maximise
    harmful refusals minus benign refusals over `n // 4` requests of each kind; ties go to the
    weakest strength, then to the later layer. The diagnostic layer is the later one whose CRS
    falls most, from the clearest fifth of the rendering levels to the roughest.

    Raises:
        ValueError: drift is too close to refusal at every layer.
    """
    batches = {
        harmful: encode_samples(
            adapter, draw_samples("calibration", setting, n // 4, seed=seed, harmful=harmful)
        )
        for harmful in (True, False)
    }
    scores: dict[tuple[int, float], float] = {}
    for layer in range(2, adapter.n_layers // 2):
        if abs(directions[layer].cosine(setting)) > MAX_COSINE:
            continue
        vector = directions[layer].correction(setting).vector
        for strength in STRENGTHS:
            refused = {
                harmful: refusal_starts(
                    adapter, batches[harmful], Steer(layer, vector, strength), tick=tick
                )
                for harmful in (True, False)
            }
            share = {harmful: float(r.double().mean()) for harmful, r in refused.items()}
            scores[layer, strength] = share[True] - share[False]
    if not scores:
        raise ValueError(
            f"{setting}: |cos(refusal, drift)| is above {MAX_COSINE} at every layer of the first "
            "half, so an orthogonal correction has nowhere to act"
        )
    layer, strength = max(scores, key=lambda key: (scores[key], -key[1], key[0]))
    later = range(layer + 1, adapter.n_layers)
    seen = _conditioned(adapter, setting, "calibration", n=_crs_items(n, 0.5), seed=seed, tick=tick)

    def collapse(at: int) -> float:
        coordinate = directions[at].refusal.coordinate(seen.states[at])
        return crs_curve(coordinate, seen.harmful, seen.level, windows=LEVEL_BINS).ends_ratio()

    return Choice(layer, strength, min(later, key=collapse))


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
    steer = Steer(choice.layer, correction.vector, choice.strength)
    harmful = draw_samples(split, setting, n, seed=seed, harmful=True)
    benign = draw_samples(split, setting, n, seed=seed, harmful=False)
    harmful_batches, benign_batches = (
        encode_samples(adapter, harmful),
        encode_samples(adapter, benign),
    )

    def refused(steering: Steer | None) -> Rate:
        graded = ask(adapter, harmful, batches=harmful_batches, steer=steering, tick=tick)
        return graded.rate("refused")

    corrected = ask(adapter, benign, batches=benign_batches, steer=steer, tick=tick)
    bare = ask(adapter, benign, batches=benign_batches, tick=tick)
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
        harmful_refused=refused(steer),
        benign_refused=corrected.rate("refused"),
        benign_right=corrected.rate("right"),
        bare_harmful_refused=refused(None),
        bare_benign_right=bare.rate("right"),
        random_refused=tuple(
            refused(Steer(choice.layer, control, choice.strength)) for control in controls
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


def _crs_items(n: int, share: float) -> int:
    """Items of both kinds for a CRS curve: never so few that a bin holds under 20 of a kind."""
    return max(600, int(4 * n * share))


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
