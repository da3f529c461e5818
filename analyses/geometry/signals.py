"""How well the self-rectification signals tell harmful from benign, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analyses.geometry.estimate import Estimate
from analyses.geometry.lines import Line, LinePanel, LinesView
from analyses.geometry.result import Result, Source, intervals


@dataclass(frozen=True, eq=False)
class SignalAreas(Result):
    """How well each signal tells harmful from benign, read after every later layer."""

    source: Source
    seed: int
    layers: tuple[int, ...]
    """Those after the corrected one."""
    areas: Mapping[str, Estimate]
    """AUROC, [layer]: of the three signals, and of the coordinate "uncorrected"; with log-odds also
    of "log_odds_gain" (corrected minus drifted)."""
    n_harmful: int
    n_benign: int
    confidence: float
    resamples: int

    @property
    def n(self) -> int:
        """Requests of both kinds."""
        return self.n_harmful + self.n_benign

    def best(self, signal: str) -> int:
        """The layer where a signal's AUROC is largest."""
        return self.layers[int(self.areas[signal].value.nan_to_num(-1.0).argmax())]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each signal and layer."""
        found: dict[str, list[Any]] = {"signal": [], "layer": []}
        found |= {name: [] for name in ("auroc", "auroc_low", "auroc_high")}
        for name, area in self.areas.items():
            found["signal"] += [name] * len(self.layers)
            found["layer"] += self.layers
            for key, values in area.columns("auroc").items():
                found[key] += values
        return found

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        plain = ("n_harmful", "n_benign", "confidence", "resamples")
        return {**super().about(), **{name: getattr(self, name) for name in plain}}

    def view(self) -> LinesView:
        """AUROC over layers, a line for each signal."""
        lines = [Line(name, self.layers, area.band, self.n) for name, area in self.areas.items()]
        return LinesView(
            [LinePanel("AUROC, harmful against benign", lines, level=0.5, limits=(-0.03, 1.03))],
            "layer",
            whole=True,
            title="how well each signal tells harmful from benign",
            about=self._about(
                self.n,
                f"{self.n_harmful} harmful, {self.n_benign} benign; "
                + intervals(self.confidence, self.resamples),
            ),
        )
