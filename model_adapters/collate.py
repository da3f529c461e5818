"""Several encodings into one: token rows padded to one width, media packed in order.

Every family consumes its placeholders in row-major order, so packing media in the order of the
encodings keeps each item with its own row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from model_adapters.batch import PaddingSide
from model_adapters.errors import InputError
from model_adapters.family import Family, Frames, Grid

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """The positions of a wider batch that belong to one of the encodings put into it."""

    start: int
    stop: int
    width: int
    """Positions of the wider batch."""


def collate(
    encodings: Sequence[Mapping[str, Any]],
    family: Family,
    *,
    pad_id: int,
    sides: Sequence[PaddingSide],
) -> tuple[Inputs, tuple[Window, ...]]:
    """One set of inputs for all encodings, in order, and where each one's positions went.

    Args:
        encodings: forward arguments of each; every one has `input_ids`.
        family: says how media are packed.
        pad_id: token that fills up shorter rows; their attention mask is 0 there.
        sides: on which side each encoding is filled up.

    Raises:
        InputError: for an input that nobody has said how to batch, or options that differ.
    """
    packed, audio = _media_names(family)
    width = max(encoding["input_ids"].shape[1] for encoding in encodings)
    windows = tuple(
        _window(e["input_ids"], width, side) for e, side in zip(encodings, sides, strict=True)
    )
    inputs: Inputs = {}
    for name in dict.fromkeys(name for encoding in encodings for name in encoding):
        values = [e[name] for e in encodings if e.get(name) is not None]
        if name == "input_ids":
            inputs[name] = _rows(values, windows, pad_id)
        elif name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            values = [_given(e, name) for e in encodings]
            inputs[name] = _rows(values, windows, 0)
        elif name in packed:
            inputs[name] = torch.cat([torch.as_tensor(value) for value in values])
        elif name in audio:
            frames = max(value.shape[-1] for value in values)
            inputs[name] = torch.cat([pad(v, (0, frames - v.shape[-1])) for v in values])
        elif isinstance(values[0] if values else None, Tensor):
            raise InputError(
                f"{name!r} cannot be batched with other requests: nothing says whether its rows "
                "are requests or packed media. Trace this request alone."
            )
        elif all(e.get(name) == encodings[0].get(name) for e in encodings):
            inputs[name] = encodings[0].get(name)
        else:
            raise InputError(f"{name!r} differs between the requests of one batch")
    if "attention_mask" not in inputs:
        # Rows were filled up, so the model has to be told where.
        values = [_given(e, "attention_mask") for e in encodings]
        inputs["attention_mask"] = _rows(values, windows, 0)
    return inputs, windows


def _media_names(family: Family) -> tuple[set[str], set[str]]:
    """Names of inputs packed on their first axis, and of those padded in time too."""
    packed: set[str] = set()
    audio: set[str] = set()
    for medium in family.media:
        match medium:
            case Grid():
                packed |= {medium.values, medium.grid, *medium.extras}
            case Frames():
                audio |= {medium.values, medium.mask}
    return packed, audio


def _given(encoding: Mapping[str, Any], name: str) -> Tensor:
    """A per-position input of an encoding; where it is missing, what the model assumes."""
    ids: Tensor = encoding["input_ids"]
    value: Tensor | None = encoding.get(name)
    if value is not None:
        return value
    return torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids)


def _window(ids: Tensor, width: int, side: PaddingSide) -> Window:
    own = ids.shape[1]
    start = width - own if side == "left" else 0
    return Window(start, start + own, width)


def _rows(values: Sequence[Tensor], windows: Sequence[Window], fill: int) -> Tensor:
    return torch.cat(
        [
            pad(value, (window.start, window.width - window.stop), value=fill)
            for value, window in zip(values, windows, strict=True)
        ]
    )
