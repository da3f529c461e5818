"""Checks that several modules of this floor share. Every error says what to do."""

import torch
from jaxtyping import Float
from torch import Tensor


def states(name: str, value: Tensor, *, least: int) -> Float[Tensor, "item d_model"]:
    """`value` as a finite float64 `[item, d_model]` tensor of at least `least` items."""
    if value.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected [item, d_model], "
            "one row for each item at one layer"
        )
    if len(value) < least:
        raise ValueError(f"{name} holds {len(value)} item(s); at least {least} are needed")
    exact = value.detach().to(torch.float64)
    finite = exact.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{name} is not finite in rows {_first(torch.nonzero(~finite).flatten())}; "
            "leave those items out or mend the pass that made them"
        )
    return exact


def same_width(name: str, value: Tensor, other: str, reference: Tensor) -> None:
    """Refuse two tensors of different widths (last axis)."""
    if value.shape[-1] != reference.shape[-1]:
        raise ValueError(
            f"{name} has width {value.shape[-1]}, {other} has width {reference.shape[-1]}; "
            "both must come from the same model"
        )


def samples(name: str, value: Tensor) -> Float[Tensor, "item"]:
    """`value` as a finite float64 vector, one number for each item."""
    if value.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected one number an item")
    exact = value.detach().to(torch.float64)
    if not exact.isfinite().all():
        wrong = torch.nonzero(~exact.isfinite()).flatten()
        raise ValueError(f"{name} is not finite for items {_first(wrong)}; leave those items out")
    return exact


def _first(indices: Tensor, shown: int = 5) -> str:
    listed = ", ".join(str(int(index)) for index in indices[:shown])
    return listed + (f", ... ({len(indices)} in all)" if len(indices) > shown else "")
