"""A quantity after every layer, such as the refusal coordinate, for classes and arms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regap_interp.views.about import label
from regap_interp.views.bands import (
    AXIS,
    BENIGN,
    HARMFUL,
    Band,
    draw_band,
    need_some,
    styles,
)
from regap_interp.views.view import View

_ROOM, _SIGN = 100, 6
"""Characters on a line of the legend, and those that a sign beside a name takes."""


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """A class of items under one arm, layer by layer."""

    label: str
    """Such as "harmful, weakly corrected"."""
    harmful: bool
    """Sets the colour and the marker."""
    arm: str
    """Such as "clean", "drifted" or "corrected"; sets the dash."""
    layers: tuple[int, ...]
    """Decoder layers, rising."""
    refusal: Band
    """Mean refusal coordinate (or its gain) at each of `layers`, with its interval."""
    n: int
    """Items."""


@dataclass(frozen=True, eq=False, repr=False)
class TrajectoriesView(View):
    """Traces over the layers."""

    traces: Sequence[LayerTrace]
    """A line each."""
    quantity: str
    """What is on the upright axis."""
    marks: Sequence[tuple[int, str]] = ()
    """Layers with what happens there, such as `(7, "corrected")`."""

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        need_some("traces", self.traces)

    def _summary(self) -> str:
        return f"{self.quantity} by layer: " + ", ".join(
            f"{trace.label} (n {trace.n})" for trace in self.traces
        )

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows = [
            (trace.label, trace.harmful, trace.arm, layer, *numbers, trace.n)
            for trace in self.traces
            for layer, *numbers in zip(
                trace.layers,
                trace.refusal.value.tolist(),
                trace.refusal.low.tolist(),
                trace.refusal.high.tolist(),
                strict=True,
            )
        ]
        names = ("label", "harmful", "arm", "layer", "value", "low", "high", "n")
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        lines = -(-len(self.traces) // self._side_by_side())
        return 1, 1, (7.0, 4.0 + 0.19 * max(lines - 2, 0))

    def _names(self) -> list[str]:
        return [f"{label(trace.label, 60)} (n {trace.n})" for trace in self.traces]

    def _side_by_side(self) -> int:
        """Names of the legend that fit on a line."""
        return max(min(_ROOM // (max(map(len, self._names())) + _SIGN), 3), 1)

    def _draw(self, axes: list[list[Any]]) -> None:
        ax = axes[0][0]
        arms = list(dict.fromkeys(trace.arm for trace in self.traces))
        dashes = {arm: dash for arm, (_, dash, _) in zip(arms, styles(len(arms)), strict=True)}
        for trace, name in zip(self.traces, self._names(), strict=True):
            colour, marker = (HARMFUL, "^") if trace.harmful else (BENIGN, "o")
            draw_band(ax, trace.layers, trace.refusal, name, (colour, dashes[trace.arm], marker))
        for layer, what in self.marks:
            ax.axvline(layer, color="#667085", linewidth=0.8, linestyle=":")
            at = (layer, 1)
            ax.annotate(f" {label(what)}", at, xycoords=("data", "axes fraction"), va="bottom")
        ax.axhline(0, color=AXIS, linewidth=0.6)
        ax.set_xlabel("layer")
        ax.set_ylabel(label(self.quantity, 80, line=44))
        ax.locator_params(axis="x", integer=True)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=self._side_by_side())
