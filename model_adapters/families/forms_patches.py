"""Patches of pictures of any shape, not packed: padded, with their places, or in one strip."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_adapters.errors import InputError
from model_adapters.families.medium import (
    Config,
    Inputs,
    Item,
    Join,
    Medium,
    example_shape,
    rectangles,
)
from model_adapters.families.refusals import require_counts, require_mask


@dataclass(frozen=True, kw_only=True)
class Shaped(Medium):
    """Pictures of any shape as flattened patches, filled up: `values` is `[items, patches, n]`."""

    shapes: str
    """Input name of the shapes, `[items, 2]`: rows and columns in patches."""
    mask: str
    """Input name of the mask of true patches, `[items, patches]`."""
    merge: Callable[[Config], int]
    """How many patches on a side one prompt position stands for."""
    width: Callable[[Config], int]
    """Values of one patch."""

    def joins(self) -> dict[str, Join]:
        """Items one after another, filled up to the largest."""
        return {self.values: Join(), self.shapes: Join(), self.mask: Join()}

    def check(self, inputs: Inputs, config: Config) -> None:
        """A mask as long as each shape, and sides that can be merged."""
        values, mask, shapes = (inputs[name] for name in (self.values, self.mask, self.shapes))
        require_counts(inputs, self.shapes, 2)
        require_mask(inputs, self.mask)
        if values.ndim != 3 or values.shape[2] != self.width(config):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; it must be [items, patches, "
                f"{self.width(config)}]"
            )
        if values.shape[:2] != mask.shape or len(shapes) != len(values):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}, {self.mask} {tuple(mask.shape)} "
                f"[items, patches], {self.shapes} {len(shapes)} items; they must agree"
            )
        if (mask.sum(dim=1) != shapes.prod(dim=1)).any():
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)} [items, patches, values] and "
                f"{self.mask} {mask.sum(dim=1).tolist()} true patches; {self.shapes} is "
                f"{shapes.tolist()} (rows, columns in patches)"
            )
        if (shapes % self.merge(config)).any():
            raise InputError(
                f"{self.shapes} is {shapes.tolist()}; sides must be multiples of "
                f"{self.merge(config)} patches"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each shape, in merged patches."""
        return rectangles(inputs[self.shapes].tolist(), self.merge(config))

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One by two merged patches, or two by three."""
        shape = torch.tensor([example_shape(size, self.merge(config))])
        count = int(shape.prod())
        values = torch.randn(1, count, self.width(config), generator=generator)
        mask = torch.ones(1, count, dtype=torch.long)
        return {self.values: values, self.shapes: shape, self.mask: mask}


@dataclass(frozen=True, kw_only=True)
class Placed(Medium):
    """Flattened patches, filled up: `values` is `[pictures, patches, values of one]`.

    A video is several pictures; in the prompt, tokens stand between them.
    """

    places: str
    """Input name of the places, `[pictures, patches, 2]`: column and row; -1 is padding."""
    merge: Callable[[Config], int]
    """How many patches on a side one prompt position stands for."""
    width: Callable[[Config], int]
    """Values of one patch."""
    counts: str | None = None
    """Input name of the pictures of each video, `[videos]`; None for single pictures."""

    def joins(self) -> dict[str, Join]:
        """Pictures one after another, patches filled up."""
        joins = {self.values: Join(), self.places: Join(fill=-1)}
        return joins if self.counts is None else joins | {self.counts: Join()}

    def check(self, inputs: Inputs, config: Config) -> None:
        """A place for every patch, in rectangles that can be merged."""
        values, places, side = inputs[self.values], inputs[self.places], self.merge(config)
        width = self.width(config)
        if values.ndim != 3 or values.shape[2] != width or places.shape != (*values.shape[:2], 2):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}, {self.places} "
                f"{tuple(places.shape)}; they must be [pictures, patches, {width}] and "
                "[pictures, patches, 2]"
            )
        if self.counts is not None:
            require_counts(inputs, self.counts)
        if places.is_floating_point():
            raise InputError(f"{self.places} is {places.dtype}; it must be whole numbers")
        if self.counts is not None and int(inputs[self.counts].sum()) != len(values):
            raise InputError(
                f"{self.counts} {inputs[self.counts].tolist()} do not sum up to the {len(values)} "
                f"pictures of {self.values}"
            )
        rectangles = [rows * columns for rows, columns in self._shapes(places)]
        given = (places != -1).all(dim=-1).sum(dim=1).tolist()
        if rectangles != given or any(n % side for shape in self._shapes(places) for n in shape):
            raise InputError(
                f"{self.places} must fill rectangles of rows and columns divisible by {side}; it "
                f"has {given} patches for rectangles of {rectangles}"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each picture or video."""
        pictures = rectangles(self._shapes(inputs[self.places]), self.merge(config))
        if self.counts is None:
            return pictures
        items, first = [], 0
        for frames in inputs[self.counts].tolist():
            of_video = pictures[first : first + frames]
            runs = tuple(picture.positions for picture in of_video)
            grids = {picture.grid for picture in of_video}
            grid = next(iter(grids)) if len(grids) == 1 else None
            items.append(Item(sum(runs), grid=grid and (frames, *grid[1:]), runs=runs))
            first += frames
        return items

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One by two merged patches, or two by three; a video has two such frames, or three."""
        rows, columns = example_shape(size, self.merge(config))
        frames = 1 if self.counts is None else 2 + size
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        made = {
            self.values: torch.rand(frames, len(place), self.width(config), generator=generator),
            self.places: place.repeat(frames, 1, 1),
        }
        if self.counts is not None:
            made[self.counts] = torch.tensor([frames])
        return made

    def _shapes(self, places: Tensor) -> list[tuple[int, int]]:
        """Rows and columns of each picture, in patches."""
        return [(row + 1, column + 1) for column, row in places.amax(dim=1).tolist()]


@dataclass(frozen=True, kw_only=True)
class Strip(Medium):
    """Crops of many shapes in one strip: `values` is `[1, 3, patch, patches * patch]`.

    A picture is one crop, or an overview and its slices; a video is one crop or more a frame.
    """

    sizes: str
    """Input name of the crops' shapes, `[crops, 2]`: rows and columns in patches."""
    patch: Callable[[Config], int]
    """Pixels on a patch's side."""

    def joins(self) -> dict[str, Join]:
        """The strips one behind another."""
        return {self.values: Join(axis=-1), self.sizes: Join()}

    def check(self, inputs: Inputs, config: Config) -> None:
        """As long a strip as the shapes say, and shapes that can be merged."""
        require_counts(inputs, self.sizes, 2)
        values, patch = inputs[self.values], self.patch(config)
        if values.ndim != 4 or tuple(values.shape[:3]) != (1, 3, patch):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; it must be [1, 3, {patch}, pixel "
                "columns]"
            )
        sizes, strip = inputs[self.sizes], values.shape[-1]
        wanted = int(sizes.prod(dim=1).sum()) * patch
        if strip != wanted:
            raise InputError(
                f"{self.sizes} describes crops of {wanted} pixel columns together, {self.values} "
                f"has {strip}"
            )
        side = _crop_merge(inputs, config)
        if bool((sizes % side).any()):
            raise InputError(
                f"{self.sizes} must be multiples of {side}, the patches that are merged on a side; "
                f"got {sizes.tolist()}"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each crop."""
        return rectangles(inputs[self.sizes].tolist(), _crop_merge(inputs, config))

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One by two merged patches, or two by three."""
        rows, columns = example_shape(size, _crop_merge({}, config))
        patch = self.patch(config)
        values = torch.randn(1, 3, patch, rows * columns * patch, generator=generator)
        return {self.values: values, self.sizes: torch.tensor([[rows, columns]])}


def _crop_merge(inputs: Inputs, config: Config) -> int:
    """Patches on a side of one position."""
    mode = inputs.get("downsample_mode") or config.downsample_mode
    return 2 if mode == "4x" else 4
