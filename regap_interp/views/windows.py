"""Separability and attack success over windows of drift."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from regap_interp.views.about import label
from regap_interp.views.bands import AXIS, Band, draw_band, need_some, styles
from regap_interp.views.view import View


@dataclass(frozen=True, eq=False)
class WindowCurve:
    """CRS and ASR over sliding windows of the drift coordinate, for one modality and arm."""

    modality: str
    """The panel, such as "image"."""
    arm: str
    """The line in it, such as "undefended" or "ReGap"."""
    drift: Float[Tensor, "place"]
    """Median drift coordinate of each window, rising, in the unit of `PlanePoints.drift`."""
    crs: Band
    """Cohen's d between harmful and benign along refusal, within each window."""
    asr: Band
    """Share of the harmful items of each window that were answered, in [0, 1]."""
    n: int
    """Items, of all windows together."""


@dataclass(frozen=True, eq=False, repr=False)
class WindowsView(View):
    """CRS and below it ASR over windows of drift, a column for each modality."""

    curves: Sequence[WindowCurve]
    """Those of one modality are drawn together, a line for each arm."""

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        need_some("curves", self.curves)

    def _summary(self) -> str:
        return "CRS and ASR over windows of drift: " + ", ".join(
            f"{curve.modality} {curve.arm} (n {curve.n})" for curve in self.curves
        )

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows = [
            (curve.modality, curve.arm, place, drift, name, *numbers, curve.n)
            for curve in self.curves
            for name, band in (("crs", curve.crs), ("asr", curve.asr))
            for place, (drift, *numbers) in enumerate(
                zip(
                    curve.drift.tolist(),
                    band.value.tolist(),
                    band.low.tolist(),
                    band.high.tolist(),
                    strict=True,
                )
            )
        ]
        names = ("modality", "arm", "window", "drift", "quantity", "value", "low", "high", "n")
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 2, len(self._modalities()), (3.0, 2.4)

    def _draw(self, axes: list[list[Any]]) -> None:
        for column, modality in enumerate(self._modalities()):
            _draw_column([row[column] for row in axes], self._of(modality))
        axes[0][0].set_ylabel("CRS (Cohen's d)")
        axes[1][0].set_ylabel("ASR, harmful answered")

    def _modalities(self) -> list[str]:
        return list(dict.fromkeys(curve.modality for curve in self.curves))

    def _of(self, modality: str) -> list[WindowCurve]:
        return [curve for curve in self.curves if curve.modality == modality]


def _draw_column(axes: Sequence[Any], curves: Sequence[WindowCurve]) -> None:
    top, below = axes
    for curve, style in zip(curves, styles(len(curves)), strict=True):
        name = f"{label(curve.arm)} (n {curve.n})"
        draw_band(top, curve.drift.tolist(), curve.crs, name, style)
        draw_band(below, curve.drift.tolist(), curve.asr, name, style)
    top.set_title(label(curves[0].modality))
    top.axhline(0, color=AXIS, linewidth=0.6)
    top.legend(loc="best", fontsize=7.5).set_in_layout(False)
    below.set_ylim(-0.03, 1.03)
    below.set_xlabel("median drift of the window")
