"""Pixels and sound features in the precision of the encoder that reads them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model_adapters.families import Family


def in_tower_precision(
    inputs: Mapping[str, Any], module: nn.Module, family: Family
) -> dict[str, Any]:
    """`inputs` with pixels and sound features in the floating type of their encoder.

    Processors return float32, and not every model casts it. Numbers that there is one of for each
    item, such as the seconds between frames, keep their precision.
    """
    found = dict(inputs)
    for medium in filter(lambda medium: medium.given(inputs), family.media):
        weights = module.get_submodule(medium.tower).parameters()
        types = (weight.dtype for weight in weights if weight.dtype in _CAST)
        dtype = next(types, None)
        if dtype is not None:
            cast = _caster(dtype)
            found |= {name: _mapped(found[name], cast) for name in medium.joins() if name in found}
    return found


_CAST = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _caster(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda value: value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, function) for item in value)
    return value
