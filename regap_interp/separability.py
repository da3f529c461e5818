"""Conditional refusal separability (CRS): how far harmful and benign lie apart along the
refusal direction, as a function of a conditioning variable such as the drift coordinate.

The paper's own statistic is not public; Cohen's d within a window is this project's reading.
Adding one vector to every item changes none of these numbers at that layer, so an effect of
steering is looked for at layers after the steered one.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regap_interp import _checks
from regap_interp.intervals import percentile_interval, resample_clusters
from regap_interp.windows import SlidingWindows, Windows

_NAN = float("nan")


@dataclass(frozen=True)
class Separation:
    """How far harmful and benign items lie apart along one coordinate."""

    cohens_d: float
    """Gap of the means over the pooled standard deviation (unbiased variances); positive when
    harmful lies higher. NaN when a class is too small or neither varies."""
    auroc: float
    """Chance that a harmful item lies above a benign one, ties counted half; NaN as above."""
    fisher: float
    """Squared gap over the sum of the two unbiased variances; NaN as `cohens_d`."""
    ks: float
    """Kolmogorov-Smirnov distance, 0 to 1: the largest gap between the two distribution functions;
    NaN as `auroc`."""
    gap: float
    """Mean of harmful minus mean of benign, in the units of the coordinate."""
    n_harmful: int
    """Harmful items."""
    n_benign: int
    """Benign items."""


@dataclass(frozen=True)
class Window:
    """Separation among the items of one window of the conditioning variable."""

    separation: Separation
    low: float
    """Smallest value of the conditioning variable in the window; NaN if it is empty."""
    median: float
    """Its median, the window's place on an axis."""
    high: float
    """Its largest value."""


@dataclass(frozen=True)
class Curve:
    """CRS over windows, in rising order of the conditioning variable."""

    windows: tuple[Window, ...]

    @property
    def crs(self) -> Float[Tensor, "window"]:
        """Cohen's d of each window; NaN where a window could not be measured."""
        return torch.tensor([w.separation.cohens_d for w in self.windows], dtype=torch.float64)

    @property
    def n_missing(self) -> int:
        """Windows that could not be measured."""
        return int(self.crs.isnan().sum())

    @property
    def spearman(self) -> float:
        """Rank correlation of the windows' medians and CRS, over the measured windows."""
        return _trend([w.median for w in self.windows], self.crs.tolist())

    def ends_ratio(self, windows: int = 2) -> float:
        """Mean CRS of the last `windows` over that of the first: below 1 means collapse.

        NaN when one of these windows could not be measured, or when the first ones do not
        separate harmful from benign (mean CRS not above 0), so that nothing could collapse.
        """
        if not 1 <= windows <= len(self.windows) // 2:
            raise ValueError(
                f"windows is {windows}; the curve has {len(self.windows)}, so give 1 to "
                f"{len(self.windows) // 2}"
            )
        first = float(self.crs[:windows].mean())
        return float(self.crs[-windows:].mean()) / first if first > 0 else _NAN


@dataclass(frozen=True)
class Trend:
    """Rank correlation of CRS with the conditioning variable, with a bootstrap interval."""

    spearman: float
    """Over the windows of the data itself."""
    low: float
    """Lower end of the percentile interval; NaN if no resample could be measured."""
    high: float
    """Upper end of the percentile interval."""
    n: int
    """Items."""
    n_windows: int
    """Windows, measured or not."""
    n_missing: int
    """Windows of the data that could not be measured and are left out."""
    resamples: int
    """Bootstrap resamples the interval rests on."""
    resamples_missing: int
    """Resamples in which fewer than two windows could be measured; left out, never zero."""


def separation(
    coordinate: Float[Tensor, "item"], harmful: Bool[Tensor, "item"], *, min_per_class: int = 2
) -> Separation:
    """Separation of harmful from benign items along `coordinate`, by several measures.

    Args:
        coordinate: One number for each item, usually the refusal coordinate.
        harmful: True for harmful items.
        min_per_class: With fewer items in a class, all measures but `gap` are NaN.

    >>> import torch
    >>> from regap_interp import separation
    >>> coordinate = torch.tensor([3.0, 5.0, 1.0, 3.0])
    >>> found = separation(coordinate, torch.tensor([True, True, False, False]))
    >>> round(found.cohens_d, 3), found.auroc, found.gap
    (1.414, 0.875, 2.0)
    """
    values = _checks.samples("coordinate", coordinate)
    _check_labels(harmful, len(values))
    return _separation(values[harmful], values[~harmful], min_per_class)


