"""A number that a prediction speaks of, with its interval and verdict."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model_adapters.organism.world import Setting
from regap_interp.intervals import Rate, percentile_interval, resample_clusters

RESAMPLES = 300


@dataclass(frozen=True)
class Measure:
    """One number that a prediction speaks of."""

    prediction: str
    what: str
    setting: Setting
    rate: Rate
    """Value, n and 95 % interval."""
    side: Literal["above", "below"]
    limit: float
    """The prediction says that the value lies on this side of it."""

    @property
    def verdict(self) -> Literal["holds", "fails", "open"]:
        """ "holds" or "fails" where the whole interval lies on one side, else "open"."""
        if math.isnan(self.rate.low) or math.isnan(self.rate.high):
            return "open"
        sign = 1 if self.side == "above" else -1
        ends = sorted(sign * (end - self.limit) for end in (self.rate.low, self.rate.high))
        return "holds" if ends[0] > 0 else "fails" if ends[1] < 0 else "open"

    def __str__(self) -> str:
        """One line of the report."""
        sign = ">" if self.side == "above" else "<"
        rate = self.rate
        return (
            f"({self.prediction}) {self.verdict:5} {self.setting:6}{self.what:48} "
            f"{rate.value:+.3f} [{rate.low:+.3f}, {rate.high:+.3f}] {sign} {self.limit:g}, "
            f"n {rate.n}"
        )


def bootstrap(
    statistic: Callable[[Tensor], float],
    clusters: Sequence[object],
    seed: int,
    *,
    resamples: int | None = None,
) -> Rate:
    """A statistic of item indices with a percentile interval over resampled clusters.

    Resamples in which it cannot be measured are left out; NaN ends where none can.
    """
    n = len(clusters)
    labels = [str(one) for one in clusters]
    resampled = resample_clusters(labels, n, resamples=resamples or RESAMPLES, seed=seed)
    draws = [statistic(drawn) for drawn in resampled]
    measured = torch.tensor([one for one in draws if not math.isnan(one)], dtype=torch.float64)
    low, high = percentile_interval(measured) if len(measured) else (math.nan, math.nan)
    return Rate(statistic(torch.arange(n)), n, low, high)
