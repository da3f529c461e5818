"""Roles and media spans of ready encodings."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model_adapters.batch import AudioSpan, Batch, ImageSpan, PaddingSide, Role, VideoSpan
from model_adapters.errors import InputError
from model_adapters.families import Family, Item, Medium

_ROLES = {"image": Role.IMAGE, "audio": Role.AUDIO, "video": Role.VIDEO}


def padding_side(mask: Tensor | None) -> PaddingSide:
    """The side on which rows are filled up; "left" where none is."""
    return "right" if mask is not None and bool((mask[:, -1] == 0).any()) else "left"


def describe(
    inputs: Mapping[str, Any],
    family: Family,
    config: Any,
    *,
    control: frozenset[int],
    side: PaddingSide,
) -> Batch:
    """A `Batch` of checked inputs.

    Args:
        inputs: forward arguments that passed `check_inputs`.
        family: which media the model takes.
        config: the model's configuration.
        control: ids of control tokens.
        side: where rows are padded.
    """
    ids: Int[Tensor, "batch position"] = inputs["input_ids"]
    spans: dict[str, tuple[tuple[Any, ...], ...]] = {}
    for medium in family.media:
        spans[medium.kind] = _spans(inputs, medium, config)
    nothing: tuple[tuple[Any, ...], ...] = ((),) * len(ids)
    return Batch(
        inputs=dict(inputs),
        roles=roles_of(inputs, family, config, control=control),
        images=spans.get("image", nothing),
        audios=spans.get("audio", nothing),
        videos=spans.get("video", nothing),
        padding_side=side,
    )


def roles_of(
    inputs: Mapping[str, Any],
    family: Family,
    config: Any,
    *,
    control: frozenset[int],
) -> Int[Tensor, "batch position"]:
    """The `Role` of every position.

    Args:
        inputs: `input_ids`, and what else tells where media stand. `attention_mask`, if there is
            one, has the shape of the ids and is 0 at padding.
        family: which media the model takes.
        config: the model's configuration.
        control: ids of control tokens.
    """
    ids: Int[Tensor, "batch position"] = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    roles = torch.full_like(ids, Role.TEXT, dtype=torch.long)
    if control:
        roles[torch.isin(ids, torch.tensor(sorted(control), device=ids.device))] = Role.SPECIAL
    for medium in family.media:
        roles[medium.placeholders(inputs, config)] = _ROLES[medium.kind]
    if mask is not None:
        roles[mask == 0] = Role.PADDING
    return roles


def _spans(
    inputs: Mapping[str, Any], medium: Medium, config: Any
) -> tuple[tuple[ImageSpan | AudioSpan | VideoSpan, ...], ...]:
    """Items handed out to the placeholders in reading order, as the model does it."""
    placeholders: Bool[Tensor, "batch position"] = medium.placeholders(inputs, config)
    rows: list[list[ImageSpan | AudioSpan | VideoSpan]] = [[] for _ in placeholders]
    if medium.given(inputs):
        places, taken = placeholders.nonzero(), 0
        for number, item in enumerate(medium.items(inputs, config)):
            of_item = places[taken : taken + item.positions]
            taken += item.positions
            row = int(of_item[0, 0])
            positions = of_item[:, 1].tolist()
            gaps = tuple(sorted(set(range(positions[0], positions[-1] + 1)) - set(positions)))
            runs = item.runs or (item.positions,)
            if int(of_item[-1, 0]) != row or _runs(positions) != runs:
                raise InputError(
                    f"the {item.positions} placeholders of {medium.kind} {number} must stand in "
                    f"one row, in runs of {', '.join(map(str, runs))} side by side; they stand in "
                    f"runs of {', '.join(map(str, _runs(positions)))} (audio interleaved with "
                    "video is not supported)"
                )
            rows[row].append(_span(medium, item, positions[0], positions[-1] + 1, gaps))
    return tuple(tuple(row) for row in rows)


def _runs(positions: Sequence[int]) -> tuple[int, ...]:
    """Lengths of the runs of consecutive positions."""
    starts = [i for i, at in enumerate(positions) if not i or at != positions[i - 1] + 1]
    return tuple(b - a for a, b in zip(starts, [*starts[1:], len(positions)], strict=True))


def _span(
    medium: Medium, item: Item, start: int, stop: int, gaps: tuple[int, ...]
) -> ImageSpan | AudioSpan | VideoSpan:
    if medium.kind == "audio":
        return AudioSpan(start, stop, frames=item.frames)
    span = ImageSpan if medium.kind == "image" else VideoSpan
    return span(start, stop, item.grid, gaps=gaps, newlines=item.newlines)
