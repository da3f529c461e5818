"""Checks of ready encodings, made before any forward pass is paid for."""

import difflib
import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from model_adapters.errors import InputError
from model_adapters.families import Family, Medium

# Accepted by every transformers forward through its keyword arguments.
_SWITCHES = ("output_hidden_states", "output_attentions", "return_dict")
# Inputs of floating-point numbers that stand for no image, audio or video.
_NO_MEDIA = {"attention_mask", "inputs_embeds", "position_ids"}


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
    _check_claimed(inputs, family)
    given = [medium.kind for medium in family.media if medium.given(inputs)]
    apart = [kind for kind in given if kind in family.alone]
    if apart and len(given) > 1:
        raise InputError(
            f"{family.name} cannot take {' and '.join(given)} in one pass, not even in different "
            f"requests: run those with {apart[0]} in a batch of their own"
        )
    for medium in family.media:
        _check_medium(inputs, ids, medium, module)
    model: Any = module
    _check_token_types(inputs, family, model.config)


def _check_claimed(inputs: Mapping[str, Any], family: Family) -> None:
    """Refuse media that the entry of the family does not tell of: their positions would be text."""
    claimed = {name for medium in family.media for name in medium.joins()} | _NO_MEDIA
    for name, value in inputs.items():
        if name not in claimed and _may_be_media(value):
            why = "; ".join(f"{kind}: {reason}" for kind, reason in family.unverified.items())
            raise InputError(
                f"{name} belongs to no medium of the family entry ({family.name}), so nothing "
                "says which positions it fills"
                + (f" ({why})" if why else "")
                + ". Leave it out, or extend the entry: docs/bring_your_own_model.md"
            )


def _may_be_media(value: Any) -> bool:
    """Whether a value holds fractions or bytes, or is no tensor of torch at all."""
    if isinstance(value, list | tuple):
        return any(_may_be_media(item) or isinstance(item, Tensor) for item in value)
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.dtype == torch.uint8
    return isinstance(value, np.ndarray)


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
    places = medium.placeholders(inputs, config)
    found, token = int(places.sum()), medium.placeholder(config)
    if not medium.given(inputs):
        if found:
            raise InputError(
                f"input_ids has {found} {medium.kind} placeholders (token {token}) but there is no "
                f"{medium.values}: the {medium.kind} was lost, or the text contains the "
                "placeholder's name"
            )
        return
    if token is None:
        raise InputError(
            f"{medium.values} was given, but this model's config has no {medium.token!r}, so "
            f"nothing says where {medium.kind}s stand; set model.config.{medium.token}"
        )
    medium.complete(inputs)
    medium.check(inputs, config)
    counts = [item.positions for item in medium.items(inputs, config)]
    if min(counts, default=1) < 1:
        raise InputError(f"{medium.kind} {counts.index(min(counts))} is too short to give a token")
    if found != sum(counts):
        raise InputError(
            f"the {medium.kind} tower will emit {sum(counts)} tokens for {len(counts)} item(s), "
            f"but input_ids has {found} {medium.kind} placeholders (token {token}). Encode text "
            "and media together, and keep placeholder names out of the text."
        )
    if medium.counts_opens:
        _check_opened(ids, places, counts, medium, config)
    mask = inputs.get("attention_mask")
    if mask is None:
        raise InputError(
            f"attention_mask is missing; a prompt with {medium.kind} needs it, because the model "
            "computes the places of media from it"
        )
    if not torch.all(mask[places] == 1):
        raise InputError(f"attention_mask hides {medium.kind} placeholders of input_ids")


def _check_opened(
    ids: Tensor, places: Tensor, counts: Sequence[int], medium: Medium, config: Any
) -> None:
    """Refuse an item without its opening token, where the model counts items by those tokens."""
    before, _ = medium.around(config)
    firsts = [0, *itertools.accumulate(counts)][:-1]
    for number, (row, first) in enumerate(places.nonzero()[firsts].tolist()):
        if first == 0 or ids[row, first - 1].item() not in before:
            raise InputError(
                f"{medium.kind} {number} has no opening token before its first placeholder, at "
                f"position {first} of row {row}. The model finds items by that token "
                f"({before[0] if before else medium.opens}); without it this request and the later "
                "ones of the batch would get the places of other items"
            )


def _check_token_types(inputs: Mapping[str, Any], family: Family, config: Any) -> None:
    types = family.token_types
    media = any(medium.given(inputs) for medium in family.media)
    if types is None or not (media or types.always):
        return
    for name in types.names:
        given = inputs.get(name)
        if not isinstance(given, Tensor) or given.shape != inputs["input_ids"].shape:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputError(
                f"{name} must have the shape of input_ids, "
                f"{tuple(inputs['input_ids'].shape)}, got {shape}; the model needs it to tell "
                "media from words, or to know its prompt, and silently does something else without "
                "it. Its processor returns it"
            )
        for medium in family.media:
            expected = types.ids.get(medium.kind)
            places = medium.placeholders(inputs, config)
            if expected is not None and not torch.all(given[places] == expected):
                raise InputError(f"{name} must be {expected} at {medium.kind} placeholders")
