"""Media with a value at every position: pictures, sounds and videos under a translucent grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from regap_interp.views import markup
from regap_interp.views.coloured import Coloured
from regap_interp.views.drawing import draw_patches
from regap_interp.views.markup import FAINT, Markup, element
from regap_interp.views.numbers import extent, grid_columns
from regap_interp.views.text import thinned
from regap_interp.views.tile import SIDE, fitted, plain, spectrogram_picture, tile

_FRAMES = 8
"""Frames of a video that are shown."""
_ROOM = 6.0
"""Inches that tiles take side by side."""


@dataclass(frozen=True, eq=False)
class Tile:
    """What a figure of several media shows of one: a picture at its size on paper."""

    picture: Image.Image
    values: Float[Tensor, "row column"] | None
    """Laid over it; None for the picture in its own colours."""
    size: tuple[float, float]
    """Width and height, inches."""
    name: str = ""
    """Above it."""


@dataclass(frozen=True, eq=False, repr=False)
class ImagePatches(Coloured):
    """A picture with a value for each of its patches."""

    picture: Image.Image
    """As the model sees it: cropped, if the processor crops."""
    values: Float[Tensor, "row column"]
    """NaN where a patch could not be measured."""

    def _numbers(self) -> Tensor:
        return self.values

    def _summary(self) -> str:
        rows, columns = self.values.shape
        return f"picture of {rows} x {columns} patches, {self.quantity}{extent(self.values)}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        return grid_columns(self.values, ("row", "column"))

    def _body(self) -> Markup:
        return markup.joined(self.tiles(), self._legend())

    def tiles(self) -> Markup:
        """The picture, and the picture under its grid."""
        over = tile(self.picture, self.values, self.colours)
        return markup.joined(plain(self.picture, SIDE // 2), over)

    def figure_tiles(self) -> list[Tile]:
        """The same for a figure with other things in it."""
        small, large = (fitted(self.picture.size, longest) for longest in (1.0, 2.0))
        return [Tile(self.picture, None, small), Tile(self.picture, self.values, large)]

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        wide, high = fitted(self.picture.size, 4.0)
        return 1, 1, (wide + 1.2, high + 0.5)

    def _draw(self, axes: list[list[Any]]) -> None:
        draw_patches(axes[0][0], self.picture, self.values, self.colours)
        self._bar(axes[0][0])


@dataclass(frozen=True, eq=False, repr=False)
class VideoPatches(Coloured):
    """Frames of a video with a value for each of their patches, on one scale."""

    frames: Sequence[Image.Image]
    """In order; as many as `values` has times, or a multiple: the first of each group is drawn."""
    values: Float[Tensor, "time row column"]
    """NaN where a patch could not be measured."""

    def __post_init__(self) -> None:
        """Refuse frames that do not divide into the times."""
        super().__post_init__()
        if not self.frames or len(self.frames) % len(self.values):
            raise ValueError(
                f"{len(self.frames)} frames for {len(self.values)} times; give as many, or the "
                "same number for each"
            )

    def _numbers(self) -> Tensor:
        return self.values

    def _summary(self) -> str:
        times, rows, columns = self.values.shape
        return (
            f"video of {times} times of {rows} x {columns} patches, "
            f"{self.quantity}{extent(self.values)}"
        )

    def _notes(self) -> str:
        left = len(self.values) - len(self._shown())
        hidden = f"{left} of {len(self.values)} times not drawn" if left else ""
        return " \u00b7 ".join(part for part in (super()._notes(), hidden) if part)

    def _columns(self) -> dict[str, Sequence[Any]]:
        return grid_columns(self.values, ("time", "row", "column"))

    def _body(self) -> Markup:
        return markup.joined(self.tiles(), self._legend())

    def tiles(self) -> Markup:
        """The frames side by side."""
        shown = self._shown()
        cells = self.values[0].numel() * len(shown)
        side = SIDE // 2
        found = []
        for time, frame in shown:
            picture = tile(frame, self.values[time], self.colours, side=side, cells=cells)
            label = element("div", f"time {time}", style=f"font-size:11px;color:{FAINT}")
            style = "display:inline-block;vertical-align:top;margin:0 6px 4px 0"
            found.append(element("div", label, picture, style=style))
        return element("div", *found)

    def figure_tiles(self) -> list[Tile]:
        """The same for a figure with other things in it."""
        shown = self._shown()
        longest = min(1.2, _ROOM / len(shown) - 0.1)
        return [
            Tile(frame, self.values[time], fitted(frame.size, longest), f"time {time}")
            for time, frame in shown
        ]

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        wide, high = fitted(self.frames[0].size, 2.0)
        return 1, len(self._shown()), (wide + 0.3, high + 0.7)

    def _draw(self, axes: list[list[Any]]) -> None:
        for ax, (time, frame) in zip(axes[0], self._shown(), strict=True):
            draw_patches(ax, frame, self.values[time], self.colours)
            ax.set_title(f"time {time}", fontsize=8)
        self._bar(axes[0])

    def _shown(self) -> list[tuple[int, Image.Image]]:
        each = len(self.frames) // len(self.values)
        return [(time, self.frames[time * each]) for time in thinned(len(self.values), _FRAMES)]


@dataclass(frozen=True, eq=False, repr=False)
class AudioFrames(Coloured):
    """A spectrogram with a value for each position, spread evenly over its frames."""

    spectrogram: Float[Tensor, "bin frame"]
    """Such as log-mel features, low bins first; only the frames that the model hears."""
    values: Float[Tensor, "position"]
    """NaN where a position could not be measured."""

    def _numbers(self) -> Tensor:
        return self.values

    def _summary(self) -> str:
        return (
            f"sound of {self.spectrogram.shape[1]} frames at {len(self.values)} positions, "
            f"{self.quantity}{extent(self.values)}"
        )

    def _columns(self) -> dict[str, Sequence[Any]]:
        return grid_columns(self.values, ("position",))

    def _body(self) -> Markup:
        return markup.joined(self.tiles(), self._legend())

    def tiles(self) -> Markup:
        """The spectrogram under one column for each position."""
        return tile(
            spectrogram_picture(self.spectrogram), self.values[None], self.colours, side=2 * SIDE
        )

    def figure_tiles(self) -> list[Tile]:
        """The same for a figure with other things in it."""
        picture = spectrogram_picture(self.spectrogram)
        return [Tile(picture, self.values[None], fitted(picture.size, 4.0))]

    def _shape(self) -> tuple[int, int, tuple[float, float]]:
        return 1, 1, (7.2, 2.0)

    def _draw(self, axes: list[list[Any]]) -> None:
        picture = spectrogram_picture(self.spectrogram)
        draw_patches(axes[0][0], picture, self.values[None], self.colours)
        self._bar(axes[0][0])
