"""Identities that every site relies on, tried on the loaded model itself before it is used.

One short prompt with one item of every medium runs through the model bare, traced, and traced with
a write. A family entry that does not fit, or a forward hook somebody left on the model, breaks one
of these identities; analyses on top would then be wrong without a sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model_adapters.errors import SelfCheckError, SiteError
from model_adapters.family import Family, Grid

if TYPE_CHECKING:
    from model_adapters.adapter import Adapter

# Largest difference relative to the largest value. Additions are repeated in the model's own order
# and precision; matrix products of other shapes may round differently.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class SelfCheck:
    """What the load-time check found."""

    differences: Mapping[str, float]
    """Largest difference, relative to the largest value, per identity."""
    discontinuities: tuple[int, ...]
    """Layers l whose `resid_post[l]` is not `resid_pre[l + 1]`: the model adds something there."""


@dataclass(frozen=True)
class _Seen:
    pre: list[Tensor]
    z: list[Tensor]
    attn: list[Tensor]
    mid: list[Tensor]
    mlp: list[Tensor]
    post: list[Tensor]
    norm: Tensor
    head_input: Tensor
    logits: Tensor
    returned: Tensor


def probe(module: nn.Module, family: Family) -> dict[str, Any]:
    """Inputs of one short prompt that holds one small item of every medium."""
    model: Any = module
    config = model.config
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    words = plain_tokens(config, family)
    ids = words[1:4]
    inputs: dict[str, Any] = {}
    for medium in family.media:
        if isinstance(medium, Grid):
            side = medium.merge(config)
            count = 2
            inputs[medium.grid] = torch.tensor([[1, side, count * side]])
            shape: tuple[int, ...] = (count * side * side, medium.width(config))
            inputs |= {name: torch.ones(1) for name in medium.extras}
        else:
            frames = torch.tensor([12])
            count = int(medium.positions(frames))
            inputs[medium.mask] = torch.ones(1, 12, dtype=torch.long)
            shape = (1, medium.width(config), 12)
        inputs[medium.values] = torch.randn(shape, generator=generator)
        opening = [getattr(config, medium.opens)] if medium.opens else []
        ids = [*ids, *opening, *[getattr(config, medium.token)] * count, words[4], words[5]]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return {name: value.to(device) for name, value in inputs.items()}


def plain_tokens(config: Any, family: Family) -> list[int]:
    """At least eight token ids that stand for no medium and are no control tokens."""
    taken = {getattr(config, medium.token) for medium in family.media}
    taken |= {getattr(config, medium.opens) for medium in family.media if medium.opens}
    taken |= {getattr(config, name, None) for name in family.control_tokens}
    return [token for token in range(len(taken) + 8) if token not in taken]


def bare_logits(
    module: nn.Module, inputs: Mapping[str, Any]
) -> Float[Tensor, "batch position d_vocab"]:
    """Logits of the model as it came, before anything wraps it.

    Raises:
        SelfCheckError: when they are not finite.
    """
    with torch.no_grad():
        logits: Tensor = module(**inputs).logits
    if not logits.isfinite().all():
        raise SelfCheckError(
            f"the model's own logits are not finite in {logits.dtype}; load it in another dtype"
        )
    return logits


@torch.no_grad()
def self_check(
    adapter: "Adapter", inputs: Mapping[str, Any], bare: Float[Tensor, "batch position d_vocab"]
) -> SelfCheck:
    """Check all identities on `inputs`.

    Args:
        adapter: the wrapped model.
        inputs: as from `probe`.
        bare: the model's logits for them before it was wrapped.

    Raises:
        SelfCheckError: naming the identity, the layer and the size of the difference.
    """
    try:
        seen = _observe(adapter, inputs)
    except SiteError as error:
        raise SelfCheckError(
            "the model does not run its parts in the order of the sites; the family entry "
            f"({adapter.family.name}) does not fit this model. {error}"
        ) from error
    if not torch.equal(seen.returned, bare):
        raise SelfCheckError(
            "an untouched trace is not bit-identical to the bare model: largest difference "
            f"{_difference(seen.returned, bare):.1e} of the largest logit. Is the model random in "
            "evaluation, or hooked?"
        )
    differences: dict[str, float] = {}

    def require(identity: str, got: Tensor, expected: Tensor, where: str = "") -> None:
        difference = _difference(got, expected)
        differences[identity] = max(difference, differences.get(identity, 0.0))
        if not difference <= TOLERANCE.get(expected.dtype, 5e-2):
            raise SelfCheckError(
                f"{identity} does not hold{where}: largest difference {difference:.1e} of the "
                "largest value. Either a hook on the model changes values behind the sites, or the "
                f"family entry ({adapter.family.name}) does not fit this model."
            )

    stream = seen.pre[0]
    broken = []
    for layer in range(adapter.n_layers):
        at = f" at layer {layer}"
        if layer and not torch.equal(seen.pre[layer], seen.post[layer - 1]):
            broken.append(layer - 1)
            stream = stream + (seen.pre[layer] - seen.post[layer - 1])
            if not adapter.family.adds_between_layers:
                raise SelfCheckError(
                    f"resid_post[{layer - 1}] is not resid_pre[{layer}]: something adds to the "
                    "stream between layers, up to "
                    f"{_difference(seen.pre[layer], seen.post[layer - 1]):.1e} of its largest "
                    f"value, and the family ({adapter.family.name}) is not known to do that. Is "
                    "there a hook on the layer?"
                )
        projection = _module(adapter, layer, adapter.family.out_proj)
        mixed = nn.functional.linear(seen.z[layer].flatten(-2), projection.weight, projection.bias)
        require("sum of head results == attn_out", mixed, seen.attn[layer], at)
        mid = seen.pre[layer] + seen.attn[layer]
        require("resid_pre + attn_out == resid_mid", mid, seen.mid[layer], at)
        post = seen.mid[layer] + seen.mlp[layer]
        require("resid_mid + mlp_out == resid_post", post, seen.post[layer], at)
        stream = stream + seen.attn[layer] + seen.mlp[layer]
    require("embed + all attn_out + all mlp_out == last resid_post", stream, seen.post[-1])
    require("final_norm == what the head receives", seen.norm[:, -1], seen.head_input[:, -1])
    require("logits == what the model returns", seen.logits[:, -1], seen.returned[:, -1])
    norm, head = _path(adapter, adapter.layout.norm), _path(adapter, adapter.layout.head)
    lens = head.forward(norm.forward(seen.post[-1][:, -1:]))
    require("last row of the logit lens == logits", lens[:, -1], seen.returned[:, -1])
    _check_write(adapter, inputs, require)
    return SelfCheck(differences, tuple(broken))


def _observe(adapter: "Adapter", inputs: Mapping[str, Any]) -> _Seen:
    pre: list[Tensor] = []
    z: list[Tensor] = []
    attn: list[Tensor] = []
    mid: list[Tensor] = []
    mlp: list[Tensor] = []
    post: list[Tensor] = []
    head_input = adapter.get(adapter.layout.head)
    rest: list[Tensor] = []
    with adapter.trace(**inputs) as tracer:
        for layer in range(adapter.n_layers):
            pre.append(adapter.resid_pre[layer])
            z.append(adapter.z[layer])
            attn.append(adapter.attn_out[layer])
            mid.append(adapter.resid_mid[layer])
            mlp.append(adapter.mlp_out[layer])
            post.append(adapter.resid_post[layer])
        rest.append(adapter.final_norm)
        rest.append(head_input.input)
        rest.append(adapter.logits)
        rest.append(tracer.result.logits)
    return _Seen(pre, z, attn, mid, mlp, post, *rest)


def _check_write(adapter: "Adapter", inputs: Mapping[str, Any], require: Any) -> None:
    """A write to the middle of a layer reaches both of its readers, the MLP and the sum."""
    layer = adapter.n_layers // 2
    seen: list[Tensor] = []
    with adapter.trace(**inputs) as tracer:
        mid = adapter.resid_mid[layer]
        adapter.resid_mid[layer] = 2 * mid
        mlp = adapter.mlp_out[layer]
        seen.extend([2 * mid + mlp, adapter.resid_post[layer]])
        tracer.stop()
    require("a write to resid_mid reaches resid_post", seen[0], seen[1], f" at layer {layer}")


def _module(adapter: "Adapter", layer: int, inner: str) -> Any:
    return _path(adapter, f"{adapter.layout.layers}.{layer}.{inner}")


def _path(adapter: "Adapter", path: str) -> Any:
    return adapter.module.get_submodule(path)


def _difference(got: Tensor, expected: Tensor) -> float:
    largest = max(float(expected.abs().max()), 1e-30)
    return float((got - expected).abs().max()) / largest
