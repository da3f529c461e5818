"""Weights that are kept elsewhere until they are needed: accelerate's offloading to CPU or disk.

An offloaded parameter is a stand-in without values. Computing with it gives numbers that mean
nothing, and no error; whoever uses a weight by hand takes it from here.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where `module` computes: for offloaded weights not where they are kept."""
    place = next(module.parameters(), None)
    for part in module.modules():
        for hook in _hooks(part):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
        if place is not None and not place.is_meta:
            return place.device
    return torch.device("cpu") if place is None else place.device


def value_of(module: nn.Module, name: str = "weight") -> Tensor:
    """The parameter `name` of `module` itself, on the device where the module computes.

    Raises:
        ValueError: when it has no values anywhere.
    """
    stored: Tensor = getattr(module, name)
    return _kept(module, name).to(device_of(module)) if stored.is_meta else stored


def kept_values(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter inside `module`, once, by name, from wherever its values are kept.

    Raises:
        ValueError: for one that has none.
    """
    # Offloading makes two of one that is tied.
    tied = getattr(module, "all_tied_weights_keys", {})
    for name, parameter in sorted(module.named_parameters(), key=lambda entry: entry[0]):
        if parameter.is_meta:
            if name in tied:
                continue
            owner, _, own = name.rpartition(".")
            yield name, _kept(module.get_submodule(owner), own)
        else:
            yield name, parameter


def _kept(module: nn.Module, name: str) -> Tensor:
    for hook in _hooks(module):
        if hook.weights_map is not None:
            values: Tensor = hook.weights_map[name]
            return values
    raise ValueError(
        f"{name} of a {type(module).__name__} is on the meta device, and nothing says where its "
        "values are kept"
    )


def _hooks(module: nn.Module) -> list[Any]:
    """Accelerate's hooks on `module` that move values about."""
    hook = getattr(module, "_hf_hook", None)
    several = getattr(hook, "hooks", (hook,))
    return [one for one in several if hasattr(one, "execution_device")]
