"""Pictures as LLaVA-NeXT takes them: an overview, then tiles, with a learned vector after each row.

The tiles form one picture again behind the encoder, the padding that made it fit is cut away, and
`newline` ends each row. So a picture is two items: the overview, and the rows with their ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from model_adapters.errors import InputError
from model_adapters.families.medium import Config, Inputs, Item, Join, Medium
from model_adapters.families.refusals import require_counts

NEWLINE = Item(1, grid=(1, 1, 1), newlines=True)
"""A newline vector alone."""


@dataclass(frozen=True, kw_only=True)
class AnyRes(Medium):
    """Overview and tiles: `values` is `[items, tiles, 3, side, side]`, the overview first."""

    sizes: str
    """Input name of the true sizes, `[items, 2]`: height and width in pixels."""
    counts: str | None = None
    """Input name of the number of pictures of each request that has any; where a request has
    several, they are not cut into tiles. None where all pictures are."""

    def joins(self) -> dict[str, Join]:
        """Pictures one after another, tiles filled up to the largest number."""
        names = (self.values, self.sizes, *([self.counts] if self.counts else []))
        return {name: Join() for name in names}

    def required(self) -> tuple[str, ...]:
        """The sizes."""
        return (self.sizes,)

    def check(self, inputs: Inputs, config: Config) -> None:
        """As many tiles as the sizes ask for."""
        values, sizes, side = inputs[self.values], inputs[self.sizes], _side(config)
        if values.ndim != 5 or tuple(values.shape[3:]) != (side, side):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; this model takes [items, tiles, "
                f"3, {side}, {side}]"
            )
        if sizes.shape != (len(values), 2):
            raise InputError(
                f"{self.sizes} has shape {tuple(sizes.shape)}, {self.values} {len(values)} items; "
                "each needs a height and a width"
            )
        require_counts(inputs, self.sizes, 2)
        if self.counts is not None and inputs.get(self.counts) is not None:
            require_counts(inputs, self.counts)
        tiled = self._tiled(inputs)
        if len(tiled) != len(values):
            raise InputError(
                f"{self.counts} says that there are {len(tiled)} pictures, {self.values} holds "
                f"{len(values)}"
            )
        for size, cut in zip(sizes.tolist(), tiled, strict=True):
            rows, cols = _tiles(size, config)
            if cut and values.shape[1] < 1 + rows * cols:
                raise InputError(
                    f"a picture of {size[0]} by {size[1]} pixels takes an overview and {rows} by "
                    f"{cols} tiles, {self.values} holds {values.shape[1]}"
                )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """Two for each picture: the overview, and what follows it."""
        side = self.edge(config)
        found = []
        for size, cut in zip(inputs[self.sizes].tolist(), self._tiled(inputs), strict=True):
            found.append(Item(side * side, grid=(1, side, side)))
            if cut:
                rows, cols = _kept(size, _tiles(size, config), side, config)
                found.append(Item(rows * (cols + 1), grid=(1, rows, cols + 1), newlines=True))
            else:
                found.append(NEWLINE)
        return found

    def edge(self, config: Config) -> int:
        """Positions on a side of one tile."""
        return _side(config) // int(config.vision_config.patch_size)

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """The projected tiles as the model packs them."""
        core: Any = module.get_submodule("model")
        config = core.config
        option = "vision_feature_select_strategy" if self.counts is None else "vision_aspect_ratio"
        tiles = []
        for size, cut in zip(inputs[self.sizes].tolist(), self._tiled(inputs), strict=True):
            rows, cols = _tiles(size, config)
            tiles.append(1 + rows * cols if cut else 1)
        packed, _ = core.pack_image_features(
            torch.split(torch.cat(list(outputs)), tiles),
            inputs[self.sizes],
            image_newline=core.image_newline,
            **{option: getattr(config, option)},
        )
        return torch.cat(packed)

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """A wide picture, or a high one."""
        side = _side(config)
        sizes = torch.tensor([[side + side // 2, 2 * side - 1], [2 * side, side // 2]][size])[None]
        rows, cols = _tiles(sizes[0].tolist(), config)
        values = torch.randn(1, 1 + rows * cols, 3, side, side, generator=generator)
        counts = {self.counts: torch.ones(1, dtype=torch.long)} if self.counts else {}
        return {self.values: values, self.sizes: sizes, **counts}

    def _tiled(self, inputs: Inputs) -> list[bool]:
        """Whether each picture is cut into tiles."""
        counts = None if self.counts is None else inputs.get(self.counts)
        if counts is None:
            return [True] * len(inputs[self.sizes])
        return [n == 1 for n in counts.tolist() for _ in range(n)]


@dataclass(frozen=True, kw_only=True)
class Layered(AnyRes):
    """Tiles shrunk before they are packed, and added to the stream at several layers."""

    def edge(self, config: Config) -> int:
        """Positions on a side of one shrunk tile."""
        return int(super().edge(config) * Fraction(config.downsample_rate))

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """What the model adds at its first layer, where placeholders are zeroed before."""
        core: Any = module.get_submodule("model")
        made = core.get_image_features(inputs[self.values], inputs[self.sizes], return_dict=True)
        return torch.cat(dict(made.deepstack_features)[0])


def _side(config: Config) -> int:
    return int(config.vision_config.image_size)


def _tiles(size: list[int], config: Config) -> tuple[int, int]:
    """Rows and columns of tiles that a picture of `size` (height, width) is cut into."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, config.image_grid_pinpoints)
    return height // _side(config), width // _side(config)


def _kept(size: list[int], tiles: tuple[int, int], side: int, config: Config) -> tuple[int, int]:
    """Rows and columns that stay when the padding is cut away, and a limit is kept to."""
    rows, cols = tiles[0] * side, tiles[1] * side
    height, width = size
    if width / height > cols / rows:
        rows -= 2 * ((rows - int(round(height * (cols / width), 7))) // 2)
    else:
        cols -= 2 * ((cols - int(round(width * (rows / height), 7))) // 2)
    limit = getattr(config, "vision_aspect_ratio", None)
    if limit is not None:
        excess = (rows * cols / (int(limit.removeprefix("anyres_max_")) * side**2)) ** 0.5
        if excess > 1.1:
            rows, cols = int(rows // excess), int(cols // excess)
    return rows, cols
