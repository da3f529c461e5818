"""Means of items as weights: the data's own, resampled ones, halves, and what nulls are made of.

A mean is a row of weights, and lengths and cosines of means follow from the items' inner products,
whatever the width of the model.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.geometry import estimate
from analyses.geometry.requests import Requests
from regap_interp.intervals import resample_weights


class Weights:
    """All weights of a decomposition, drawn once and used at every layer."""

    def __init__(
        self,
        requests: Requests,
        kinds: Sequence[str],
        pairs: str,
        *,
        resamples: int,
        permutations: int,
        splits: int,
        seed: int,
    ) -> None:
        self.pairs = [requests.pairs(kind, pairs) for kind in kinds]
        self.text = requests.rows(modality="text")
        draw = torch.Generator().manual_seed(seed)
        again = resample_weights(requests.cluster, resamples=resamples, seed=seed)
        # One sign a cluster for all modalities: drifts that share twins are alike by that alone.
        signs = estimate.sign_flips(requests.cluster, permutations, draw)
        balanced = pairs == "balanced"

        self.drift: list[Tensor] = []
        """Of each modality's pairs: the data, then the resamples."""
        self.flipped: list[Tensor] = []
        """With signs drawn."""
        self.noise: list[Tensor] = []
        """With signs drawn, of the differences less their mean."""
        self.drift_halves: list[tuple[Tensor, Tensor]] = []
        for media, _ in self.pairs:
            label = requests.harmful[media]
            ones = torch.ones(1, len(media), dtype=torch.float64)
            self.drift.append(_mean(torch.cat([ones, again[:, media]]), label, balanced))
            own = self.drift[-1][:1]
            self.flipped.append(own * signs[:, media])
            self.noise.append(self.flipped[-1] - self.flipped[-1].sum(dim=1, keepdim=True) * own)
            first, second = _halves([requests.cluster[row] for row in media], splits, draw)
            self.drift_halves.append(
                (_mean(first, label, balanced), _mean(second, label, balanced))
            )

        label = requests.harmful[self.text]
        names = [requests.cluster[row] for row in self.text]
        ones = torch.ones(1, len(self.text), dtype=torch.float64)
        self.refusal = _contrast(torch.cat([ones, again[:, self.text]]), label)
        """Of the text requests: the data, then the resamples."""
        dealt = estimate.shuffled_labels(label, names, permutations, draw)
        self.dealt = _within(_contrast(ones.expand(permutations, -1), dealt), label)
        """With labels dealt out anew, of the states less the mean of their own kind."""
        first, second = _halves(names, splits, draw)
        self.refusal_halves = _contrast(first, label), _contrast(second, label)


def inner(
    first: Float[Tensor, "draw item"],
    second: Float[Tensor, "draw other"],
    products: Float[Tensor, "item other"],
) -> Float[Tensor, "draw"]:
    """Inner product of two means, draw by draw."""
    return ((first @ products) * second).sum(dim=1)


def length(
    weights: Float[Tensor, "draw item"], products: Float[Tensor, "item item"]
) -> Float[Tensor, "draw"]:
    """Length of a mean, draw by draw, from the items' inner products."""
    return inner(weights, weights, products).clamp(min=0).sqrt()


def alike(
    first: Float[Tensor, "draw item"],
    second: Float[Tensor, "draw item"],
    products: Float[Tensor, "item item"],
) -> Float[Tensor, "draw"]:
    """Cosine of two means of the same items, draw by draw."""
    along = inner(first, second, products)
    return (along / length(first, products) / length(second, products)).clamp(-1, 1)


def _halves(clusters: Sequence[str], splits: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """1 for the items of a half, 0 for the others, and the reverse; NaN for too few clusters."""
    first = estimate.halves(clusters, splits, draw)
    if estimate.numbered(clusters)[1] < 4:
        first = torch.full_like(first, torch.nan)
    return first, 1 - first


def _mean(weights: Tensor, label: Tensor, balanced: bool) -> Float[Tensor, "draw item"]:
    """Weights that add up to 1, or for each kind to a half; NaN where nothing was drawn."""
    if not balanced:
        return weights / weights.sum(dim=1, keepdim=True)
    up, down = weights * label.double(), weights * (~label).double()
    return (up / up.sum(dim=1, keepdim=True) + down / down.sum(dim=1, keepdim=True)) / 2


def _contrast(weights: Tensor, label: Tensor) -> Float[Tensor, "draw item"]:
    """Mean of harmful minus mean of harmless; NaN where one was not drawn."""
    up, down = weights * label.double(), weights * (~label).double()
    return up / up.sum(dim=1, keepdim=True) - down / down.sum(dim=1, keepdim=True)


def _within(weights: Tensor, label: Tensor) -> Float[Tensor, "draw item"]:
    """The same weights, of items less the mean of their own kind."""
    found = weights.clone()
    for kind in (label, ~label):
        found[:, kind] -= weights[:, kind].mean(dim=1, keepdim=True)
    return found
