"""What a sweep of strengths has measured, cell by cell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from analyses.geometry.result import Result, Source
from regap_interp.intervals import Rate
from regap_interp.separability import Separation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cell:
    """One arm at one layer and strength. What was not measured is None."""

    arm: str
    layer: int | None
    """None for the model as it is."""
    strength: float
    """How much was subtracted; below 0 it was added."""
    separations: Mapping[int, Separation]
    """Of the refusal coordinate at every layer read, in units of the direction's length."""
    outcomes: Mapping[str, Rate]
    """Means over requests, intervals over clusters: "opens.harmful", "opens.benign" (the likeliest
    next token refuses), "log_odds.harmful", "log_odds.benign", "kl.benign" (next token, bare to
    steered, nats); of whole answers "refused.harmful", "refused.benign", "degenerate.harmful",
    "degenerate.benign", "right.benign"."""

    def downstream(self, layers: Sequence[int] | None = None) -> float:
        """Mean Cohen's d over the layers behind the steered one; NaN if any is."""
        chosen = [
            one.cohens_d
            for layer, one in self.separations.items()
            if (self.layer is None or layer > self.layer) and (layers is None or layer in layers)
        ]
        return sum(chosen) / len(chosen) if chosen else math.nan


@dataclass(frozen=True, eq=False)
class Sweep(Result):
    """The bare model first, then every arm at every layer and strength."""

    source: Source
    seed: int
    cells: tuple[Cell, ...]
    read_at: tuple[int, ...]
    n_harmful: int
    n_benign: int
    modalities: tuple[str, ...]
    judge: str
    """What said "refused"; empty where no answers were generated."""
    confidence: float
    resamples: int

    @property
    def n(self) -> int:
        """Requests."""
        return self.n_harmful + self.n_benign

    @property
    def bare(self) -> Cell:
        """The model as it is."""
        return self.cells[0]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names, without the bare model."""
        return tuple(dict.fromkeys(one.arm for one in self.cells[1:]))

    def cell(self, arm: str, layer: int, strength: float) -> Cell:
        """One of them.

        Raises:
            ValueError: it was not measured.
        """
        for one in self.cells:
            if (one.arm, one.layer, one.strength) == (arm, layer, strength):
                return one
        raise ValueError(f"no cell {(arm, layer, strength)}; arms are {', '.join(self.arms)}")

    def columns(self) -> dict[str, list[Any]]:
        """One row for each cell and number: a separation at a layer, or an outcome."""
        names = ("arm", "layer", "strength", "measure", "read_at", "value", "low", "high", "n")
        rows: list[tuple[Any, ...]] = []
        for cell in self.cells:
            where = (cell.arm, cell.layer, cell.strength)
            for layer, one in cell.separations.items():
                n = one.n_harmful + one.n_benign
                for measure in ("cohens_d", "auroc", "fisher", "gap", "ks"):
                    value = getattr(one, measure)
                    rows.append((*where, measure, layer, value, math.nan, math.nan, n))
            for measure, rate in cell.outcomes.items():
                rows.append((*where, measure, None, rate.value, rate.low, rate.high, rate.n))
        return {name: [row[place] for row in rows] for place, name in enumerate(names)}

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        plain = ("n_harmful", "n_benign", "modalities", "judge", "confidence", "resamples")
        return {**super().about(), **{name: getattr(self, name) for name in plain}}

    def plot(self, ax: "Axes | None" = None, *, arm: str | None = None) -> "Axes":
        """Map of one arm: gain of mean downstream Cohen's d over the bare model."""
        from analyses.geometry import drawing

        name = arm or self.arms[0]
        chosen = [one for one in self.cells if one.arm == name]
        layers = sorted({one.layer for one in chosen if one.layer is not None})
        strengths = sorted({one.strength for one in chosen})
        values = torch.full((len(layers), len(strengths)), math.nan, dtype=torch.float64)
        for one in chosen:
            if one.layer is not None:
                later = [layer for layer in self.read_at if layer > one.layer]
                gain = one.downstream() - self.bare.downstream(later)
                values[layers.index(one.layer), strengths.index(one.strength)] = gain
        ax = drawing.axes(ax)
        drawing.heat(ax, values, layers, strengths, "gain of downstream Cohen's d")
        return drawing.finish(ax, self, f"strength of {name}", "layer", legend=False)
