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
    n, mean, squares, total = [], [], [], []
    for kind in (harmful, ~harmful):
        counts, of = weights[:, kind], centred[:, kind].T
        n.append(counts.sum(dim=1, keepdim=True))
        mean.append(counts @ of / n[-1])
        total.append(counts @ of**2)
        squares.append((total[-1] - n[-1] * mean[-1] ** 2).clamp(min=0))
    gap = mean[0] - mean[1]
    # Below this the spread is rounding: each kind drew one value over and over.
    spread = squares[0] + squares[1] > 1e-12 * (total[0] + total[1])
    if statistic == "gap":
        found = gap
    elif statistic == "fisher":
        found = gap**2 / (squares[0] / (n[0] - 1) + squares[1] / (n[1] - 1))
    else:
        found = gap / ((squares[0] + squares[1]) / (n[0] + n[1] - 2)).sqrt()
    measured = (torch.minimum(*n) >= 2) & found.isfinite()
    return torch.where(measured if statistic == "gap" else measured & spread, found, torch.nan)
