"""What holds in layers that pass on several streams (AltUp, Gemma 3n)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from model_adapters.errors import SelfCheckError
from model_adapters.observed import Seen
from model_adapters.stand_down import standing_down

if TYPE_CHECKING:
    from model_adapters.adapter import Adapter


def check_altup(
    adapter: "Adapter", layer: int, seen: Seen, require: Callable[..., None], at: str
) -> None:
    """How a layer predicts its streams, adds to the active one, and corrects all by it.

    Args:
        adapter: of a model with such layers.
        layer: its number.
        seen: one pass.
        require: takes an identity's name, what was got and expected, where, and terms of a sum.
        at: where this is, for errors.
    """
    inside = adapter.layout.inside[layer]
    path = f"{adapter.layout.layers}.{layer}"
    module: Any = adapter.module.get_submodule(path)
    active = adapter.module.config.get_text_config().altup_active_idx
    mid, mlp = seen.mid[layer], seen.mlp[layer]
    if mid is None:
        raise SelfCheckError(
            f"the family entry ({adapter.family.name}) has no mid_norm, but in layers with AltUp "
            "the MLP reads what attention adds"
        )
    with standing_down(adapter):
        predicted = module.altup.predict(seen.entering[layer])
        stream = predicted[active]
        laurel = module.laurel.forward(module.input_layernorm.forward(stream))
        terms = [part / math.sqrt(2) for part in (stream, seen.attn[layer], laurel)]
        name = "(predicted stream + attn_out + laurel) / sqrt 2 == resid_mid"
        require(name, (stream + seen.attn[layer] + laurel) / math.sqrt(2), mid, at, terms)
        through = mid
        for inner in dict.fromkeys((inside.mid_norm, inside.mlp, inside.mlp_out)):
            through = module.get_submodule(inner or "").forward(through)
        require("mlp_out == what the norms and the MLP make of resid_mid", through, mlp, at)
        if active == 0:  # The others get inputs of their own on top.
            corrected = module.altup.correct(predicted, mid + mlp)[active]
            name = "streams corrected by resid_mid + mlp_out == resid_post"
            require(name, corrected, seen.post[layer], at)
