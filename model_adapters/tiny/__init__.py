"""Tiny models with random weights, one builder for each family, to check families on.

Nothing here is trained or downloaded; a builder makes the model of a small config, the same weights
at every call.
"""

import importlib
from collections.abc import Callable

from torch import nn

_MODULES = (
    "qwen",
    "glm",
    "minicpmv",
    "packed",
    "minicpmo",
    "pictures",
    "anyres",
    "sounds",
    "gemma",
    "text",
)


def builders() -> dict[str, Callable[[], nn.Module]]:
    """By name, which is the `model_type` where a model type has but one builder."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name in _MODULES:
        module = importlib.import_module(f"model_adapters.tiny.{name}")
        found |= module.TINY
        # Models with a talker, of which only the language part is loaded.
        found |= getattr(module, "FULL", {})
    return found
