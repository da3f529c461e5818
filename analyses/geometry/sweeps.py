"""What a sweep of strengths has measured, cell by cell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analyses.geometry.cells import Cell
from analyses.geometry.lines import Line, LinePanel, LinesView
from analyses.geometry.result import Result, Source, intervals
from regap_interp.intervals import Rate
from regap_interp.views import Band, HeatMap

_SHOWN = {
    "refused.harmful": "harmful requests refused",
    "refused.benign": "benign requests refused",
    "opens.harmful": "first token refuses, harmful",
    "opens.benign": "first token refuses, benign",
    "log_odds.harmful": "log-odds of refusing, harmful (nats)",
    "right.benign": "benign requests answered right",
    "kl.benign": "next-token KL from the bare model, benign (nats)",
    "degenerate.harmful": "broken answers, harmful",
    "degenerate.benign": "broken answers, benign",
}
"""Outcomes that are drawn, in this order."""
_SHARES = ("refused", "opens", "right", "degenerate")
_CONTROLS = ("random", "placebo")
"""What `control_arms` names its arms by, with numbers behind."""


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
        """The one of an arm, layer and strength.

        Raises:
            ValueError: it was not measured.
        """
        for one in self.cells:
            if (one.arm, one.layer, one.strength) == (arm, layer, strength):
                return one
        raise ValueError(f"no cell {(arm, layer, strength)}; arms are {', '.join(self.arms)}")

    def columns(self) -> dict[str, list[Any]]:
        """One row for each cell and number: a separation at a layer that was read, the mean of
        Cohen's d behind the steered one ("cohens_d_behind"), or an outcome."""
        names = ("arm", "layer", "strength", "measure", "read_at", "value", "low", "high", "n")
        rows: list[tuple[Any, ...]] = []
        for cell in self.cells:
            where = (cell.arm, cell.layer, cell.strength)
            for layer, one in cell.separations.items():
                n = one.n_harmful + one.n_benign
                for measure in ("cohens_d", "auroc", "fisher", "gap", "ks"):
                    value, ends = getattr(one, measure), (math.nan, math.nan)
                    if measure == "cohens_d":
                        ends = (cell.cohens_d[layer].low, cell.cohens_d[layer].high)
                    rows.append((*where, measure, layer, value, *ends, n))
            for layer, rate in cell.behind.items():
                row = (cell.arm, layer, cell.strength, "cohens_d_behind", None)
                rows.append((*row, rate.value, rate.low, rate.high, rate.n))
            for measure, rate in cell.outcomes.items():
                rows.append((*where, measure, None, rate.value, rate.low, rate.high, rate.n))
        return {name: [row[place] for row in rows] for place, name in enumerate(names)}

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        plain = ("n_harmful", "n_benign", "modalities", "judge", "confidence", "resamples")
        return {**super().about(), **{name: getattr(self, name) for name in plain}}

    @property
    def layers(self) -> tuple[int, ...]:
        """Steered layers."""
        return tuple(sorted({one.layer for one in self.cells if one.layer is not None}))

    def view(self, layer: int | None = None) -> LinesView:
        """Separability, refusal, utility and divergence over strengths, a line for each arm.

        Args:
            layer: The steered one; by default where the first arm gains most separability behind
                it, or in a reverse test loses most (see `heat` for all of them).

        Raises:
            ValueError: it was not steered.
        """
        at = self._best() if layer is None else layer
        if at not in self.layers:
            raise ValueError(f"layer is {layer}; steered were {list(self.layers)}")
        chosen = [one for one in self.cells[1:] if one.layer == at]
        panels = []
        if at in self.bare.behind:
            rates = {id(one): one.behind[at] for one in (self.bare, *chosen)}
            quantity = f"mean Cohen's d behind layer {at}"
            panels.append(LinePanel(quantity, self._lines(chosen, rates)))
        wanted = [one for one in _SHOWN if one in self.bare.outcomes]
        if self.judge:
            wanted = [one for one in wanted if not one.startswith("opens")]
        for name in wanted:
            rates = {id(one): one.outcomes[name] for one in (self.bare, *chosen)}
            share = name.partition(".")[0] in _SHARES
            limits = (-0.03, 1.03) if share else None
            panels.append(LinePanel(_SHOWN[name], self._lines(chosen, rates), limits=limits))
        others = f" ({len(self.layers)} layers were steered)" if len(self.layers) > 1 else ""
        return LinesView(
            panels,
            f"strength {'added' if self._added else 'subtracted'}",
            controls=_CONTROLS,
            title=f"one strength for all, steered at layer {at}{others}",
            about=self._about(
                self.n,
                f"{self.n_harmful} harmful, {self.n_benign} benign: {', '.join(self.modalities)}"
                + (f"; refusals judged by {self.judge}" if self.judge else "")
                + f"; {intervals(self.confidence, self.resamples)}",
            ),
        )

    def heat(self, arm: str | None = None, *, layer: int | None = None) -> HeatMap:
        """A map over strengths of what one arm gains in Cohen's d over the bare model.

        Args:
            arm: The first by default.
            layer: Rows are the layers read, for this steered layer; by default rows are the steered
                layers, and gains means over the layers read behind each.

        Raises:
            ValueError: the arm or the layer was not measured.
        """
        name = self.arms[0] if arm is None else arm
        chosen = [one for one in self.cells[1:] if one.arm == name and layer in (None, one.layer)]
        if not chosen:
            raise ValueError(
                f"no cell of arm {name!r} at layer {layer}; arms are {', '.join(self.arms)}, "
                f"layers {list(self.layers)}"
            )
        rows = sorted({one.layer or 0 for one in chosen}) if layer is None else list(self.read_at)
        strengths = sorted({one.strength for one in chosen})
        values = torch.full((len(rows), len(strengths)), math.nan, dtype=torch.float64)
        for one in chosen:
            column = strengths.index(one.strength)
            assert one.layer is not None  # only the bare model has none
            if layer is not None:
                for row, at in enumerate(rows):
                    bare = self.bare.cohens_d[at].value
                    values[row, column] = one.cohens_d[at].value - bare
            elif one.layer in one.behind:
                gain = one.behind[one.layer].value - self.bare.behind[one.layer].value
                values[rows.index(one.layer), column] = gain
        where = "behind the steered layer" if layer is None else f"steered at layer {layer}"
        return HeatMap(
            values,
            rows,
            [f"{one:g}" for one in strengths],
            row_axis="layer read" if layer is not None else "steered layer",
            column_axis=f"strength of {name}",
            quantity="gain of Cohen's d over the bare model",
            title=f"separability under {name}, {where}",
            about=self._about(self.n, f"{self.n_harmful} harmful, {self.n_benign} benign"),
        )

    @property
    def _added(self) -> bool:
        """Whether all strengths are below 0, as in a reverse test."""
        return all(one.strength < 0 for one in self.cells[1:])

    def _best(self) -> int:
        gains: dict[int, float] = {}
        for one in self.cells[1:]:
            if one.arm == self.arms[0] and one.layer is not None:
                found = -math.inf
                if one.layer in one.behind:
                    found = one.behind[one.layer].value - self.bare.behind[one.layer].value
                    found = -math.inf if math.isnan(found) else found * (-1 if self._added else 1)
                gains[one.layer] = max(found, gains.get(one.layer, -math.inf))
        return max(gains, key=lambda layer: gains[layer])

    def _lines(self, chosen: Sequence[Cell], rates: Mapping[int, Rate]) -> list[Line]:
        """The bare model is every arm's strength 0."""
        lines = []
        sign = -1 if self._added else 1
        for arm in dict.fromkeys(one.arm for one in chosen):
            own = [self.bare, *(one for one in chosen if one.arm == arm)]
            own.sort(key=lambda one: sign * one.strength)
            found = [rates[id(one)] for one in own]
            band = Band(
                *(
                    torch.tensor([getattr(one, part) for one in found], dtype=torch.float64)
                    for part in ("value", "low", "high")
                )
            )
            kind, _, number = arm.rpartition(" ")
            group = kind if kind in _CONTROLS and number.isdigit() else ""
            lines.append(Line(arm, [sign * one.strength for one in own], band, found[0].n, group))
        return lines
