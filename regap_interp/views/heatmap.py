"""Layer by position, or any grid of values with named rows and columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from regap_interp.views.about import label, words
from regap_interp.views.colour import DASHED, PLAIN
from regap_interp.views.coloured import Coloured
from regap_interp.views.drawing import draw_cells, ticks
from regap_interp.views.markup import FAINT, PAPER, Markup, element, joined
from regap_interp.views.numbers import extent
from regap_interp.views.text import brief, number

_CELLS = (1200, 48)
"""With more cells or columns than this, the map in a page is a picture."""
_WRITTEN = 14
"""Up to this many columns, cells say their numbers."""


_UPRIGHT = "display:inline-block;width:14px;word-break:break-all;writing-mode:vertical-rl"
"""Of names above columns; notebooks that drop the writing mode stack the letters."""
_ROOM = (600, 900)
"""Rows and columns that a figure can show."""


@dataclass(frozen=True, eq=False, repr=False)
class HeatMap(Coloured):
    """A grid of coloured cells. Every row and column is drawn, whatever their number.

    Where there is no room for all names, the first and last are kept, and a run of equal names
    (such as placeholders) has one name with its number. Hover texts have the number of the column,
    counted from 0, in brackets.
    """

    values: Float[Tensor, "row column"]
    """NaN where a cell could not be measured."""
    rows: Sequence[str | int]
    """Names from top to bottom, such as layers."""
    columns: Sequence[str | int]
    """Names from left to right, such as tokens; equal ones stay apart."""
    row_axis: str = "layer"
    """What the rows are."""
    column_axis: str = "position"
    """What the columns are."""

    def __post_init__(self) -> None:
        """Refuse names that do not belong to the values."""
        super().__post_init__()
        if (len(self.rows), len(self.columns)) != tuple(self.values.shape):
            raise ValueError(
                f"values have shape {tuple(self.values.shape)}, with {len(self.rows)} names of "
                f"rows and {len(self.columns)} of columns; give one name for each"
            )
        if not self.values.numel():
            raise ValueError("values are empty; there is nothing to draw")

    def _numbers(self) -> Tensor:
        return self.values

    def _summary(self) -> str:
        rows, columns = self.values.shape
        return (
            f"{self.row_axis} x {self.column_axis}, {rows} x {columns}, "
            f"{self.quantity}{extent(self.values)}"
        )

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows, columns = self.values.shape
        return {
            self.row_axis: [name for name in self.rows for _ in range(columns)],
            f"{self.column_axis}_index": list(range(columns)) * rows,
            self.column_axis: list(self.columns) * rows,
            "value": self.values.flatten().tolist(),
        }

    def _notes(self) -> str:
        rows, columns = (-(-n // most) for n, most in zip(self.values.shape, _ROOM, strict=True))
        shared = f"strongest of {rows} x {columns} drawn" if rows * columns > 1 else ""
        return " \u00b7 ".join(part for part in (super()._notes(), shared) if part)

    def _body(self) -> Markup | None:
        most, widest = _CELLS
        if self.values.numel() > most or self.values.shape[1] > widest:
            return None
        return joined(self._table(), self._legend())

    def _table(self) -> Markup:
        plain = f"background:{PAPER};color:{FAINT};border:none;padding:1px 4px;"
        heads = [
            element(
                "th",
                element("bdi", brief(name, 12), style=_UPRIGHT),
                scope="col",
                title=f"{words(self.column_axis)} {brief(name, 40)} ({index})",
                style=f"{plain}font-weight:normal;text-align:center;vertical-align:bottom",
            )
            for index, name in enumerate(self.columns)
        ]
        corner = element("th", words(f"{self.row_axis} \u2193"), style=f"{plain}text-align:left")
        lines = [element("tr", corner, *heads)]
        for name, line in zip(self.rows, self.values.tolist(), strict=True):
            style = f"{plain}font-weight:normal;text-align:right;white-space:nowrap"
            head = element("th", element("bdi", brief(name, 24)), scope="row", style=style)
            cells = [self._cell(name, index, value) for index, value in enumerate(line)]
            lines.append(element("tr", head, *cells))
        style = "border-collapse:collapse;font-size:11px;margin:0;table-layout:auto"
        return element("table", *lines, style=style)

    def _cell(self, row: str | int, column: int, value: float) -> Markup:
        scale = self.colours
        frame = PLAIN if abs(value) < float("inf") else DASHED
        where = f"{words(self.row_axis)} {brief(row, 40)}"
        where += f", {brief(self.columns[column], 40)} ({column})"
        written = self.values.shape[1] <= _WRITTEN
        return element(
            "td",
            _short(value) if written or frame == DASHED else "",
            title=f"{where}: {number(value)}",
            style=f"{frame};background:{scale.fill(value)};color:{scale.ink(value)};"
            f"padding:1px 4px;min-width:{34 if written else 12}px;height:15px;text-align:center",
        )

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        rows, columns = self.values.shape
        return (
            1,
            1,
            (min(max(2.4 + 0.17 * columns, 4.0), 11.0), min(max(1.5 + 0.15 * rows, 2.2), 9)),
        )

    def _draw(self, axes: list[list[Any]]) -> None:
        ax = axes[0][0]
        draw_cells(ax, self.values, self.colours, _ROOM)
        ax.set_xticks(*ticks(self.columns), rotation=90)
        ax.set_yticks(*ticks(self.rows))
        ax.tick_params(labelsize=7, length=2)
        ax.set_xlabel(label(self.column_axis))
        ax.set_ylabel(label(self.row_axis))
        self._bar(ax)


def _short(value: float) -> str:
    """A value in a cell."""
    return "\u2205" if value != value else number(float(f"{value:.2g}"))
