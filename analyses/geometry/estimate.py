"""Numbers with intervals, and the random weights that intervals and nulls are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.intervals import interval_of_measured
from regap_interp.views import Band


@dataclass(frozen=True, eq=False)
class Estimate:
    """Numbers, each with an interval; NaN where nothing could be measured.

    >>> import torch
    >>> from analyses.geometry import Estimate
    >>> found = Estimate(*(torch.tensor(ends) for ends in ([0.5, 0.9], [0.25, 0.75], [0.75, 1.0])))
    >>> found[1].columns("auroc")["auroc_low"]
    [0.75]
    """

    value: Float[Tensor, "*place"]
    low: Float[Tensor, "*place"]
    high: Float[Tensor, "*place"]

    def __getitem__(self, place: Any) -> "Estimate":
        """Those at some places."""
        return Estimate(self.value[place], self.low[place], self.high[place])

    @property
    def band(self) -> Band:
        """The same for a figure; of one axis."""
        return Band(self.value, self.low, self.high)

    def columns(self, name: str) -> dict[str, list[float]]:
        """Three columns of a table, places in row-major order."""
        parts = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: part.flatten().tolist() for key, part in parts.items()}


def percentile(
    value: Float[Tensor, "*place"], draws: Float[Tensor, "draw *place"], confidence: float
) -> Estimate:
    """With the interval between two quantiles of the draws."""
    flat = draws.reshape(len(draws), -1)
    ends = [interval_of_measured(one, confidence) for one in flat.T]
    found = torch.tensor(ends, dtype=torch.float64).T.reshape(2, *value.shape)
    low, high = torch.where(value.isnan(), torch.nan, found)
    return Estimate(value, low, high)


def basic(
    value: Float[Tensor, "*place"],
    draws: Float[Tensor, "draw *place"],
    confidence: float,
    *,
    least: float = -float("inf"),
    most: float = float("inf"),
) -> Estimate:
    """With the interval of what endless items would give, kept between `least` and `most`.

    Resampling moves a biased number (the length of a mean of few items in many dimensions is too
    large) about as far as sampling has moved it; the ends are set against that ("basic" bootstrap).
    """
    found = percentile(value, draws, confidence)
    low, high = 2 * value - found.high, 2 * value - found.low
    return Estimate(value, low.clamp(least, most), high.clamp(least, most))


def stacked(estimates: Sequence[Estimate], dim: int = 0) -> Estimate:
    """Estimates of several places as one."""
    parts = [[getattr(one, name) for one in estimates] for name in ("value", "low", "high")]
    return Estimate(*(torch.stack(part, dim=dim) for part in parts))


def p_value(seen: Float[Tensor, "*place"], null: Float[Tensor, "draw *place"]) -> Tensor:
    """Share of the null draws that are as large, the data counted as one of them."""
    # Rounding must not make a draw that repeats the data smaller than it.
    as_large = (null >= seen * (1 - 1e-12)).sum(dim=0)
    found = (1 + as_large.double()) / (1 + len(null))
    return torch.where(seen.isnan() | null.isnan().any(dim=0), torch.nan, found)


def check_draws(resamples: int, confidence: float) -> None:
    """Refuse intervals that cannot be drawn, before anything is measured for them.

    Raises:
        ValueError: telling what was given.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"resamples is {resamples}, confidence {confidence}; expected at least 1 draw (better "
            "1000) and a share between 0 and 1"
        )


def numbered(clusters: Sequence[str]) -> tuple[Tensor, int]:
    """The number of each item's cluster, in the order they come, and how many there are."""
    number = {label: index for index, label in enumerate(dict.fromkeys(clusters))}
    return torch.tensor([number[label] for label in clusters]), len(number)


def sign_flips(
    clusters: Sequence[str], draws: int, generator: torch.Generator
) -> Float[Tensor, "draw item"]:
    """+1 or -1 for each item, the same within a cluster."""
    index, count = numbered(clusters)
    return (torch.randint(2, (draws, count), generator=generator) * 2.0 - 1).double()[:, index]


def halves(
    clusters: Sequence[str], draws: int, generator: torch.Generator
) -> Float[Tensor, "draw item"]:
    """1 for the items of a random half of the clusters, 0 for the others."""
    index, count = numbered(clusters)
    order = torch.rand(draws, count, generator=generator).argsort(dim=1).argsort(dim=1)
    return (order < count // 2).double()[:, index]


def shuffled_labels(
    labels: Tensor, clusters: Sequence[str], draws: int, generator: torch.Generator
) -> Tensor:
    """Labels dealt out anew, `[draw, item]`: among clusters where each has one, else items."""
    index, count = numbered(clusters)
    share = torch.zeros(count).index_add_(0, index, labels.float()) / index.bincount()
    whole = bool(((share == 0) | (share == 1)).all())
    dealt = (share == 1) if whole else labels
    order = torch.rand(draws, len(dealt), generator=generator).argsort(dim=1)
    return dealt[order][:, index] if whole else dealt[order]
