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
from model_adapters.families import Family

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
    owners = {name: medium for medium in family.media for name in medium.joins()}
    width = max(encoding["input_ids"].shape[1] for encoding in encodings)
    windows = tuple(
        _window(e["input_ids"], width, side) for e, side in zip(encodings, sides, strict=True)
    )
    assumed = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
    if family.token_types is not None:
        assumed |= dict.fromkeys(family.token_types.names, 0)
    inputs: Inputs = {}
    for name in dict.fromkeys(name for encoding in encodings for name in encoding):
        values = [e[name] for e in encodings if e.get(name) is not None]
        if name == "input_ids":
            inputs[name] = _rows(values, windows, pad_id)
        elif name in assumed:
            values = [_given(e, name, assumed[name]) for e in encodings]
            inputs[name] = _rows(values, windows, 0)
        elif name in owners:
            starts = [window.start for window in windows]
            inputs[name] = owners[name].joined(name, encodings, starts)
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
        values = [_given(e, "attention_mask", 1) for e in encodings]
        inputs["attention_mask"] = _rows(values, windows, 0)
    return inputs, windows


def _given(encoding: Mapping[str, Any], name: str, assumed: int) -> Tensor:
    """A per-position input of an encoding; where it is missing, what the model assumes."""
    value: Tensor | None = encoding.get(name)
    return torch.full_like(encoding["input_ids"], assumed) if value is None else value


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
