"""How far harmful and benign lie apart along refusal, and how many harmful requests are answered,
as drift grows."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.geometry import estimate
from analyses.geometry.moments import separations
from analyses.geometry.result import Source
from analyses.geometry.windowed import STATISTICS, Statistic, Windowed, measured
from regap_interp.intervals import (
    interval_of_measured,
    resample_clusters,
    resample_weights,
    wilson,
)
from regap_interp.separability import (
    Trend,
    crs_curve,
    crs_trend,
    separation,
    spearman,
)
from regap_interp.windows import SlidingWindows, Windows


def separability_windows(
    refusal: Float[Tensor, "item"],
    drift: Float[Tensor, "item"],
    harmful: Bool[Tensor, "item"],
    *,
    source: Source,
    answered: Bool[Tensor, "item"] | None = None,
    statistic: Statistic = "cohens_d",
    windows: Windows | None = None,
    min_per_class: int = 20,
    clusters: Sequence[str] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    name: str = "",
) -> Windowed:
    """Conditional refusal separability over windows of drift; see also `Plane.windows`.

    Args:
        refusal: Refusal coordinate of each request.
        drift: Its drift coordinate.
        harmful: Whether it should be refused.
        source: Where the coordinates come from.
        answered: Whether it was answered all the same (unsafe, in the judge's eyes); only harmful
            requests are looked at.
        statistic: What CRS is: Cohen's d, AUROC, Fisher ratio, gap of the means, or KS distance.
        windows: `SlidingWindows()` unless given; `QuantileBins` and `FixedBins` are disjoint.
        min_per_class: Windows with fewer requests of a class are NaN.
        clusters: Of each request; resampled whole.
        resamples: Bootstrap draws.
        confidence: Of the intervals.
        seed: Of the draws.
        name: Such as the modality.

    Raises:
        ValueError: Values that are not finite, or do not fit together.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic is {statistic!r}; expected one of {', '.join(STATISTICS)}")
    if min_per_class < 2:
        raise ValueError(f"min_per_class is {min_per_class}; a spread needs at least 2")
    estimate.check_draws(resamples, confidence)
    cut = windows or SlidingWindows()
    curve = crs_curve(refusal, harmful, drift, windows=cut, min_per_class=min_per_class)
    if answered is not None and answered.shape != harmful.shape:
        raise ValueError(f"answered has {len(answered)} entries for {len(harmful)} requests")
    labels = tuple(map(str, range(len(drift)))) if clusters is None else tuple(clusters)
    again = resample_weights(labels, resamples=resamples, seed=seed)
    members = cut.split(drift.double())

    def crs_of(rows: Tensor, least: int = min_per_class) -> float:
        found = separation(refusal[rows], harmful[rows], min_per_class=least)
        return measured(found, statistic, least)

    def asr_of(rows: Tensor) -> float:
        bad = rows[harmful[rows]]
        if answered is None or len(bad) < min_per_class:
            return math.nan
        return float(answered[bad].double().mean())

    drawn = [
        separations(statistic, again[:, one], refusal[one][None].double(), harmful[one])[:, 0]
        if statistic in ("cohens_d", "fisher", "gap")
        else _draws(functools.partial(crs_of, least=2), again[:, one], one)
        for one in members
    ]
    seen = torch.tensor([crs_of(one) for one in members], dtype=torch.float64)
    asr = asr_trend = None
    if answered is not None:
        shares = torch.tensor([asr_of(one) for one in members], dtype=torch.float64)
        resampled = [_shares(again[:, one], harmful[one], answered[one]) for one in members]
        asr = estimate.percentile(shares, torch.stack(resampled, dim=1), confidence)
        for place in torch.nonzero((shares == 0) | (shares == 1)).flatten().tolist():
            rows = members[place][harmful[members[place]]].tolist()
            n = len({labels[row] for row in rows})  # resamples of what never varies tell nothing
            rate = wilson(int(shares[place]) * n, n, confidence=confidence)
            asr.low[place], asr.high[place] = rate.low, rate.high
        asr_trend = _trend(asr_of, drift, labels, cut, resamples, seed, confidence)
    return Windowed(
        source=source,
        seed=seed,
        name=name,
        statistic=statistic,
        min_per_class=min_per_class,
        curve=curve,
        crs=estimate.percentile(seen, torch.stack(drawn, dim=1), confidence),
        asr=asr,
        trend=crs_trend(
            refusal,
            harmful,
            drift,
            windows=cut,
            min_per_class=min_per_class,
            clusters=labels,
            resamples=resamples,
            seed=seed,
            confidence=confidence,
        )
        if statistic == "cohens_d"
        else _trend(crs_of, drift, labels, cut, resamples, seed, confidence),
        asr_trend=asr_trend,
        n=len(drift),
        n_harmful=int(harmful.sum()),
        confidence=confidence,
        resamples=resamples,
    )


def _draws(
    statistic: Callable[[Tensor], float], weights: Tensor, rows: Tensor
) -> Float[Tensor, "draw"]:
    """The statistic of the rows of each resample that fall inside a window."""
    found = [statistic(rows.repeat_interleave(counts.long())) for counts in weights]
    return torch.tensor(found, dtype=torch.float64)


def _shares(weights: Tensor, harmful: Tensor, answered: Tensor) -> Float[Tensor, "draw"]:
    """Share of harmful requests answered in each resample; NaN where none was drawn."""
    counts = weights[:, harmful]
    return counts @ answered[harmful].double() / counts.sum(dim=1)


def _trend(
    statistic: Callable[[Tensor], float],
    drift: Tensor,
    clusters: Sequence[str],
    cut: Windows,
    resamples: int,
    seed: int,
    confidence: float,
) -> Trend:
    def places(rows: Tensor) -> tuple[float, list[float]]:
        by = drift[rows].double()
        inside = cut.split(by)
        values = [statistic(rows[one]) for one in inside]
        placed = [
            (float(by[one].quantile(0.5)), value)
            for one, value in zip(inside, values, strict=True)
            if not math.isnan(value)
        ]
        if len(placed) < 2:
            return math.nan, values
        x, y = torch.tensor(placed, dtype=torch.float64).T
        return spearman(x, y), values

    value, seen = places(torch.arange(len(drift)))
    draws = torch.tensor(
        [
            places(rows)[0]
            for rows in resample_clusters(clusters, len(drift), resamples=resamples, seed=seed)
        ],
        dtype=torch.float64,
    )
    low, high = interval_of_measured(draws, confidence)
    missing = int(draws.isnan().sum())
    return Trend(
        spearman=value,
        low=low,
        high=high,
        n=len(drift),
        n_windows=len(seen),
        n_missing=sum(map(math.isnan, seen)),
        resamples=len(draws) - missing,
        resamples_missing=missing,
    )
