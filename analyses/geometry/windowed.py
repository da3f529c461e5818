"""Separability along refusal, and attack success, in windows of drift."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from analyses.geometry.estimate import Estimate
from analyses.geometry.result import Result, Source
from regap_interp.separability import (
    Curve,
    Separation,
    Trend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Statistic = Literal["cohens_d", "auroc", "fisher", "gap", "ks"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)


@dataclass(frozen=True, eq=False)
class Windowed(Result):
    """Windows in rising order of drift; sliding ones share items."""

    source: Source
    seed: int
    name: str
    """Such as the modality."""
    statistic: Statistic
    """What is called CRS here."""
    min_per_class: int
    """Windows with fewer requests of a class are not measured."""
    curve: Curve
    """Separation in each window, by every statistic."""
    crs: Estimate
    """The statistic in each window; its interval resamples requests, the window's edges stay."""
    asr: Estimate | None
    """Share of the harmful requests that were answered, likewise; None where it is not known."""
    trend: Trend
    """Rank correlation of drift and CRS; its interval resamples requests and cuts them anew."""
    asr_trend: Trend | None
    """Of drift and ASR."""
    n: int
    n_harmful: int
    confidence: float
    resamples: int

    def columns(self) -> dict[str, list[Any]]:
        """One row for each window."""
        windows = self.curve.windows
        found: dict[str, list[Any]] = {
            name: [getattr(one, name) for one in windows] for name in ("low", "median", "high")
        }
        for name in ("n_harmful", "n_benign"):
            found[name] = [getattr(one.separation, name) for one in windows]
        both = zip(found["n_harmful"], found["n_benign"], strict=True)
        found["share_harmful"] = [up / (up + down) if up + down else math.nan for up, down in both]
        for name in STATISTICS:
            found[name] = [self._measured(one.separation, name) for one in windows]
        found |= self.crs.columns("crs")
        return found | (self.asr.columns("asr") if self.asr is not None else {})

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        plain = ("name", "statistic", "min_per_class", "n", "n_harmful", "confidence", "resamples")
        trends = {"trend": vars(self.trend)}
        if self.asr_trend is not None:
            trends["asr_trend"] = vars(self.asr_trend)
        return {**super().about(), **{one: getattr(self, one) for one in plain}, **trends}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """CRS, and ASR where it is known, over the windows' median drift."""
        from analyses.geometry import drawing

        ax = drawing.axes(ax)
        medians = [one.median for one in self.curve.windows]
        drawing.line(ax, medians, self.crs, f"{self.name}: CRS ({self.statistic})", 0)
        up = "CRS" if self.asr is None else "CRS, ASR"
        if self.asr is not None:
            drawing.line(ax, medians, self.asr, f"{self.name}: ASR", 1)
        return drawing.finish(ax, self, "median drift of the window", up, zero=True)

    def _measured(self, one: Separation, name: Statistic) -> float:
        return measured(one, name, self.min_per_class)


def measured(one: Separation, name: Statistic, least: int) -> float:
    """A statistic; NaN where a class has fewer than `least` requests."""
    enough = min(one.n_harmful, one.n_benign) >= least
    return float(getattr(one, name)) if enough else math.nan
