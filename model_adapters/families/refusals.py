"""Refusals that several forms share."""

import torch
from torch import Tensor

from model_adapters.errors import InputError
from model_adapters.families.medium import Inputs


def require_counts(inputs: Inputs, name: str, width: int | None = None) -> None:
    """Refuse an input that does not hold whole numbers above zero, `width` an item.

    Raises:
        InputError: for another shape than `[items, width]` (`[items]` for None), for numbers with a
            fraction, and for those below one.
    """
    value: Tensor = inputs[name]
    shape = "[items]" if width is None else f"[items, {width}]"
    fits = value.ndim == 1 if width is None else value.ndim == 2 and value.shape[1] == width
    whole = not value.is_floating_point() and value.dtype != torch.bool
    if not fits or not whole or bool((value < 1).any()):
        raise InputError(
            f"{name} must be whole numbers above zero of shape {shape}; got {value.dtype} of shape "
            f"{tuple(value.shape)}" + (f", {value.tolist()}" if value.numel() < 20 else "")
        )


def require_mask(inputs: Inputs, name: str) -> None:
    """Refuse a mask of numbers with fractions, which models do not all read as one.

    Raises:
        InputError: naming the mask.
    """
    if inputs[name].is_floating_point():
        raise InputError(f"{name} is {inputs[name].dtype}; it must be integers or truth values")
