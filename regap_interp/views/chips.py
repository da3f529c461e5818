"""Chips of a token strip: a token, a run of equal tokens, or a medium."""

import math
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regap_interp.views.colour import DASHED, MISSING, PLAIN, Scale
from regap_interp.views.markup import INK, Markup, element, joined
from regap_interp.views.text import number, runs, visible

_BINS = 24
"""Bars of a run."""


@dataclass(frozen=True)
class Chip:
    """What is drawn as one, in place of some tokens."""

    start: int
    """Index of the first token."""
    stop: int
    """One past the last."""
    label: str
    """Visible text."""
    medium: int | None = None
    """Index of the medium, if it is one."""

    def where(self, first: int) -> str:
        """Its label and its positions, if the first token stands at `first`."""
        return f"{self.label}, positions {first + self.start} to {first + self.stop - 1}"

    @property
    def width(self) -> int:
        """Columns of the figure that it takes, gap and bar included."""
        wide = sum(1 + (unicodedata.east_asian_width(one) in "WF") for one in self.label)
        return wide + 2 + (self.bars // 2 + 1 if self.bars else 0)

    @property
    def bars(self) -> int:
        """Bars that show the values of several tokens; 0 for one."""
        return min(self.stop - self.start, _BINS) if self.stop - self.start > 1 else 0


def chips(tokens: Sequence[str], media: Sequence[tuple[int, int, str]]) -> list[Chip]:
    """Chips for tokens, in order.

    Args:
        tokens: Their texts.
        media: First and one-past-last index of each medium, and its name.
    """
    labels: list[Hashable] = list(tokens)
    for number_, (start, stop, _) in enumerate(media):
        labels[start:stop] = [(number_,)] * (stop - start)
    found: list[Chip] = []
    for start, stop in runs(labels, fewest=4):
        match labels[start]:
            case (int(medium),):
                if not found or found[-1].medium != medium:
                    first, last, name = media[medium]
                    found.append(Chip(first, last, name, medium))
            case _:
                count = stop - start
                shown = visible(tokens[start])
                found.append(Chip(start, stop, f"{shown} \u00d7{count}" if count > 1 else shown))
    return found


def as_html(chip: Chip, values: Tensor, scale: Scale, first: int) -> Markup:
    """A chip as an element, its exact values in its hover text.

    Args:
        chip: Of a token or a run.
        values: Of all tokens.
        scale: Of the colours.
        first: Position of the first token.
    """
    style = "display:inline-block;padding:0 3px;margin:0 1px;border-radius:3px;line-height:1.5;"
    own = values[chip.start : chip.stop]
    if not chip.bars:
        value = float(own[0])
        frame = PLAIN if own.isfinite().all() else DASHED
        return joined(
            element(
                "span",
                element("bdi", chip.label),
                title=f"position {first + chip.start}: {chip.label} {number(value)}",
                style=f"{style}{frame};background:{scale.fill(value)};color:{scale.ink(value)}",
            ),
            " ",
        )
    bars = [
        element(
            "span",
            style=f"display:inline-block;width:4px;height:12px;background:{scale.fill(value)}",
        )
        for value in strongest(own, chip.bars)
    ]
    frame = PLAIN if own.isfinite().all() else DASHED
    return joined(
        element(
            "span",
            element("bdi", chip.label),
            " ",
            *bars,
            title=f"positions {first + chip.start} to {first + chip.stop - 1}: {told(own)}",
            style=f"{style}{frame};color:{INK}",
        ),
        " ",
    )


def draw(ax: Any, chip: Chip, at: tuple[float, float], values: Tensor, scale: Scale) -> None:
    """A chip in axes whose unit is a character across and a line down."""
    from matplotlib.patches import Rectangle

    left, top = at
    own = values[chip.start : chip.stop]
    shades = strongest(own, chip.bars or 1)
    text = chip.width - 0.5 - (chip.bars // 2 + 1 if chip.bars else 0)
    fill = "#ffffff" if chip.bars else scale.fill(shades[0])
    ink = INK if chip.bars else scale.ink(shades[0])
    whole = bool(own.isfinite().all())
    ax.add_patch(
        Rectangle(
            (left, top + 0.08),
            chip.width - 0.5,
            0.84,
            fc=fill,
            ec="#98a2b3" if whole else INK,
            lw=0.5,
            ls="-" if whole else "--",
            hatch=None if whole or chip.bars else "////",
        )
    )
    for index, value in enumerate(shades if chip.bars else ()):
        x = left + text + index / 2
        hatch = None if math.isfinite(value) else "//////"
        ax.add_patch(Rectangle((x, top + 0.2), 0.5, 0.6, fc=scale.fill(value), lw=0, hatch=hatch))
    ax.text(
        left + text / 2,
        top + 0.5,
        chip.label,
        ha="center",
        va="center",
        color=ink,
        fontsize=7,
        family=["monospace", "sans-serif"],
        clip_on=True,
        bbox=None if whole or chip.bars else {"fc": MISSING, "ec": "none", "pad": 0.6},
    )


def strongest(values: Tensor, bars: int) -> list[float]:
    """Of each of `bars` equal parts the value furthest from 0; NaN where any is not finite."""
    found = []
    for part in values.tensor_split(bars):
        one = float(part[part.abs().nan_to_num(0).argmax()])
        found.append(one if part.isfinite().all() else float("nan"))
    return found


def told(values: Tensor) -> str:
    """Mean and extent of values in words."""
    finite = values[values.isfinite()].double()
    if not finite.numel():
        return "none finite"
    low, mean, high = (number(float(one)) for one in (finite.min(), finite.mean(), finite.max()))
    left = len(values) - len(finite)
    return f"{low} to {high}, mean {mean}" + (f", {left} not finite" if left else "")
