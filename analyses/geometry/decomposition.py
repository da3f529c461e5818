"""Drift taken apart, layer by layer and modality by modality: how long it is, how much of it lies
along refusal, how alike the drifts of two modalities are.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.geometry import estimate
from analyses.geometry.estimate import Estimate
from analyses.geometry.lines import Line, LinePanel, LinesView
from analyses.geometry.mixtures import Weights, alike, inner, length
from analyses.geometry.result import Result, Source, intervals
from analyses.geometry.states import States, check_text
from regap_interp.views import HeatMap

_SHOWN = {
    "cosine": "cosine of drift and refusal",
    "norm": "length of the drift",
    "parallel": "part along refusal",
    "orthogonal": "length of the rest",
    "stability": "cosine of the drifts of two halves",
}
"""What numbers are."""


@dataclass(frozen=True, eq=False)
class Decomposition(Result):
    """Drift against refusal. Lengths are in units of the residual stream.

    Intervals resample clusters of items, refusal and all drifts together, and are those of what
    endless items would give. A mean of few items in many dimensions is too long and its cosines are
    too small, so a value may lie outside of its interval: take more items then.
    """

    source: Source
    seed: int
    layers: tuple[int, ...]
    modalities: tuple[str, ...]
    pairs: str
    n_pairs: tuple[int, ...]
    """Of each modality."""
    n_harmful: int
    """Harmful text requests behind the refusal direction."""
    n_harmless: int
    norm: Estimate
    """Length of the drift, [layer, modality]."""
    cosine: Estimate
    """Of drift and refusal."""
    parallel: Estimate
    """The drift's signed part along refusal: how far it moves the refusal coordinate."""
    orthogonal: Estimate
    """Length of the rest."""
    stability: Estimate
    """Cosine of the drifts of two random halves of the pairs: mean over splits, and the middle
    share of the splits. NaN with fewer than 4 clusters."""
    norm_p: Float[Tensor, "layer modality"]
    """Chance of a drift as long if media and twins were alike: the sign of the differences of each
    cluster is drawn."""
    cosine_p: Float[Tensor, "layer modality"]
    """Chance of a cosine as far from 0 if text told nothing of harm: states less the mean of their
    own kind, labels dealt out anew. Large where states keep to few dimensions, however well the
    cosine is known."""
    refusal_norm: Estimate
    """Length of the refusal direction, [layer]."""
    refusal_stability: Estimate
    """As `stability`, [layer]."""
    between: Estimate
    """Cosine of the drifts of two modalities, [layer, modality, modality]; 1 on the diagonal."""
    between_p: Float[Tensor, "layer modality modality"]
    """Chance of one as far from 0 if neither modality drifted: signs as for `norm_p`, of the
    differences less their mean. Shared twins are allowed for. NaN on the diagonal."""
    confidence: float
    resamples: int
    permutations: int
    splits: int

    @property
    def n(self) -> int:
        """Pairs of all modalities."""
        return sum(self.n_pairs)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each layer and modality."""
        rows = [(layer, kind) for layer in self.layers for kind in range(len(self.modalities))]
        found: dict[str, list[Any]] = {
            "layer": [layer for layer, _ in rows],
            "modality": [self.modalities[kind] for _, kind in rows],
            "n_pairs": [self.n_pairs[kind] for _, kind in rows],
        }
        for name in ("norm", "cosine", "parallel", "orthogonal", "stability"):
            found |= getattr(self, name).columns(name)
            if name in ("norm", "cosine"):
                found[f"{name}_p"] = getattr(self, f"{name}_p").flatten().tolist()
        for index, kind in enumerate(self.modalities):
            found |= self.between[:, :, index].columns(f"cosine_with_{kind}")
        return found

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        counts = ("n_harmful", "n_harmless", "resamples", "permutations", "splits")
        plain = ("pairs", "confidence", *counts)
        refusal = {
            **self.refusal_norm.columns("norm"),
            **self.refusal_stability.columns("stability"),
        }
        return {
            **super().about(),
            **{name: getattr(self, name) for name in plain},
            "refusal": {"layer": list(self.layers), **refusal},
        }

    def view(self) -> LinesView:
        """All numbers over layers, a line for each modality."""
        panels = [
            LinePanel(
                quantity,
                [
                    Line(kind, self.layers, getattr(self, name)[:, index].band, self.n_pairs[index])
                    for index, kind in enumerate(self.modalities)
                ],
            )
            for name, quantity in _SHOWN.items()
        ]
        both, n = itertools.combinations(enumerate(self.modalities), 2), self.n_pairs
        between = [
            Line(f"{one} and {other}", self.layers, self.between[:, i, j].band, n[i] + n[j])
            for (i, one), (j, other) in both
        ]
        if between:
            panels.append(LinePanel("cosine of two modalities' drifts", between))
        return LinesView(
            panels,
            "layer",
            whole=True,
            title="drift taken apart",
            about=self._about(
                self.n,
                f"{self.pairs} pairs; refusal of {self.n_harmful} harmful and {self.n_harmless} "
                f"harmless texts; {intervals(self.confidence, self.resamples)}, of halves the "
                f"middle {100 * self.confidence:g} % of {self.splits} splits",
            ),
        )

    def heat(self, name: str = "cosine") -> HeatMap:
        """One number as a map, layer by modality.

        Args:
            name: "norm", "cosine", "parallel", "orthogonal" or "stability".

        Raises:
            ValueError: it is none of them.
        """
        if name not in _SHOWN:
            raise ValueError(f"no number {name!r}; there are {', '.join(_SHOWN)}")
        return HeatMap(
            getattr(self, name).value,
            self.layers,
            self.modalities,
            column_axis="modality",
            quantity=_SHOWN[name],
            title=f"drift taken apart: {_SHOWN[name]}",
            about=self._about(self.n, f"{self.pairs} pairs"),
        )


def decompose(
    states: States,
    *,
    modalities: Sequence[str] | None = None,
    pairs: str = "harmful",
    resamples: int = 1000,
    permutations: int = 1000,
    splits: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
) -> Decomposition:
    """Take the drift of every modality apart at every layer of `states`.

    Args:
        states: Of text requests of both kinds, media and their twins.
        modalities: All that have requests, by default.
        pairs: "harmful", "benign", "all", or "balanced": each kind weighs the same.
        resamples: For the intervals.
        permutations: For the p-values.
        splits: Into halves.
        confidence: Of the intervals, and the share of the splits.
        seed: Of everything drawn.

    Raises:
        ValueError: Too few requests of a kind, or nothing to draw.
    """
    if min(resamples, permutations, splits) < 1:
        raise ValueError(
            f"resamples is {resamples}, permutations {permutations}, splits {splits}; draw at "
            "least 1, better 1000"
        )
    estimate.check_draws(resamples, confidence)
    kinds = states.requests.media if modalities is None else tuple(modalities)
    if not kinds:
        raise ValueError("all requests are text; drift needs media with text twins")
    check_text({one: states.requests.rows(modality="text", harmful=one) for one in (True, False)})
    weights = Weights(
        states.requests,
        kinds,
        pairs,
        resamples=resamples,
        permutations=permutations,
        splits=splits,
        seed=seed,
    )
    found = [_layer(states, layer, weights, confidence) for layer in states.layers]
    numbers: dict[str, Any] = {
        name: estimate.stacked([one[name] for one in found])
        if isinstance(found[0][name], Estimate)
        else torch.stack([one[name] for one in found])
        for name in found[0]
    }
    text = states.requests.harmful[weights.text]
    return Decomposition(
        source=states.source,
        seed=seed,
        layers=states.layers,
        modalities=kinds,
        pairs=pairs,
        n_pairs=tuple(len(media) for media, _ in weights.pairs),
        n_harmful=int(text.sum()),
        n_harmless=int((~text).sum()),
        confidence=confidence,
        resamples=resamples,
        permutations=permutations,
        splits=splits,
        **numbers,
    )


def _layer(states: States, layer: int, weights: Weights, confidence: float) -> dict[str, Any]:
    """Every field of one layer."""
    here = states.at(layer)
    differences = [here[media] - here[twins] for media, twins in weights.pairs]
    text = here[weights.text] - here[weights.text].mean(dim=0)
    own = text @ text.T
    refusal = length(weights.refusal, own)
    dealt = length(weights.dealt, own)
    kinds = [
        _against_refusal(weights, index, one, text, refusal, dealt)
        for index, one in enumerate(differences)
    ]

    def interval(name: str, **ends: float) -> Estimate:
        drawn = torch.stack([kind[name] for kind in kinds], dim=1)
        return estimate.basic(drawn[0], drawn[1:], confidence, **ends)

    def test(name: str) -> Tensor:
        seen = torch.stack([kind[name][0] for kind in kinds]).abs()
        null = torch.stack([kind[f"{name}_null"] for kind in kinds], dim=1).abs()
        return estimate.p_value(seen, null)

    halves = torch.stack([kind["halves"] for kind in kinds], dim=1)
    first, second = weights.refusal_halves
    refusal_halves = alike(first, second, own)
    return {
        "norm": interval("norm", least=0.0),
        "cosine": interval("cosine", least=-1.0, most=1.0),
        "parallel": interval("parallel"),
        "orthogonal": interval("orthogonal", least=0.0),
        "stability": estimate.percentile(halves.mean(dim=0), halves, confidence),
        "norm_p": test("norm"),
        "cosine_p": test("cosine"),
        "refusal_norm": estimate.basic(refusal[0], refusal[1:], confidence, least=0.0),
        "refusal_stability": estimate.percentile(refusal_halves.mean(), refusal_halves, confidence),
        **_between(weights, differences, kinds, confidence),
    }


def _against_refusal(
    weights: Weights,
    index: int,
    differences: Tensor,
    text: Tensor,
    refusal: Tensor,
    dealt: Tensor,
) -> dict[str, Tensor]:
    """One modality, draw by draw; `refusal` and `dealt` are lengths."""
    drift, own = weights.drift[index], differences @ differences.T
    norm = length(drift, own)
    cross = differences @ text.T
    parallel = inner(drift, weights.refusal, cross) / refusal
    null = inner(drift[:1].expand(len(weights.dealt), -1), weights.dealt, cross)
    first, second = weights.drift_halves[index]
    return {
        "norm": norm,
        "parallel": parallel,
        "cosine": (parallel / norm).clamp(-1, 1),
        "orthogonal": (norm**2 - parallel**2).clamp(min=0).sqrt(),
        "norm_null": length(weights.flipped[index], own),
        "noise": length(weights.noise[index], own),
        "cosine_null": null / dealt / norm[0],
        "halves": alike(first, second, own),
    }


def _between(
    weights: Weights,
    differences: Sequence[Tensor],
    kinds: Sequence[Mapping[str, Tensor]],
    confidence: float,
) -> dict[str, Estimate | Tensor]:
    """Every two modalities; `kinds` holds their lengths."""
    size = len(differences)
    seen = torch.ones(len(weights.refusal), size, size, dtype=torch.float64)
    null = torch.full((len(weights.dealt), size, size), torch.nan, dtype=torch.float64)
    for one, other in itertools.combinations(range(size), 2):
        cross = differences[one] @ differences[other].T
        for made, of, lengths in ((seen, weights.drift, "norm"), (null, weights.noise, "noise")):
            found = inner(of[one], of[other], cross) / kinds[one][lengths] / kinds[other][lengths]
            made[:, one, other] = made[:, other, one] = found.clamp(-1, 1)
    return {
        "between": estimate.basic(seen[0], seen[1:], confidence, least=-1.0, most=1.0),
        "between_p": estimate.p_value(seen[0].abs(), null.abs()),
    }
