"""Roles and media spans of ready encodings."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model_adapters.batch import AudioSpan, Batch, ImageSpan, PaddingSide, Role, VideoSpan
from model_adapters.errors import InputError
from model_adapters.family import Family, Grid, Medium
from model_adapters.validate import has_medium, item_positions

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
        placeholders = ids == getattr(config, medium.token)
        spans[medium.kind] = _spans(inputs, medium, placeholders, config)
    nothing: tuple[tuple[Any, ...], ...] = ((),) * len(ids)
    return Batch(
        inputs=dict(inputs),
        roles=roles_of(ids, inputs.get("attention_mask"), family, config, control=control),
        images=spans.get("image", nothing),
        audios=spans.get("audio", nothing),
        videos=spans.get("video", nothing),
        padding_side=side,
    )


def roles_of(
    ids: Int[Tensor, "batch position"],
    mask: Tensor | None,
    family: Family,
    config: Any,
    *,
    control: frozenset[int],
) -> Int[Tensor, "batch position"]:
    """The `Role` of every position.

    Args:
        ids: token ids.
        mask: 0 at padding, of the shape of `ids`; None where nothing is padded.
        family: which media the model takes.
        config: the model's configuration.
        control: ids of control tokens.
    """
    roles = torch.full_like(ids, Role.TEXT)
    if control:
        roles[torch.isin(ids, torch.tensor(sorted(control), device=ids.device))] = Role.SPECIAL
    for medium in family.media:
        roles[ids == getattr(config, medium.token)] = _ROLES[medium.kind]
    if mask is not None:
        roles[mask == 0] = Role.PADDING
    return roles


def _spans(
    inputs: Mapping[str, Any],
    medium: Medium,
    placeholders: Bool[Tensor, "batch position"],
    config: Any,
) -> tuple[tuple[ImageSpan | AudioSpan | VideoSpan, ...], ...]:
    """Items handed out to the placeholders in reading order, as the model does it."""
    rows: list[list[ImageSpan | AudioSpan | VideoSpan]] = [[] for _ in placeholders]
    if has_medium(inputs, medium):
        places = placeholders.nonzero()
        taken = 0
        for item, count in enumerate(item_positions(inputs, medium, config).tolist()):
            of_item = places[taken : taken + count]
            taken += count
            row, start = of_item[0].tolist()
            last_row, last = of_item[-1].tolist()
            if (last_row, last) != (row, start + count - 1):
                raise InputError(
                    f"the {count} placeholders of {medium.kind} {item} do not stand side by side "
                    "in one row (audio interleaved with video is not supported)"
                )
            rows[row].append(_span(inputs, medium, item, start, start + count, config))
    return tuple(tuple(row) for row in rows)


def _span(
    inputs: Mapping[str, Any], medium: Medium, item: int, start: int, stop: int, config: Any
) -> ImageSpan | AudioSpan | VideoSpan:
    if not isinstance(medium, Grid):
        return AudioSpan(start, stop, frames=(0, int(inputs[medium.mask][item].sum())))
    time, rows, columns = inputs[medium.grid][item].tolist()
    side = medium.merge(config)
    grid = (time, rows // side, columns // side)
    return ImageSpan(start, stop, grid) if medium.kind == "image" else VideoSpan(start, stop, grid)
