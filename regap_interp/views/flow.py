"""The figure of a token strip: chips on lines, media as pictures among them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regap_interp.views import chips
from regap_interp.views.chips import Chip
from regap_interp.views.colour import Scale
from regap_interp.views.drawing import draw_patches, draw_picture
from regap_interp.views.markup import RULE
from regap_interp.views.media import Tile

_COLUMNS = 96
"""Characters on a line."""
_CHARACTER = 0.067
_NAME = 44
"""Characters for the name of a medium and its positions."""
WIDE = _COLUMNS * _CHARACTER
"""Inches of a line."""
LINE = 0.21
"""Inches from line to line."""


@dataclass(frozen=True)
class Placed:
    """Something at its place: a chip, a medium as tiles, or None where the middle is left out."""

    chip: Chip | None
    tiles: tuple[Tile, ...]
    column: int
    line: int

    @property
    def wide(self) -> int:
        """Characters that it takes across."""
        if self.chip is None:
            return 3
        across = sum(_across(tile) for tile in self.tiles)
        return max(across, _NAME) if self.tiles else self.chip.width

    @property
    def high(self) -> int:
        """Lines that it takes: of a medium one for its name."""
        return 1 + max((_down(tile) for tile in self.tiles), default=0)


def placed(things: Sequence[tuple[Chip | None, tuple[Tile, ...], bool]]) -> list[Placed]:
    """Chips from left to right and line by line; what stands beside a picture stands at its top.

    Args:
        things: Each with its tiles, and whether a line ends after it.
    """
    column = line = high = 0
    found = []
    for chip, tiles, ends in things:
        one = Placed(chip, tiles, column, line)
        if column and column + one.wide > _COLUMNS:
            one = Placed(chip, tiles, 0, line + high)
            column, line, high = 0, line + high, 0
        found.append(one)
        column, high = column + one.wide, max(high, one.high)
        if ends:
            column, line, high = 0, line + high, 0
    return found


def height(found: Sequence[Placed]) -> int:
    """Lines of all together."""
    return max((one.line + one.high for one in found), default=1)


def draw(ax: Any, found: Sequence[Placed], values: Tensor, scale: Scale, first: int) -> None:
    """Draw everything into axes.

    Args:
        ax: Empty axes.
        found: From `placed`.
        values: Of all tokens.
        scale: Of the colours.
        first: Position of the first token.
    """
    ax.set_xlim(0, _COLUMNS)
    ax.set_ylim(height(found), 0)
    ax.axis("off")
    for one in found:
        if one.chip is None:
            ax.text(one.column, one.line + 0.5, "\u2026", va="center")
        elif one.tiles:
            _draw_tiles(ax, one, one.chip.where(first), scale)
        else:
            chips.draw(ax, one.chip, (one.column, one.line), values, scale)


def _draw_tiles(ax: Any, one: Placed, label: str, scale: Scale) -> None:
    from matplotlib.transforms import Affine2D

    small: Any = {"fontsize": 7, "va": "center"}
    ax.text(one.column, one.line + 0.5, label, **small)
    left = one.column
    for tile in one.tiles:
        top = one.line + 1 + bool(tile.name)
        if tile.name:
            ax.text(left, top - 0.5, tile.name, **small)
        wide, high = tile.size[0] / _CHARACTER, tile.size[1] / LINE
        # Lines are counted from above, boxes must have a positive height.
        upwards = Affine2D().scale(1, -1) + ax.transData
        inner = ax.inset_axes((left, -top - high, wide, high), transform=upwards)
        if tile.values is None:
            draw_picture(inner, tile.picture)
        else:
            draw_patches(inner, tile.picture, tile.values, scale)
        inner.set_anchor("NW")
        for spine in inner.spines.values():
            spine.set(visible=True, color=RULE, linewidth=0.5)
        left += _across(tile)


def _across(tile: Tile) -> int:
    return math.ceil(tile.size[0] / _CHARACTER) + 1


def _down(tile: Tile) -> int:
    return math.ceil(tile.size[1] / LINE + 0.2) + bool(tile.name)