def crs_curve(
    coordinate: Float[Tensor, "item"],
    harmful: Bool[Tensor, "item"],
    by: Float[Tensor, "item"],
    *,
    windows: Windows | None = None,
    min_per_class: int = 20,
) -> Curve:
    """Separation along `coordinate` within windows of `by`.

    Args:
        coordinate: Refusal coordinate of each item at the diagnostic layer.
        harmful: True for harmful items.
        by: The conditioning variable: drift coordinate, rendering level, ...
        windows: How to cut `by`; `SlidingWindows()` unless given.
        min_per_class: Windows with fewer harmful or benign items are not measured (NaN).

    >>> import torch
    >>> from regap_interp import QuantileBins, crs_curve
    >>> refusal = torch.tensor([4.0, 5.0, 0.0, 1.0, 1.0, 2.0, 0.0, 1.0])
    >>> harmful = torch.tensor([True, True, False, False] * 2)
    >>> drift = torch.tensor([0.0, 0.0, 0.1, 0.1, 1.0, 1.0, 1.1, 1.1])
    >>> curve = crs_curve(refusal, harmful, drift, windows=QuantileBins(2), min_per_class=2)
    >>> [round(value, 2) for value in curve.crs.tolist()]
    [5.66, 1.41]
    """
    values, condition = _conditioned(coordinate, harmful, by)
    cut = (windows or SlidingWindows()).split(condition)
    return Curve(
        tuple(_window(values, harmful, condition, members, min_per_class) for members in cut)
    )


def crs_trend(
    coordinate: Float[Tensor, "item"],
    harmful: Bool[Tensor, "item"],
    by: Float[Tensor, "item"],
    *,
    windows: Windows | None = None,
    min_per_class: int = 20,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Trend:
    """Spearman correlation of CRS with `by`, its interval from resampling items.

    Items are resampled, not windows: sliding windows share items. With `clusters`, whole
    clusters are (items that render the same request are not independent).

    Args:
        coordinate: As in `crs_curve`.
        harmful: As in `crs_curve`.
        by: As in `crs_curve`.
        windows: As in `crs_curve`.
        min_per_class: As in `crs_curve`.
        clusters: Cluster of each item; each item its own unless given.
        resamples: Bootstrap resamples.
        seed: The same seed gives the same interval.
        confidence: Coverage of the interval.
    """
    values, condition = _conditioned(coordinate, harmful, by)
    cut = windows or SlidingWindows()
    curve = crs_curve(values, harmful, condition, windows=cut, min_per_class=min_per_class)
    labels = range(len(values)) if clusters is None else clusters
    # Sums are all that Cohen's d needs; centred, so that squares do not swallow the variance.
    moments = _moments(values - values.mean(), harmful)
    draws = []
    for drawn in resample_clusters(labels, len(values), resamples=resamples, seed=seed):
        drawn_by, drawn_moments = condition[drawn], moments[drawn]
        medians, crs = [], []
        for members in cut.split(drawn_by):
            crs.append(_d_from_moments(drawn_moments[members].sum(dim=0), min_per_class))
            medians.append(_median(drawn_by[members]) if len(members) else _NAN)
        draws.append(_trend(medians, crs))
    measured = torch.tensor([d for d in draws if not math.isnan(d)], dtype=torch.float64)
    low, high = percentile_interval(measured, confidence) if len(measured) else (_NAN, _NAN)
    return Trend(
        spearman=curve.spearman,
        low=low,
        high=high,
        n=len(values),
        n_windows=len(curve.windows),
        n_missing=curve.n_missing,
        resamples=len(measured),
        resamples_missing=len(draws) - len(measured),
    )


def auroc(harmful: Float[Tensor, "harmful"], benign: Float[Tensor, "benign"]) -> float:
    """Chance that a harmful value exceeds a benign one, ties counted half; NaN if one is empty.

    >>> import torch
    >>> from regap_interp import auroc
    >>> auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    n, m = len(harmful), len(benign)
    if not n or not m:
        return _NAN
    ranks = average_ranks(torch.cat([harmful, benign]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def spearman(first: Float[Tensor, "item"], second: Float[Tensor, "item"]) -> float:
    """Rank correlation, ties at their average rank; NaN if one side is constant or n < 2.

    >>> import torch
    >>> from regap_interp import spearman
    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 4.0, 1.0]))
    -1.0
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values against {len(second)}; they must be paired")
    if len(first) < 2:
        return _NAN
    x, y = (ranks - ranks.mean() for ranks in map(average_ranks, (first, second)))
    scale = ((x @ x) * (y @ y)).sqrt()
    return float((x @ y / scale).clamp(-1, 1)) if scale > 0 else _NAN


