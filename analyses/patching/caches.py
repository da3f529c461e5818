"""What stands in for a key-value cache when a layer is run again by hand."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from model_adapters.errors import SiteError


class Listening(Cache):
    """Notes the keys and values that a layer makes."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.made: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Keep them."""
        if self.made is not None:
            raise SiteError("a layer writes to its cache more than once")
        self.made = (key_states, value_states)
        return self.made


class Prefix(Cache):
    """The keys and values of earlier positions, in front of those that a layer makes."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(layers=[])
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Both together; nothing is kept."""
        return (
            torch.cat([self.keys, key_states], dim=2),
            torch.cat([self.values, value_states], dim=2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Earlier positions."""
        return self.keys.shape[2]


def causal_mask(states: Tensor, start: int) -> Tensor:
    """A mask for positions from `start` on; torch would take it that they are the first ones."""
    width = states.shape[1]
    mask = states.new_full((1, 1, width, start + width), torch.finfo(states.dtype).min)
    return mask.triu(start + 1)
