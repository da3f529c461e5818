"""What each attention head adds to the stream, by the output map of its layer.

The map is called by its `forward`; callers see to it that no trace takes notice (`standing_down`).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model_adapters.weights import value_of


def head_results(
    heads: Float[Tensor, "batch position _"], out_proj: Any, n_heads: int
) -> Float[Tensor, "batch position head d_model"]:
    """What the output map makes of each head, its bias left out, from the heads side by side."""
    z = heads.unflatten(-1, (n_heads, -1))
    if type(out_proj) is nn.Linear:
        weight = value_of(out_proj).unflatten(-1, (n_heads, -1))
        return torch.einsum("bphe,dhe->bphd", z, weight)
    # Quantised, or with an adapter in it: its weight is not the map. Each head by itself.
    offset = _offset(out_proj, heads)
    results = []
    for head in range(n_heads):
        others = torch.arange(n_heads, device=z.device) != head
        alone = z.masked_fill(others[:, None], 0)
        results.append(out_proj.forward(alone.flatten(-2)) - offset)
    return torch.stack(results, dim=2)


def mix(
    result: Float[Tensor, "batch position head d_model"], out_proj: Any
) -> Float[Tensor, "batch position d_model"]:
    """The output map's output from what each head adds, bias included."""
    mixed = result.sum(dim=2)
    if type(out_proj) is nn.Linear:
        return mixed if out_proj.bias is None else mixed + value_of(out_proj, "bias")
    return mixed + _offset(out_proj, mixed.new_zeros(1, 1, out_proj.in_features))


def _offset(out_proj: Any, like: Tensor) -> Tensor:
    """What an affine map makes of nothing: its bias."""
    offset: Tensor = out_proj.forward(torch.zeros_like(like[:1, :1]))
    return offset
