"""Sounds as feature frames, with a mask of frames, of positions, or without one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from model_adapters.errors import InputError
from model_adapters.families.medium import Config, Inputs, Item, Join, Medium, attribute
from model_adapters.families.refusals import require_mask

Count = Callable[[Config, int], int]


@dataclass(frozen=True, kw_only=True)
class Frames(Medium):
    """Sounds as padded feature frames, one item a row: `values` is `[items, bins, frames]`."""

    positions: Callable[[Config, Int[Tensor, "items"]], Int[Tensor, "items"]]
    """How many prompt positions items of so many heard frames take."""
    width: Callable[[Config], int]
    """Values of one frame."""
    mask: str | None = None
    """Input name of the mask of heard frames, `[items, frames]`; None where all are heard."""
    boolean: bool = False
    """Whether the mask must be one of truth values."""
    frames_first: bool = False
    """Whether `values` is `[items, frames, bins]`."""
    filled: Count = lambda config, frames: frames
    """To how many frames an item of so many has to be filled up."""
    pads: bool = True
    """Whether the encoder leaves out what was filled up, so that a batch may hold several lengths
    (beyond `filled`)."""
    lengths: tuple[int, int] = (40, 25)
    """Heard frames of the two examples."""

    def joins(self) -> dict[str, Join]:
        """Items one after another, frames filled up where that does no harm."""
        join = Join(fill=0 if self.pads else None)
        return {self.values: join} | ({} if self.mask is None else {self.mask: join})

    def check(self, inputs: Inputs, config: Config) -> None:
        """Features and mask of the same frames, as many as the encoder takes."""
        values = inputs[self.values]
        order = "[items, frames, bins]" if self.frames_first else "[items, bins, frames]"
        bins = self.width(config)
        if values.ndim != 3 or values.shape[2 if self.frames_first else 1] != bins:
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; it must be {order} with {bins} "
                "bins"
            )
        frames = self._frames(values)
        if self.filled(config, frames) != frames:
            raise InputError(
                f"{self.values} has {frames} frames; this model takes them filled up to "
                f"{self.filled(config, frames)}"
            )
        if self.mask is None:
            return
        mask = inputs[self.mask]
        if mask.shape != (len(values), frames):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)} {order}, {self.mask} "
                f"{tuple(mask.shape)} [items, frames]"
            )
        if self.boolean and mask.dtype != torch.bool:
            raise InputError(f"{self.mask} is {mask.dtype}; it must be torch.bool")
        require_mask(inputs, self.mask)
        heard = torch.arange(frames, device=mask.device) < mask.sum(dim=1, keepdim=True)
        if not torch.equal(mask.bool(), heard) or not bool(heard[:, :1].all()):
            raise InputError(
                f"{self.mask} must be ones first and zeros after them in every row, and not all "
                "zeros"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each row."""
        heard = self._heard(inputs)
        counts = self.positions(config, heard).tolist()
        return [Item(n, frames=(0, f)) for n, f in zip(counts, heard.tolist(), strict=True)]

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """Of the encoder module's outputs only what items heard, where `inputs` are filled up."""
        model: Any = module
        counts = [item.positions for item in self.items(inputs, model.config)]
        rows = torch.cat(list(outputs))
        if rows.ndim == 2:
            return rows
        return torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)])

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One sound of the length given by `lengths`, filled up as the model wants it."""
        wanted = self.lengths[size] if self.pads else max(self.lengths)
        frames = self.filled(config, wanted)
        heard = frames if self.mask is None else min(self.lengths[size], frames)
        values = torch.randn(1, self.width(config), frames, generator=generator)
        mask = torch.arange(frames)[None] < heard
        values = values * mask[:, None]
        made = {self.values: values.transpose(1, 2).contiguous() if self.frames_first else values}
        if self.mask is not None:
            made[self.mask] = mask if self.boolean else mask.long()
        return made

    def _frames(self, values: Tensor) -> int:
        return values.shape[1 if self.frames_first else 2]

    def _heard(self, inputs: Inputs) -> Tensor:
        values = inputs[self.values]
        if self.mask is not None:
            return torch.as_tensor(inputs[self.mask]).sum(dim=1)
        return torch.full((len(values),), self._frames(values))


@dataclass(frozen=True, kw_only=True)
class Projected(Medium):
    """Sounds whose mask is one of positions: `values` is `[items, frames, bins]` (Granite).

    The encoder hears padding, so those of one batch must be of one length.
    """

    mask: str
    """Input name of the mask of positions, `[items, positions]`, of truth values."""
    positions: Count
    """Prompt positions of an item of so many frames."""
    width: Callable[[Config], int]
    """Values of one frame."""
    multiplier: str
    """Dotted config attribute by which the features are multiplied before the first layer."""

    def joins(self) -> dict[str, Join]:
        """Items one after another."""
        return {self.values: Join(fill=None), self.mask: Join(fill=None)}

    def check(self, inputs: Inputs, config: Config) -> None:
        """A mask of the positions that the projector gives for so many frames."""
        values, mask = inputs[self.values], inputs[self.mask]
        if values.ndim != 3 or values.shape[2] != self.width(config):
            raise InputError(
                f"{self.values} has shape {tuple(values.shape)}; it must be [items, frames, "
                f"{self.width(config)}]"
            )
        expected = (len(values), self.positions(config, values.shape[1]))
        if mask.shape != expected or mask.dtype != torch.bool:
            raise InputError(
                f"{self.mask} is {mask.dtype} of shape {tuple(mask.shape)}; for {self.values} of "
                f"shape {tuple(values.shape)} it must be torch.bool of shape {expected} [items, "
                "positions]"
            )

    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """One for each row of the mask."""
        frames = (0, inputs[self.values].shape[1])
        return [Item(n, frames=frames) for n in inputs[self.mask].sum(dim=1).tolist()]

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """What the mask leaves, multiplied as the decoder does it."""
        model: Any = module
        factor: float = attribute(model.config, self.multiplier)
        return torch.cat(list(outputs))[inputs[self.mask]] * factor

    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """One sound, or two of the same length."""
        frames = 23
        values = torch.randn(1 + size, frames, self.width(config), generator=generator)
        mask = torch.ones(1 + size, self.positions(config, frames), dtype=torch.bool)
        return {self.values: values, self.mask: mask}


@dataclass(frozen=True, kw_only=True)
class Fixed(Frames):
    """Sounds that take one number of positions whatever their length (Gemma 3n).

    Positions that the encoder has nothing for hold the features of a padding token.
    """

    subsampling: Callable[[Config], int]
    """Frames for each of the encoder's vectors."""

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """The encoder's vectors where frames were heard, the padding token's elsewhere."""
        model: Any = module
        # Calls: the embeddings of hard tokens, the encoder's vectors, the padding token.
        encoded, padding = outputs[-2], outputs[-1][0, 0]
        mask: Tensor = inputs[self.mask or ""]
        step = self.subsampling(model.config)
        starts = (torch.arange(encoded.shape[1]) * step).clamp(max=mask.shape[1] - 1)
        kept = torch.where(mask[:, starts, None], encoded, padding)
        counts = [item.positions for item in self.items(inputs, model.config)]
        rows = [
            torch.cat([row, padding.expand(count - len(row), -1)])
            for row, count in zip(kept, counts, strict=True)
        ]
        return torch.cat(rows)
