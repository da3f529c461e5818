"""What entries read off a config: sizes of what encoders take, and positions that come out."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from model_adapters.families.medium import Config

Counts = Int[Tensor, "items"]


def side(config: Config) -> int:
    """Pixels on a side of what the encoder takes."""
    return _one(config.vision_config.image_size)


def patch(config: Config) -> int:
    """Pixels on a side of a patch."""
    return _one(config.vision_config.patch_size)


def patches(config: Config) -> int:
    """Patches on a side."""
    return side(config) // patch(config)


def patch_values(config: Config) -> int:
    """Values of one patch of three channels."""
    return 3 * patch(config) ** 2


def _one(size: Any) -> int:
    """A side of a square that some configs write down as two numbers."""
    return int(size if isinstance(size, int) else size[0])


def shrunk(factor: str) -> Callable[[Config], int]:
    """Positions on a side where `factor` (a config attribute) patches become one."""
    return lambda config: patches(config) // int(getattr(config, factor))


def squared(edge: Callable[[Config], float]) -> Callable[[Config], int]:
    """Positions of a square of `edge` on a side."""
    return lambda config: round(edge(config)) ** 2


def cells(edge: Callable[[Config], int]) -> Callable[[Config], tuple[int, int]]:
    """Rows and columns of such a square."""
    return lambda config: (edge(config), edge(config))


def mel_bins(config: Config) -> int:
    """Values of one frame of a sound."""
    return int(config.audio_config.num_mel_bins)


def each_frame(config: Config, frames: Counts) -> Counts:
    """A position for every frame."""
    return frames


def halved(frames: Counts) -> Counts:
    """Behind a convolution of stride two, with a frame of padding on either side."""
    return torch.div(frames + 1, 2, rounding_mode="floor")


def pooled(size: int) -> Callable[[Config, Counts], Counts]:
    """Positions behind such a convolution and a pooling over `size` frames."""
    return lambda config, frames: torch.div(halved(frames), size, rounding_mode="floor")


def chunk(config: Config) -> int:
    """Frames that an encoder takes at a time."""
    return 2 * int(config.audio_config.n_window)


def of_chunks(config: Config, frames: Counts) -> Counts:
    """Three such convolutions over each chunk."""
    whole, rest = torch.full_like(frames, chunk(config)), frames % chunk(config)
    for _ in range(3):
        whole, rest = halved(whole), halved(rest)
    return torch.div(frames, chunk(config), rounding_mode="floor") * whole + rest
