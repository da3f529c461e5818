"""Pictures of effects: maps over two axes, lines or points over one, with their intervals."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.patching.axes import Axis
from regap_interp.views import About, Band, Compared, HeatMap, View, compared
from regap_interp.views.about import label
from regap_interp.views.bands import AXIS, draw_band, limits, styles
from regap_interp.views.drawing import ticks
from regap_interp.views.numbers import extent

QUANTITY = "normalised patching effect, 0 corrupted, 1 clean"
_MOST_PANELS = 4


@dataclass(frozen=True, eq=False)
class Drawn:
    """Effects of cells, as pictures need them."""

    axes: tuple[Axis, ...]
    values: Float[Tensor, "*cell"]
    interval: Callable[[], tuple[Tensor, Tensor]]
    """Both ends, NaN where there is none; asked for where they are drawn."""
    n: int
    parts: tuple[str, ...]
    """Of the caption."""
    ends: tuple[float, float]
    """Mean metric of the corrupted and of the clean runs."""

    def spread(self) -> "Drawn":
        """Without the axes that have one place."""
        kept = tuple(axis for axis in self.axes if len(axis.labels) > 1)
        shape = [len(axis.labels) for axis in kept]

        def interval() -> tuple[Tensor, Tensor]:
            low, high = self.interval()
            return low.reshape(shape), high.reshape(shape)

        return replace(self, axes=kept, values=self.values.reshape(shape), interval=interval)


@dataclass(frozen=True, eq=False)
class Line:
    """Effects along one axis."""

    name: str
    axis: Axis
    band: Band
    n: int
    """Items."""


@dataclass(frozen=True, eq=False, repr=False)
class EffectsView(View):
    """Effects along one axis: lines over layers, points over positions and heads."""

    lines: Sequence[Line]
    """Over places of one kind; those of the same name share a place."""

    def _summary(self) -> str:
        parts = (
            f"{line.name + ': ' if line.name else ''}n {line.n}{extent(line.band.value)}"
            for line in self.lines
        )
        return f"{QUANTITY} by {self._axis()}, {'; '.join(parts)}"

    def _axis(self) -> str:
        return self.lines[0].axis.name

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows = [
            (line.name, place, *numbers, line.n)
            for line in self.lines
            for place, *numbers in zip(
                line.axis.labels,
                line.band.value.tolist(),
                line.band.low.tolist(),
                line.band.high.tolist(),
                strict=True,
            )
        ]
        names = ("result", self._axis(), "value", "low", "high", "n")
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, 1, (min(max(2.6 + 0.2 * len(self._places()), 4.5), 9.0), 3.0)

    def _places(self) -> list[tuple[str, str]]:
        """Labels and names, each once, in order; layers rising. Where results have other tokens at
        a place, its label is its name."""
        axes = [line.axis for line in self.lines]
        pairs = [p for axis in axes for p in zip(axis.labels, axis.names(), strict=True)]
        names: dict[str, set[str]] = {}
        for place, name in pairs:
            names.setdefault(place, set()).add(name)
        found = [(p, some.pop() if len(some) == 1 else p) for p, some in names.items()]
        return sorted(found, key=_first_layer) if self._axis() == "layer" else found

    def _notes(self) -> str:
        several = any(bool(line.band.low.isfinite().any()) for line in self.lines)
        return "95 % bootstrap intervals over items" if several else ""

    def _draw(self, axes: list[list[Any]]) -> None:
        ax, places = axes[0][0], self._places()
        numbers = {place: number for number, (place, _) in enumerate(places)}
        ax.axhline(0, color=AXIS, linewidth=0.8)
        ax.axhline(1, color=AXIS, linewidth=0.8, linestyle=":")
        for index, (line, style) in enumerate(
            zip(self.lines, styles(len(self.lines)), strict=True)
        ):
            at: list[float] = [numbers[one] for one in line.axis.labels]
            name = f"{label(line.name, 40)} (n {line.n})" if line.name else ""
            if self._axis() == "layer":
                draw_band(ax, at, line.band, name, style)
            else:
                apart = 0.6 * ((index + 0.5) / len(self.lines) - 0.5)
                _draw_points(ax, [one + apart for one in at], line.band, name, style)
        ax.set_xticks(*ticks([name for _, name in places]))
        if max(len(name) for _, name in places) > 3:
            ax.tick_params(axis="x", rotation=90)
        ax.tick_params(labelsize=7.5, length=2)
        ax.set_xlim(-0.6, len(places) - 0.4)
        ax.set_ylim(*limits([b for one in self.lines for b in _ends(one.band)]))
        ax.set_xlabel(self._axis())
        ax.set_ylabel(label(QUANTITY, 80, line=28), fontsize=8)
        if any(line.name for line in self.lines):
            legend = ax.legend(
                loc="best", fontsize=8, frameon=True, framealpha=0.8, edgecolor="none"
            )
            legend.set_in_layout(False)


def _first_layer(place: tuple[str, str]) -> tuple[int, ...]:
    """Of a layer or a window, for sorting."""
    return tuple(int(one) for one in re.findall(r"\d+", place[0]))


def _ends(band: Band) -> tuple[Tensor, Tensor, Tensor]:
    return band.value, band.low, band.high


def _draw_points(ax: Any, x: Sequence[float], band: Band, name: str, style: Any) -> None:
    colour, _, marker = style
    ax.vlines(x, band.low.tolist(), band.high.tolist(), color=colour, linewidth=1.6, alpha=0.6)
    ax.plot(
        x, band.value.tolist(), color=colour, linestyle="", marker=marker, markersize=5, label=name
    )


def picture(drawn: Drawn, title: str, about: About) -> HeatMap | Compared | EffectsView:
    """A map over two axes, points over one, and of three axes a map for each place of the shortest.

    Raises:
        ValueError: for more panels than can be read.
    """
    wide = drawn.spread()
    if len(wide.axes) < 2:
        return EffectsView([_line("", drawn)], title=title, about=about)
    if len(wide.axes) == 2:
        return _map(wide.axes, wide.values, title, about)
    over = min(range(3), key=lambda i: len(wide.axes[i].labels))
    axis = wide.axes[over]
    if len(axis.labels) > _MOST_PANELS:
        shape = " x ".join(f"{len(one.labels)} {one.name}" for one in wide.axes)
        raise ValueError(
            f"{shape} are too many for a picture; choose a part of the result, such as "
            f'.at({axis.name}="{axis.labels[0]}")'
        )
    rest = tuple(one for one in wide.axes if one is not axis)
    panels = [
        _map(rest, wide.values.select(over, number), f"{axis.name} {name}", About())
        for number, name in enumerate(axis.names())
    ]
    return replace(compared(*panels, title=title), about=about)


def pictures(drawn: Mapping[str, Drawn], title: str, about: About) -> Compared | EffectsView:
    """Several pictures on one scale: maps side by side, or lines in one panel.

    Args:
        drawn: by name.
        title: above.
        about: what holds for all.

    Raises:
        ValueError: for results over different axes, or over more than two.
    """
    wide = {name: one.spread() for name, one in drawn.items()}
    kinds = {tuple(axis.name for axis in one.axes) for one in wide.values()}
    if len(kinds) > 1 or len(next(iter(kinds))) > 2:
        given = "; ".join(" x ".join(one) or "one cell" for one in sorted(kinds))
        raise ValueError(
            f"results over {given} do not fit one picture; give results over the same one or two "
            "axes, such as parts of them by .at(...)"
        )
    if len(next(iter(kinds))) < 2:
        lines = [_line(name, one) for name, one in drawn.items()]
        return EffectsView(lines, title=title, about=about)
    panels = [
        _map(one.axes, one.values, f"{name}, n = {one.n}", About()) for name, one in wide.items()
    ]
    return replace(compared(*panels, title=title), about=about)


def _map(axes: tuple[Axis, ...], values: Tensor, title: str, about: About) -> HeatMap:
    rows, columns = axes
    return HeatMap(
        values,
        rows.names(),
        columns.names(),
        row_axis=rows.name,
        column_axis=columns.name,
        quantity=QUANTITY,
        title=title,
        about=about,
    )


def _line(name: str, drawn: Drawn) -> Line:
    wide = drawn.spread()
    axis = (*wide.axes, *drawn.axes, Axis("layer", ("",)))[0]
    low, high = (one.flatten() for one in wide.interval())
    return Line(name, axis, Band(wide.values.flatten(), low, high), drawn.n)


def no_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends where there are too few items for one."""
    return torch.full_like(values, torch.nan), torch.full_like(values, torch.nan)
