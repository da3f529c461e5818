"""From states of the residual stream to logits, out of turn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model_adapters.errors import InputError, SiteError
from model_adapters.stand_down import standing_down
from model_adapters.weights import device_of

if TYPE_CHECKING:
    from model_adapters.adapter import Adapter


def unembed(
    adapter: "Adapter",
    states: Float[Tensor, "*rows d_model"],
    tokens: Sequence[int] | Int[Tensor, "token"] | None = None,
) -> Float[Tensor, "*rows token"]:
    """Final norm and output head; see `Adapter.unembed`."""
    if states.shape[-1] != adapter.d_model:
        raise SiteError(
            f"unembed takes states of width {adapter.d_model}, got {tuple(states.shape)}"
        )
    if adapter.family.altup:
        raise SiteError(
            "logits of this model come from all of its streams together (AltUp); states of the "
            "active one alone have none. Read adapter.final_norm or adapter.logits instead"
        )
    chosen = None if tokens is None else _checked_tokens(adapter, tokens)
    norm: Any = adapter._final_norm.envoy._module
    head: Any = adapter._logits.envoy._module
    final = adapter._logits.part
    place = norm if next(norm.parameters(), None) is not None else head
    with standing_down(adapter):
        # `forward`, because hooks on the modules are not meant for this call.
        normed = norm.forward(states.to(device=device_of(place), dtype=adapter.module.dtype))
        if chosen is None:
            return final.get(head.forward(normed))
        if type(head) is not nn.Linear or head.weight.is_meta:
            return final.get(head.forward(normed)[..., chosen])
    rows = chosen.to(head.weight.device)
    bias = None if head.bias is None else head.bias[rows]
    logits = nn.functional.linear(normed.to(head.weight.device), head.weight[rows], bias)
    return final.get(logits)


def _checked_tokens(adapter: "Adapter", tokens: Sequence[int] | Tensor) -> Tensor:
    chosen = torch.as_tensor(tokens)
    whole = chosen.ndim == 1 and len(chosen) > 0 and not chosen.is_floating_point()
    if not whole or chosen.dtype == torch.bool:
        raise InputError(f"tokens must be a list of token ids, at least one; got {tokens!r}")
    low, high = int(chosen.min()), int(chosen.max())
    if low < 0 or high >= adapter.d_vocab:
        raise InputError(
            f"tokens has {low if low < 0 else high}; the model knows 0 to {adapter.d_vocab - 1}"
        )
    return chosen
