"""Separation of resampled requests from sums of values and squares, all resamples at once."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Moment = Literal["cohens_d", "fisher", "gap"]


def separations(
    statistic: Moment,
    weights: Float[Tensor, "draw item"],
    values: Float[Tensor, "read item"],
    harmful: Bool[Tensor, "item"],
) -> Float[Tensor, "draw read"]:
    """A statistic of every resample and read; NaN with fewer than 2 requests of a kind."""
    centred = values - values.mean(dim=1, keepdim=True)
    n, mean, squares = [], [], []
    for kind in (harmful, ~harmful):
        counts, of = weights[:, kind], centred[:, kind].T
        n.append(counts.sum(dim=1, keepdim=True))
        mean.append(counts @ of / n[-1])
        squares.append((counts @ of**2 - n[-1] * mean[-1] ** 2).clamp(min=0))
    gap = mean[0] - mean[1]
    if statistic == "gap":
        found = gap
    elif statistic == "fisher":
        found = gap**2 / (squares[0] / (n[0] - 1) + squares[1] / (n[1] - 1))
    else:
        found = gap / ((squares[0] + squares[1]) / (n[0] + n[1] - 2)).sqrt()
    return torch.where((torch.minimum(*n) >= 2) & found.isfinite(), found, torch.nan)
