"""Separability along refusal, and attack success, in windows of drift."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from analyses.geometry.estimate import Estimate
from analyses.geometry.lines import Line, LinePanel, LinesView, single
from analyses.geometry.result import Result, Source, intervals
from regap_interp.separability import (
    Curve,
    Separation,
    Trend,
)

Statistic = Literal["cohens_d", "auroc", "fisher", "gap", "ks"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
NAMES: dict[Statistic, str] = {
    "cohens_d": "CRS (Cohen's d)",
    "auroc": "CRS (AUROC)",
    "fisher": "CRS (Fisher ratio)",
    "gap": "CRS (gap of the means)",
    "ks": "CRS (Kolmogorov-Smirnov distance)",
}
"""Of CRS in words."""


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

    def view(self) -> LinesView:
        """CRS, ASR where it is known, and how many requests of each kind a window holds."""
        windows = self.curve.windows
        medians = [one.median for one in windows]
        label = self.name or "requests"
        shown = {NAMES[self.statistic]: self.crs}
        if self.asr is not None:
            shown["ASR, harmful answered"] = self.asr
        panels = [
            LinePanel(quantity, [Line(label, medians, band.band, self.n)])
            for quantity, band in shown.items()
        ]
        counts = [
            Line(f"{kind} in the window", medians, single(torch.tensor(values).double()), self.n)
            for kind, values in (
                ("harmful", [one.separation.n_harmful for one in windows]),
                ("benign", [one.separation.n_benign for one in windows]),
            )
        ]
        least = f"requests in the window (fewer than {self.min_per_class}: not measured)"
        most = max(one.band.value.max().item() for one in counts)
        room = (0.0, 1.08 * max(most, self.min_per_class))
        panels.append(LinePanel(least, counts, level=self.min_per_class, limits=room))
        return LinesView(
            panels,
            "median drift of the window",
            title=f"separability along refusal over drift{self.name and ': '}{self.name}",
            about=self._about(
                self.n,
                f"{self.n_harmful} harmful; trend {_written(self.trend)}"
                + (f", of ASR {_written(self.asr_trend)}" if self.asr_trend else "")
                + f"; {intervals(self.confidence, self.resamples)}",
            ),
        )

    def _measured(self, one: Separation, name: Statistic) -> float:
        return measured(one, name, self.min_per_class)


def measured(one: Separation, name: Statistic, least: int) -> float:
    """A statistic; NaN where a class has fewer than `least` requests."""
    enough = min(one.n_harmful, one.n_benign) >= least
    return float(getattr(one, name)) if enough else math.nan


def _written(trend: Trend) -> str:
    return f"{trend.spearman:.2f} [{trend.low:.2f}, {trend.high:.2f}]"
