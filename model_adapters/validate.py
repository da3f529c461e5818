"""Checks of ready encodings, made before any forward pass is paid for."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from model_adapters.errors import InputError
from model_adapters.family import Family, Frames, Grid, Medium

# Accepted by every transformers forward through its keyword arguments.
_SWITCHES = ("output_hidden_states", "output_attentions", "return_dict")


def forward_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the inputs that the model's forward really reads."""
    named = [
        parameter.name
        for parameter in inspect.signature(type(module).forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    return (*(name for name in named if name != "self"), *_SWITCHES)


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names that nothing reads: a forward would swallow them without a word.

    Raises:
        InputError: naming the unknown one and the nearest known one.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise InputError(f"{what} takes no {name!r}; {hint}")


def check_inputs(inputs: Mapping[str, Any], module: nn.Module, family: Family) -> None:
    """Everything about an encoding that would fail late, or give wrong numbers silently.

    Raises:
        InputError: saying what was given, what was expected and what to do.
    """
    check_names(inputs, forward_names(module), type(module).__name__)
    ids = _check_ids(inputs, module)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{name} holds NaN or infinite values; clean the media first")
    for medium in family.media:
        _check_medium(inputs, ids, medium, module)


def item_positions(inputs: Mapping[str, Any], medium: Medium, config: Any) -> Int[Tensor, "items"]:
    """How many prompt positions each item of a medium takes, in order of the prompt."""
    match medium:
        case Grid():
            grid: Tensor = inputs[medium.grid]
            return grid.prod(dim=1) // medium.merge(config) ** 2
        case Frames():
            return medium.positions(inputs[medium.mask].sum(dim=1))


def has_medium(inputs: Mapping[str, Any], medium: Medium) -> bool:
    """Whether the encoding holds items of this medium."""
    return inputs.get(medium.values) is not None


def _check_ids(inputs: Mapping[str, Any], module: nn.Module) -> Int[Tensor, "batch position"]:
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise InputError(
            "input_ids is missing: give a Batch from adapter.encode(requests), or ready encodings "
            "as keyword arguments"
        )
    if ids.ndim != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise InputError(
            f"input_ids must be integers of shape [batch, position], neither empty; got "
            f"{ids.dtype} of shape {tuple(ids.shape)}"
        )
    model: Any = module
    vocabulary = model.get_input_embeddings().weight.shape[0]
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"input_ids has token {low if low < 0 else high}, the model knows 0 to {vocabulary - 1}"
            ": were the requests encoded for another model?"
        )
    mask = inputs.get("attention_mask")
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise InputError(
                f"attention_mask is a {type(mask).__name__}; it must be a tensor of the shape of "
                f"input_ids, {tuple(ids.shape)}"
            )
        if mask.shape != ids.shape:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}"
            )
        empty = (mask.sum(dim=1) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"rows {empty} of attention_mask are all zero: nothing to read there")
    return ids


def _check_medium(
    inputs: Mapping[str, Any], ids: Tensor, medium: Medium, module: nn.Module
) -> None:
    config: Any = module.config
    token = getattr(config, medium.token)
    found = int((ids == token).sum())
    if not has_medium(inputs, medium):
        if found:
            raise InputError(
                f"input_ids has {found} {medium.kind} placeholders (token {token}) but there is no "
                f"{medium.values}: the {medium.kind} was lost, or the text contains the "
                "placeholder's name"
            )
        return
    companion = medium.grid if isinstance(medium, Grid) else medium.mask
    if inputs.get(companion) is None:
        raise InputError(f"{medium.values} was given without {companion}")
    for name in (medium.values, companion):
        if not isinstance(inputs[name], Tensor):
            raise InputError(f"{name} is a {type(inputs[name]).__name__}; it must be a tensor")
    if isinstance(medium, Grid):
        patches, rows = int(inputs[medium.grid].prod(dim=1).sum()), len(inputs[medium.values])
        if patches != rows:
            raise InputError(
                f"{medium.grid} describes {patches} patches, {medium.values} holds {rows}"
            )
    elif inputs[medium.values].shape[::2] != inputs[medium.mask].shape:
        raise InputError(
            f"{medium.values} has shape {tuple(inputs[medium.values].shape)} [items, features, "
            f"frames], {medium.mask} {tuple(inputs[medium.mask].shape)} [items, frames]"
        )
    positions = item_positions(inputs, medium, config)
    if (positions < 1).any():
        raise InputError(f"{medium.kind} {positions.argmin().item()} is too short to give a token")
    expected = int(positions.sum())
    if found != expected:
        raise InputError(
            f"the {medium.kind} tower will emit {expected} tokens for {len(positions)} item(s), "
            f"but input_ids has {found} {medium.kind} placeholders (token {token}). Encode text "
            "and media together, and keep placeholder names out of the text."
        )
    mask = inputs.get("attention_mask")
    if mask is None:
        raise InputError(
            f"attention_mask is missing; a prompt with {medium.kind} needs it, because the model "
            "computes the places of media from it"
        )
    if not torch.all(mask[ids == token] == 1):
        raise InputError(f"attention_mask hides {medium.kind} placeholders of input_ids")
