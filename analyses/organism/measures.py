"""A number that a prediction speaks of, with its interval and verdict."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from model_adapters.organism.world import Setting
from regap_interp import intervals
from regap_interp.intervals import Rate

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
    """`intervals.bootstrap` with as many resamples as the report takes."""
    labels = [str(one) for one in clusters]
    return intervals.bootstrap(statistic, labels, resamples=resamples or RESAMPLES, seed=seed)
