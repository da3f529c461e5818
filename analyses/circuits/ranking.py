"""Parts by size, each with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.intervals import percentile_interval, resample_weights
from regap_interp.views.bands import AXIS, BENIGN, HARMFUL, Band
from regap_interp.views.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(View):
    """Signed sizes of some parts, the first on top. Orange raises, blue lowers."""

    names: tuple[str, ...]
    sizes: Band
    """Ends are NaN where there is no interval."""
    quantity: str
    """What is measured."""

    def _summary(self) -> str:
        return f"{self.quantity}: {self.names[0]} {float(self.sizes.value[0]):+.3g}, ..."

    def _columns(self) -> dict[str, Sequence[Any]]:
        return {
            "part": self.names,
            "value": self.sizes.value.tolist(),
            "low": self.sizes.low.tolist(),
            "high": self.sizes.high.tolist(),
        }

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, 1, (5.0, 0.8 + 0.19 * max(len(self.names), 6))

    def _draw(self, axes: list[list[Any]]) -> None:
        ax, band = axes[0][0], self.sizes
        for place, value in enumerate(band.value.tolist()):
            colour = HARMFUL if value > 0 else BENIGN
            ax.plot([value], [place], "o", ms=4, color=colour)
            ax.plot(
                torch.stack((band.low, band.high))[:, place].tolist(), [place] * 2, color=colour
            )
        ax.axvline(0, color=AXIS, linewidth=0.6)
        ax.set_yticks(range(len(self.names)), self.names, fontsize=7.5)
        ax.invert_yaxis()
        ax.set_xlabel(self.quantity)


def mean_band(
    values: Float[Tensor, "item place"], confidence: float, resamples: int, seed: int
) -> Band:
    """Means over items, with percentile intervals that resample them; NaN ends for one item."""
    means = values.mean(dim=0)
    if len(values) < 2:
        nothing = torch.full_like(means, math.nan)
        return Band(means, nothing, nothing)
    weights = resample_weights(range(len(values)), resamples=resamples, seed=seed)
    draws = (weights @ values.double()) / len(values)
    ends = torch.tensor([percentile_interval(one, confidence) for one in draws.T]).double()
    low, high = ends.reshape(-1, 2).T
    return Band(means, low, high)
