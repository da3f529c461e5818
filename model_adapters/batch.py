"""One encoded batch: the model's inputs, and what stands at every position."""

import dataclasses
import functools
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model_adapters.errors import InputError

PaddingSide = Literal["left", "right"]


class Role(IntEnum):
    """What a position of the prompt holds."""

    PADDING = 0
    TEXT = 1
    """Words: those of the chat, and those that the template puts around them, such as "user"."""
    IMAGE = 2
    AUDIO = 3
    VIDEO = 4
    SPECIAL = 5
    """A control token of the chat template or of the tokenizer. `encode` refuses chats whose own
    text would become one; ready encodings are taken as they are."""


@dataclass(frozen=True)
class _Span:
    start: int
    """First position."""
    stop: int
    """One past the last position."""

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.positions)

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions that the item fills, in order."""
        return tuple(range(self.start, self.stop))


@dataclass(frozen=True)
class _Patches(_Span):
    grid: tuple[int, int, int] | None
    """(time, rows, columns) of the positions, frame after frame, each in row-major order; None
    where they form no grid."""
    gaps: tuple[int, ...] = ()
    """Positions in between that hold separators, such as the row breaks of Pixtral."""
    newlines: bool = False
    """Whether the last column of the grid is a learned end-of-row vector instead of a patch."""

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions that the item fills, in order: those of the grid."""
        gaps = set(self.gaps)
        return tuple(i for i in range(self.start, self.stop) if i not in gaps)


@dataclass(frozen=True)
class ImageSpan(_Patches):
    """Positions of one image, or of one of the tiles that the processor cuts it into."""


@dataclass(frozen=True)
class VideoSpan(_Patches):
    """Positions of one video."""


@dataclass(frozen=True)
class AudioSpan(_Span):
    """Positions of one audio, spread evenly over its frames."""

    frames: tuple[int, int] | None
    """First and one-past-last feature frame (for Whisper features, 10 ms each) the model hears;
    None where the inputs do not tell."""


class Positions:
    """Questions about `roles` that batches and calls answer alike."""

    roles: Int[Tensor, "batch position"]
    """A `Role` for every position."""

    def __len__(self) -> int:
        """Number of rows (requests)."""
        return self.roles.shape[0]

    @property
    def prompt_mask(self) -> Bool[Tensor, "batch position"]:
        """True where there is a token of the prompt, of whatever role."""
        return self.roles != Role.PADDING

    @property
    def last(self) -> Int[Tensor, "batch"]:
        """Position of the last prompt token of each row, whatever the padding side."""
        positions = torch.arange(self.roles.shape[1], device=self.roles.device)
        return (positions * self.prompt_mask).amax(dim=1)

    def mask(self, role: Role | str) -> Bool[Tensor, "batch position"]:
        """True where a position has `role`, given as a `Role` or its name ("image", "text", ...).

        Raises:
            InputError: for a name that is not a role.
        """
        if isinstance(role, str):
            names = [member.name.lower() for member in Role]
            if role.lower() not in names:
                raise InputError(f"no role {role!r}; the roles are {', '.join(names)}")
            role = Role[role.upper()]
        return self.roles == role

    @functools.cached_property
    def modalities(self) -> tuple[str, ...]:
        """What each row holds: "text", "image", "audio", "video", or "omni" for several media."""
        media = (Role.IMAGE, Role.AUDIO, Role.VIDEO)
        held = torch.stack([(self.roles == role).any(dim=1) for role in media], dim=1).tolist()
        kinds = ([m.name.lower() for m, has in zip(media, row, strict=True) if has] for row in held)
        return tuple("omni" if len(row) > 1 else row[0] if row else "text" for row in kinds)


@dataclass(frozen=True, eq=False)
class Batch(Positions):
    """Requests ready for the model. Made by `Adapter.encode` or `Adapter.describe`.

    Position indices in `last` and in the spans are those of this batch; they stay valid for an
    `invoke` of it inside a larger trace, where sites are cut to this batch's own positions.
    """

    inputs: dict[str, Any]
    """Keyword arguments of the model's forward: tensors, media packed in order of the prompt."""
    roles: Int[Tensor, "batch position"]
    """A `Role` for every position."""
    images: tuple[tuple[ImageSpan, ...], ...]
    """Per row, its images in order."""
    audios: tuple[tuple[AudioSpan, ...], ...]
    """Per row, its audios in order."""
    videos: tuple[tuple[VideoSpan, ...], ...]
    """Per row, its videos in order."""
    padding_side: PaddingSide

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on `device`."""
        return dataclasses.replace(
            self, inputs=moved(self.inputs, device), roles=self.roles.to(device)
        )


def moved(value: Any, device: torch.device | str) -> Any:
    """`value` with every tensor on `device`, through dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    return value
