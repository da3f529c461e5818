"""Numbers of views in words and as columns of a table."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regap_interp.views.text import number


def extent(values: Tensor) -> str:
    """From where to where the finite values go, to be put behind their name."""
    finite = values[values.isfinite()]
    if not finite.numel():
        return ", none finite"
    return f" from {number(float(finite.min()))} to {number(float(finite.max()))}"


def grid_columns(values: Tensor, names: tuple[str, ...]) -> dict[str, Sequence[Any]]:
    """Index columns and a value column, row-major."""
    where = torch.ones(values.shape, dtype=torch.bool).nonzero().T.tolist()
    found: dict[str, Sequence[Any]] = dict(zip(names, where, strict=True))
    return {**found, "value": values.flatten().tolist()}
