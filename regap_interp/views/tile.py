"""A picture under a translucent grid of colours, as HTML of bounded size."""

import io
import math

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from regap_interp.views import markup
from regap_interp.views.colour import DASHED, Scale
from regap_interp.views.markup import Markup, element
from regap_interp.views.text import number

SIDE = 320
"""Pixels of the longer side of a picture in a page."""
_ELEMENTS = 800
"""With more cells than this, the grid of a view is a picture instead of an element a cell."""


def tile(
    picture: Image.Image,
    values: Float[Tensor, "row column"],
    scale: Scale,
    *,
    side: int = SIDE,
    cells: int | None = None,
) -> Markup:
    """A picture under its grid, as HTML.

    Args:
        picture: Made smaller to `side` pixels.
        values: Of the patches.
        scale: Of the colours.
        side: Longest side, pixels.
        cells: Of the whole view, if it has other tiles: where there are few, each is an element
            that tells its value.
    """
    wide, high = (round(one) for one in fitted(picture.size, side))
    rows, columns = values.shape
    if (cells or values.numel()) <= _ELEMENTS:
        # Whole pixels, so that a row of floating cells is as wide as the picture. Notebooks that do
        # not trust their outputs drop the templates of CSS grids.
        across, down = max(round(wide / columns), 1), max(round(high / rows), 1)
        wide, high = across * columns, down * rows
        size = f"float:left;width:{across}px;height:{down}px;"
        squares = [
            _cell(
                value, f"row {row}, column {column}: " if rows > 1 else f"{column}: ", scale, size
            )
            for row, line in enumerate(values.tolist())
            for column, value in enumerate(line)
        ]
        place = f"position:absolute;left:0;top:0;width:{wide}px;height:{high}px"
        grid = element("div", *squares, style=place)
    else:
        grid = element(
            "img",
            src=markup.image_source(_veil_png(values, scale, (wide, high)), "png"),
            alt="",
            style=f"position:absolute;left:0;top:0;width:{wide}px;height:{high}px;margin:0",
        )
    below = element(
        "img",
        src=markup.image_source(_jpeg(grey(picture), (wide, high)), "jpeg"),
        alt="",
        style=f"width:{wide}px;height:{high}px;max-width:none;display:block;margin:0",
    )
    style = f"position:relative;width:{wide}px;height:{high}px;display:inline-block"
    return element("div", below, grid, style=style)


def plain(picture: Image.Image, side: int) -> Markup:
    """A picture in its own colours, as HTML."""
    wide, high = (round(one) for one in fitted(picture.size, side))
    return element(
        "img",
        src=markup.image_source(_jpeg(picture.convert("RGB"), (wide, high)), "jpeg"),
        alt="the picture",
        style=f"width:{wide}px;height:{high}px;max-width:none;vertical-align:top;margin:0 6px 0 0",
    )


def grey(picture: Image.Image) -> Image.Image:
    """A picture in light greys, so that the only colours over it are those of values."""
    return picture.convert("L").point(lambda level: 70 + level * 185 // 255)


def spectrogram_picture(spectrogram: Float[Tensor, "bin frame"]) -> Image.Image:
    """A spectrogram as a grey picture, low bins below, loud parts dark."""
    finite = spectrogram[spectrogram.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    share = ((spectrogram - low) / ((high - low) or 1.0)).nan_to_num(0, 1, 0).clamp(0, 1)
    grey = (235 - 175 * share).to(torch.uint8).flip(0).numpy()
    bins, frames = spectrogram.shape
    # Sounds are longer than they are high: a fixed shape keeps short ones readable.
    return Image.fromarray(grey).resize((2 * SIDE, 96 if bins * 6 < frames else 128))


def fitted(size: tuple[int, int], longest: float) -> tuple[float, float]:
    """Width and height of the same shape whose longer side is `longest`."""
    wide, high = size
    factor = longest / max(wide, high)
    return max(wide * factor, 1), max(high * factor, 1)


def _cell(value: float, where: str, scale: Scale, size: str) -> Markup:
    style = f"{size}background:{scale.veil(value)}"
    if not math.isfinite(value):
        style += f";box-sizing:border-box;{DASHED}"
    return element("i", title=where + number(value), style=style)


def _jpeg(picture: Image.Image, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    smooth = Image.Resampling.LANCZOS if picture.width > size[0] else Image.Resampling.NEAREST
    picture.resize(size, smooth).save(file, "JPEG", quality=82)
    return file.getvalue()


def _veil_png(values: Float[Tensor, "row column"], scale: Scale, size: tuple[int, int]) -> bytes:
    colours = [
        tuple(bytes.fromhex(scale.veil(value)[1:])) for line in values.tolist() for value in line
    ]
    rows, columns = values.shape
    veil = Image.new("RGBA", (columns, rows))
    veil.putdata(colours)
    file = io.BytesIO()
    veil.resize(size, Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return file.getvalue()
