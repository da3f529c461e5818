"""What several figures draw alike: grids of colours, hatches, colour bars, names along axes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from regap_interp.views.about import label
from regap_interp.views.colour import MISSING, VEIL, Scale, colormap
from regap_interp.views.markup import FAINT
from regap_interp.views.text import brief, number, runs
from regap_interp.views.tile import grey

_DOTS = (800, 800)
"""Of a picture in a figure; photos have more than paper can show."""
_BAR = 2.4
"""Longest colour bar, inches."""
_TICKS = 48
"""Names along an axis."""


def draw_patches(
    ax: Any, picture: Image.Image, values: Float[Tensor, "row column"], scale: Scale
) -> None:
    """Draw a picture under its grid into axes."""
    extent = draw_picture(ax, grey(picture))
    shares = (values.double() / scale.limit).clamp(-1, 1).nan_to_num(0)
    opaque = (VEIL * shares.abs()).numpy()
    ends = shares.sign().numpy()  # one colour for each sign: strength is opacity
    ax.imshow(ends, cmap=colormap(), vmin=-1, vmax=1, alpha=opaque, extent=extent)
    _hatch(ax, values, extent)


def draw_picture(ax: Any, picture: Image.Image) -> tuple[float, float, float, float]:
    """Draw a picture as it is into axes; returns where it lies, as `extent` of `imshow`."""
    wide, high = picture.size
    extent = (0.0, float(wide), float(high), 0.0)
    picture = picture.convert("RGB")
    picture.thumbnail(_DOTS)
    ax.imshow(picture, extent=extent)
    ax.set_xticks([])
    ax.set_yticks([])
    return extent


def draw_cells(
    ax: Any, values: Float[Tensor, "row column"], scale: Scale, most: tuple[int, int]
) -> None:
    """Draw a grid of cells, one unit wide and high, into axes.

    Args:
        ax: The axes.
        values: Of the cells.
        scale: Of the colours.
        most: Rows and columns that there is room for; of more, neighbours share a cell, which
            shows the strongest of them.
    """
    rows, columns = values.shape
    values = pooled(values, most)
    high, wide = -(-rows // most[0]), -(-columns // most[1])
    extent = (-0.5, wide * values.shape[1] - 0.5, high * values.shape[0] - 0.5, -0.5)
    shares = (values.double() / scale.limit).clamp(-1, 1)
    look: Any = {"aspect": "auto", "interpolation": "nearest"}
    ax.imshow(shares.numpy(), cmap=colormap(), vmin=-1, vmax=1, extent=extent, **look)
    _hatch(ax, values, extent)
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)


def pooled(
    values: Float[Tensor, "row column"], most: tuple[int, int]
) -> Float[Tensor, "fewer_rows fewer_columns"]:
    """Values of at most `most` rows and columns: of neighbours the one furthest from 0, NaN where
    one of them is not finite."""
    for axis, limit in enumerate(most):
        parts = values.split(-(-values.shape[axis] // limit), dim=axis)
        values = torch.stack([furthest(part, axis) for part in parts], dim=axis)
    return values


def furthest(values: Tensor, axis: int) -> Tensor:
    """Along an axis the value furthest from 0; one that is not finite if there is any."""
    at = values.abs().nan_to_num(torch.inf).argmax(dim=axis, keepdim=True)
    return values.gather(axis, at).squeeze(axis)


def colour_bar(ax: Any, scale: Scale, quantity: str, *, negative: bool) -> None:
    """A colour bar with 0 and the ends.

    Args:
        ax: One or several axes that it stands beside.
        scale: Of the colours.
        quantity: What they mean.
        negative: Whether any value is; the lower half is left away otherwise.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    first = ax[0] if isinstance(ax, Sequence) else ax
    shown = ScalarMappable(Normalize(-scale.limit, scale.limit), colormap())
    high = first.figure.get_figheight()
    long = min(0.8, _BAR / high)
    bar = first.figure.colorbar(shown, ax=ax, shrink=long, aspect=16, pad=0.02)
    ends = [-scale.limit, 0.0, scale.limit][not negative :]
    bar.set_ticks(ends, labels=[number(end) if end else "0" for end in ends], fontsize=7.5)
    bar.ax.set_ylim(ends[0], ends[-1])
    bar.outline.set_visible(False)
    bar.set_label(label(quantity, 56, line=max(16, int(9 * long * high))), fontsize=8)


def ticks(names: Sequence[str | int]) -> tuple[list[float], list[str]]:
    """Places and names along an axis.

    A run of equal names has one, in its middle. Where there is no room for all, runs, the first
    and the last are kept.
    """
    places, single = {}, {}
    for start, stop in runs(names):
        at = (start + stop - 1) / 2
        count = f" \u00d7{stop - start}" if stop - start > 1 else ""
        places[at], single[at] = brief(names[start], 14) + count, not count
    kept: list[float] = []
    for at in sorted(places, key=lambda at: (at not in (0, len(names) - 1), single[at], at)):
        if all(abs(at - other) >= len(names) / _TICKS for other in kept):
            kept.append(at)
    kept.sort()
    return kept, [places[at] for at in kept]


def _hatch(
    ax: Any, values: Float[Tensor, "row column"], extent: tuple[float, float, float, float]
) -> None:
    """Hatch the cells that are not finite."""
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    rows, columns = values.shape
    wide, high = (right - left) / columns, (bottom - top) / rows
    for row, line in enumerate(values.isfinite().tolist()):
        for start, stop in runs(line, fewest=1):
            if not line[start]:
                at = (left + start * wide, top + row * high)
                size = ((stop - start) * wide, high)
                ax.add_patch(Rectangle(at, *size, fc=MISSING, ec=FAINT, hatch="//////", lw=0))
