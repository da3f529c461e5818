"""Receiver operating characteristics of signals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from regap_interp.views.about import label
from regap_interp.views.bands import AXIS, need_some, styles
from regap_interp.views.view import View


@dataclass(frozen=True, eq=False)
class RocCurve:
    """One signal's receiver operating characteristic: harmful items are the positives."""

    label: str
    """Name of the signal, such as "paired_gain"."""
    false_positive: Float[Tensor, "cut"]
    """Share of benign items at or above each threshold, rising from 0 to 1."""
    true_positive: Float[Tensor, "cut"]
    """Share of harmful items at or above each threshold, rising from 0 to 1."""
    auroc: float
    """Area under the curve."""
    low: float
    """Lower end of its interval; NaN if there is none."""
    high: float
    """Upper end of its interval; NaN if there is none."""
    threshold: float | None = None
    """The chosen threshold, for the chosen signal only."""
    at: tuple[float, float] | None = None
    """False and true positive rate at `threshold`."""


@dataclass(frozen=True, eq=False)
class RocCurves:
    """The signals of one modality, one panel."""

    title: str
    """Such as "image"."""
    curves: tuple[RocCurve, ...]
    """In the order of the legend."""
    n: int
    """Items, harmful and benign together."""


@dataclass(frozen=True, eq=False, repr=False)
class RocView(View):
    """ROC of the signals, a panel for each modality, the chosen threshold marked by a star."""

    panels: Sequence[RocCurves]
    """One for each modality."""

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        need_some("panels", self.panels)

    def _summary(self) -> str:
        return "ROC: " + "; ".join(
            f"{panel.title} (n {panel.n}) "
            + ", ".join(f"{curve.label} {_area(curve)}" for curve in panel.curves)
            for panel in self.panels
        )

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows = [
            (panel.title, curve.label, false, true, curve.auroc, curve.low, curve.high)
            for panel in self.panels
            for curve in panel.curves
            for false, true in zip(
                curve.false_positive.tolist(), curve.true_positive.tolist(), strict=True
            )
        ]
        names = ("panel", "signal", "false_positive", "true_positive", "auroc", "low", "high")
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, len(self.panels), (3.4, 4.2)

    def _draw(self, axes: list[list[Any]]) -> None:
        for ax, panel in zip(axes[0], self.panels, strict=True):
            _draw_panel(ax, panel)
        axes[0][0].set_ylabel("harmful at or above threshold")


def _draw_panel(ax: Any, panel: RocCurves) -> None:
    ax.plot([0, 1], [0, 1], color=AXIS, linewidth=0.6)
    for curve, (colour, dash, _) in zip(panel.curves, styles(len(panel.curves)), strict=True):
        x, y = curve.false_positive.tolist(), curve.true_positive.tolist()
        name = f"{label(curve.label)}: {_area(curve)}"
        ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.5, label=name)
        if curve.at is not None:
            cut = "" if curve.threshold is None else f", threshold {curve.threshold:.3g}"
            ax.plot(*curve.at, "*", color=colour, markersize=12, label=f"chosen{cut}")
    ax.set_title(f"{label(panel.title)} (n {panel.n})")
    ax.set_xlabel("benign at or above threshold")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8)


def _area(curve: RocCurve) -> str:
    interval = "" if curve.low != curve.low else f" [{curve.low:.3f}, {curve.high:.3f}]"
    return f"AUROC {curve.auroc:.3f}{interval}"
