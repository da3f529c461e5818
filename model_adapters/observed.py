"""What one traced pass shows at every site, for the checks at load."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from model_adapters.batch import moved
from model_adapters.parts import first

if TYPE_CHECKING:
    from model_adapters.adapter import Adapter


@dataclass(frozen=True)
class Seen:
    """Of every layer where it is a list."""

    entering: list[Tensor]
    """What layers are called with: the stream, or all streams (AltUp)."""
    pre: list[Tensor]
    z: list[Tensor]
    mixed: list[Tensor]
    """What attention returns, before a norm behind it."""
    attn: list[Tensor]
    mid: list[Tensor | None]
    mlp: list[Tensor]
    then: list[Tensor | None]
    """What is added after the MLP."""
    post: list[Tensor]
    norm: Tensor
    head_input: Tensor
    logits: Tensor
    returned: Tensor


def observe(adapter: "Adapter", inputs: Mapping[str, Any]) -> Seen:
    """Read all sites in one trace."""
    entering: list[Tensor] = []
    pre: list[Tensor] = []
    z: list[Tensor] = []
    mixed: list[Tensor] = []
    attn: list[Tensor] = []
    mid: list[Tensor | None] = []
    mlp: list[Tensor] = []
    then: list[Tensor | None] = []
    post: list[Tensor] = []
    head_input = adapter.get(adapter.layout.head)
    inside = [
        (adapter.get(f"{adapter.layout.layers}.{number}"), layer)
        for number, layer in enumerate(adapter.layout.inside)
    ]
    rest: list[Tensor] = []
    with adapter.trace(**inputs) as tracer:
        for number, (envoy, layer) in enumerate(inside):
            entering.append(envoy.input)
            pre.append(adapter.resid_pre[number])
            z.append(adapter.z[number])
            mixed.append(first(envoy.get(layer.attn).output))
            attn.append(adapter.attn_out[number])
            mid.append(adapter.resid_mid[number] if layer.mid_norm else None)
            mlp.append(adapter.mlp_out[number])
            then.append(first(envoy.get(layer.then_adds).output) if layer.then_adds else None)
            post.append(adapter.resid_post[number])
        rest.append(adapter.final_norm)
        rest.append(head_input.input)
        rest.append(adapter.logits)
        rest.append(tracer.result.logits)
    # Layers may be spread over several devices.
    per_layer = (entering, pre, z, mixed, attn, mid, mlp, then, post)
    return Seen(*(moved(values, rest[-1].device) for values in (*per_layer, *rest)))
