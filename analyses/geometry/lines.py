"""Lines with intervals in panels of one horizontal axis, with one legend for all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.views import Band, View
from regap_interp.views.about import label
from regap_interp.views.bands import AXIS, draw_band, need_some, styles

CONTROL = "#667085"
"""Colour of what should do nothing."""


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a panel."""

    label: str
    x: Sequence[float]
    band: Band
    n: int
    """Items behind every place of it."""
    group: str = ""
    """Lines of a group look alike in all panels and share an entry of the legend; the label by
    default."""

    @property
    def entry(self) -> str:
        """That of the legend."""
        return self.group or self.label


@dataclass(frozen=True, eq=False)
class LinePanel:
    """What stands over one part of the figure, and its lines."""

    quantity: str
    lines: Sequence[Line]
    level: float = 0.0
    """Where a thin line marks what "nothing" is."""
    limits: tuple[float, float] | None = None
    """Ends of the upright axis; whatever the lines need, by default."""


@dataclass(frozen=True, eq=False, repr=False)
class LinesView(View):
    """Panels over the same horizontal axis."""

    panels: Sequence[LinePanel]
    across: str
    """What the horizontal axis is."""
    marks: Sequence[tuple[float, str]] = ()
    """Places on it with what happens there, such as `(7, "corrected")`."""
    controls: Sequence[str] = ()
    """Entries of the legend that are controls, and grey."""
    whole: bool = False
    """Whether only whole numbers are places, as layers are."""

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        need_some("panels", self.panels)

    def _entries(self) -> list[str]:
        return list(dict.fromkeys(one.entry for panel in self.panels for one in panel.lines))

    def _summary(self) -> str:
        quantities = ", ".join(panel.quantity for panel in self.panels)
        return f"{quantities} by {self.across}: {', '.join(self._entries())}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows = [
            (panel.quantity, one.label, place, value, low, high, one.n)
            for panel in self.panels
            for one in panel.lines
            for place, value, low, high in zip(
                one.x,
                one.band.value.tolist(),
                one.band.low.tolist(),
                one.band.high.tolist(),
                strict=True,
            )
        ]
        names = ("quantity", "line", "x", "value", "low", "high", "n")
        return {name: [row[place] for row in rows] for place, name in enumerate(names)}

    def _grid(self) -> tuple[int, int]:
        """Rows and columns, one cell more than panels for the legend."""
        cells = len(self.panels) + 1
        columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 9: 3}.get(cells, 4)
        return -(-cells // columns), columns

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return *self._grid(), (2.9, 2.3)

    def _draw(self, axes: list[list[Any]]) -> None:
        flat = [ax for row in axes for ax in row]
        looks = self._looks()
        for ax, panel in zip(flat, self.panels, strict=False):
            for one in panel.lines:
                draw_band(ax, one.x, one.band, label(one.entry, 40), looks[one.entry])
            for place, _ in self.marks:
                ax.axvline(place, color=CONTROL, linewidth=0.8, linestyle=":")
            ax.axhline(panel.level, color=AXIS, linewidth=0.6, zorder=0)
            if panel.limits is not None:
                ax.set_ylim(panel.limits)
            ax.set_title(label(panel.quantity, 90, line=38), fontsize=8.5)
            ax.set_xlabel(label(self.across, 60), fontsize=8)
            ax.tick_params(labelsize=7.5)
            if self.whole:
                ax.locator_params(axis="x", integer=True)
        self._legend(flat[len(self.panels)], flat[: len(self.panels)])
        for ax in flat[len(self.panels) :]:
            ax.axis("off")

    def _looks(self) -> dict[str, Any]:
        """Colour, dash and marker of every entry: more than five share colours only."""
        colours, dashes, markers = zip(*styles(5), strict=True)
        markers += tuple("P*X<>")
        looks = {}
        for place, one in enumerate(one for one in self._entries() if one not in self.controls):
            dash = dashes[(place + place // 5) % 5]
            looks[one] = (colours[place % 5], dash, markers[place % 10])
        for place, one in enumerate(self.controls):
            looks[one] = (CONTROL, dashes[(place + 3) % 5], "x+"[place % 2])
        return looks

    def _legend(self, cell: Any, drawn: Sequence[Any]) -> None:
        found: dict[str, Any] = {}
        for ax in drawn:
            for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
                found.setdefault(name, handle)
        for place, what in self.marks:
            from matplotlib.lines import Line2D

            mark = Line2D([], [], color=CONTROL, linewidth=0.8, linestyle=":")
            found[label(f"{what} at {place:g}", 40)] = mark
        cell.legend(found.values(), found.keys(), loc="center", fontsize=8, handlelength=3)


def single(value: Float[Tensor, "place"]) -> Band:
    """Numbers without intervals."""
    return Band(value, *(torch.full_like(value, math.nan) for _ in range(2)))
