"""Gemma 3n without its vision tower, which timm would have to build."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn


class NoTower(nn.Module):
    """In the place of the vision tower."""

    def forward(self, **inputs: Any) -> Any:
        """Refuse to see."""
        raise NotImplementedError(
            "this model was loaded without its vision tower, because timm is not installed"
        )


@contextmanager
def without_tower() -> Iterator[None]:
    """Inside, Gemma 3n is built without its vision tower, and weights of it are left out."""
    from transformers.models.gemma3n import modeling_gemma3n

    real: Any = modeling_gemma3n.AutoModel

    class Others:
        @staticmethod
        def from_config(config: Any) -> nn.Module:
            if config.model_type == "gemma3n_vision":
                return NoTower()
            made: nn.Module = real.from_config(config)
            return made

    with patch.object(modeling_gemma3n, "AutoModel", Others):
        yield


@contextmanager
def without_missing_tower() -> Iterator[None]:
    """Inside, Gemma 3n is built as it is where timm is installed, else without vision tower."""
    from transformers.utils import is_timm_available

    if is_timm_available():
        yield
    else:
        with without_tower():
            yield