def average_ranks(values: Float[Tensor, "item"]) -> Float[Tensor, "item"]:
    """Ranks from 1, equal values sharing the mean of theirs, float64."""
    _, group, sizes = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).to(torch.float64)
    return (last - (sizes - 1) / 2)[group]


def _conditioned(coordinate: Tensor, harmful: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    values, condition = _checks.samples("coordinate", coordinate), _checks.samples("by", by)
    _check_labels(harmful, len(values))
    if len(condition) != len(values):
        raise ValueError(f"by has {len(condition)} values for {len(values)} items")
    return values, condition


def _check_labels(harmful: Tensor, n: int) -> None:
    if harmful.dtype != torch.bool or harmful.shape != (n,):
        raise ValueError(
            f"harmful is {harmful.dtype} of shape {tuple(harmful.shape)}; expected one bool for "
            f"each of the {n} items"
        )


def _window(
    values: Tensor, harmful: Tensor, by: Tensor, members: Tensor, min_per_class: int
) -> Window:
    inside, split, place = values[members], harmful[members], by[members]
    low, median, high = (
        (float(place.min()), _median(place), float(place.max()))
        if len(members)
        else (_NAN, _NAN, _NAN)
    )
    return Window(_separation(inside[split], inside[~split], min_per_class), low, median, high)


def _separation(harmful: Tensor, benign: Tensor, min_per_class: int) -> Separation:
    enough = min(len(harmful), len(benign)) >= min_per_class
    d = _cohens_d(harmful, benign, min_per_class)
    gap = float(harmful.mean() - benign.mean())
    return Separation(
        cohens_d=d,
        auroc=auroc(harmful, benign) if enough else _NAN,
        fisher=_NAN if math.isnan(d) else gap**2 / float(harmful.var() + benign.var()),
        ks=_ks(harmful, benign) if enough else _NAN,
        gap=gap,
        n_harmful=len(harmful),
        n_benign=len(benign),
    )


def _ks(harmful: Tensor, benign: Tensor) -> float:
    if not len(harmful) or not len(benign):
        return _NAN
    places = torch.cat([harmful, benign])
    below = [
        torch.searchsorted(one.sort().values, places, right=True).double() / len(one)
        for one in (harmful, benign)
    ]
    return float((below[0] - below[1]).abs().max())


def _cohens_d(harmful: Tensor, benign: Tensor, min_per_class: int) -> float:
    values = torch.cat([harmful, benign])
    if not len(values):
        return _NAN
    labels = torch.arange(len(values)) < len(harmful)
    moments = _moments(values - values.mean(), labels).sum(dim=0)
    return _d_from_moments(moments, min_per_class)


def _moments(
    values: Float[Tensor, "item"], harmful: Bool[Tensor, "item"]
) -> Float[Tensor, "item 6"]:
    """For each item 1, x and x² in the columns of its class, and zeros in the other's."""
    powers = torch.stack([torch.ones_like(values), values, values**2], dim=1)
    of_class = harmful.unsqueeze(1).to(values)
    return torch.cat([powers * of_class, powers * (1 - of_class)], dim=1)


def _d_from_moments(sums: Float[Tensor, "6"], min_per_class: int) -> float:
    n, sum_n, squares_n, m, sum_m, squares_m = sums.tolist()
    if min(n, m) < max(min_per_class, 2):
        return _NAN
    within = (squares_n - sum_n**2 / n) + (squares_m - sum_m**2 / m)
    # Below this the spread is rounding: the class values are equal.
    if within <= 1e-12 * (squares_n + squares_m):
        return _NAN
    return (sum_n / n - sum_m / m) / math.sqrt(within / (n + m - 2))


def _median(values: Float[Tensor, "item"]) -> float:
    """Half-way between the middle two of an even number."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    ordered = values.double().sort().values
    return float(ordered[low] + ordered[high]) / 2


def _trend(medians: Sequence[float], crs: Sequence[float]) -> float:
    measured = [(x, y) for x, y in zip(medians, crs, strict=True) if not math.isnan(y)]
    if len(measured) < 2:
        return _NAN
    x, y = torch.tensor(measured, dtype=torch.float64).T
    return spearman(x, y)
