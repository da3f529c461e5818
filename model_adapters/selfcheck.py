"""Identities that every site relies on, tried on the loaded model itself before it is used.

One short prompt with one item of every medium runs through the model bare, traced, and traced with
writes. A family entry that does not fit, or a forward hook somebody left on the model, breaks one
of these identities; analyses on top would then be wrong without a sign.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model_adapters.altup import check_altup
from model_adapters.bare_pass import Bare
from model_adapters.errors import SelfCheckError, SiteError
from model_adapters.observed import Seen, observe
from model_adapters.stand_down import standing_down

if TYPE_CHECKING:
    from model_adapters.adapter import Adapter

# Largest difference relative to the largest value: matrix products of other shapes round
# differently.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}

# A sum of two or three terms, in units of the precision, relative to the size of the terms at the
# same place: the stream has a few huge values, and next to those a wrong term would not show.
_SUM_TOLERANCE = 4


@dataclass(frozen=True)
class SelfCheck:
    """What the load-time check found."""

    differences: Mapping[str, float]
    """Largest difference per identity, relative to the largest value; where the stream is a sum of
    few terms, relative to the size of the terms at the same place."""
    limits: Mapping[str, float]
    """What each of them had to stay below."""
    discontinuities: tuple[int, ...]
    """Layers l whose `resid_post[l]` is not `resid_pre[l + 1]`: the model adds something there."""


@dataclass
class _Ledger:
    """Identities tried so far."""

    entry: str
    """Name of the family entry, for errors."""
    differences: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)

    def require(
        self,
        identity: str,
        got: Tensor,
        expected: Tensor,
        where: str = "",
        terms: Sequence[Tensor] = (),
    ) -> None:
        difference = _difference(got.to(expected.device), expected, terms)
        limit, measure = TOLERANCE.get(expected.dtype, 2e-2), "largest value"
        if terms:
            limit, measure = _SUM_TOLERANCE * torch.finfo(expected.dtype).eps, "terms there"
        self.differences[identity] = max(difference, self.differences.get(identity, 0.0))
        self.limits[identity] = limit
        if not difference <= limit:
            raise SelfCheckError(
                f"{identity} does not hold{where}: largest difference {difference:.1e} of the "
                f"{measure}. Either a hook on the model changes values behind the sites, or the "
                f"family entry ({self.entry}) does not fit this model."
            )


@torch.no_grad()
def self_check(adapter: "Adapter", inputs: Mapping[str, Any], bare: Bare) -> SelfCheck:
    """Check all identities on `inputs`.

    Args:
        adapter: the wrapped model.
        inputs: as from `probe`.
        bare: what the model did with them before it was wrapped.

    Raises:
        SelfCheckError: naming the identity, the layer and the size of the difference.
    """
    try:
        seen = observe(adapter, inputs)
    except SiteError as error:
        raise SelfCheckError(
            "the model does not run its parts in the order of the sites; the family entry "
            f"({adapter.family.name}) does not fit this model. {error}"
        ) from error
    if not torch.equal(seen.returned, bare.logits):
        raise SelfCheckError(
            "an untouched trace is not bit-identical to the bare model: largest difference "
            f"{_difference(seen.returned, bare.logits):.1e} of the largest logit. Is the model "
            "random in evaluation, or hooked?"
        )
    ledger = _Ledger(adapter.family.name)
    broken = _between_layers(adapter, seen, inputs)
    for layer, inside in enumerate(adapter.layout.inside):
        with standing_down(adapter):
            mixed = _module(adapter, layer, inside.out_proj).forward(seen.z[layer].flatten(-2))
        where = f" at layer {layer}"
        name = "sum of head results == output of attention"
        ledger.require(name, mixed, seen.mixed[layer], where)
        if adapter.family.altup:
            check_altup(adapter, layer, seen, ledger.require, where)
    if not adapter.family.altup:
        _check_sums(adapter, seen, ledger)
    norm, head_input = seen.norm[:, -1], seen.head_input[:, -1]
    ledger.require("final_norm == what the head receives", norm, head_input)
    last = seen.returned[:, -1]
    ledger.require("logits == what the model returns", seen.logits[:, -1], last)
    if not adapter.family.altup:
        lens = adapter.unembed(seen.post[-1][:, -1:])
        ledger.require("last row of the logit lens == logits", lens[:, -1], last)
        _check_write(adapter, inputs, seen, ledger)
    for kind, (entered, made) in bare.media.items():
        name = f"positions of the {kind} hold what `features` made"
        ledger.require(name, made, entered)
    return SelfCheck(ledger.differences, ledger.limits, broken)


def _between_layers(adapter: "Adapter", seen: Seen, inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers after which something is added to the stream, if the family is known to do that."""
    family, broken = adapter.family, []
    for layer in range(1, adapter.n_layers):
        if torch.equal(seen.pre[layer], seen.post[layer - 1]):
            continue
        broken.append(layer - 1)
        if not family.adds_between_layers:
            raise SelfCheckError(
                f"resid_post[{layer - 1}] is not resid_pre[{layer}]: something adds to the stream "
                f"between layers, up to {_difference(seen.pre[layer], seen.post[layer - 1]):.1e} "
                f"of its largest value, and the family ({family.name}) is not known to do that. "
                "Is there a hook on the layer?"
            )
    given = [medium.kind for medium in family.media if medium.given(inputs)]
    if family.adds_between_layers and given and not broken:
        raise SelfCheckError(
            f"the family entry ({family.name}) says that features are added between layers, and "
            f"with {' and '.join(given)} in the prompt none were; a hook there would go unnoticed. "
            "Give the entry with adds_between_layers=False: dataclasses.replace(family, ...)"
        )
    return tuple(broken)


def _check_sums(adapter: "Adapter", seen: Seen, ledger: _Ledger) -> None:
    """The stream is what the blocks of each layer, and of all layers, add up to."""
    scale_name = adapter.family.layer_scalar
    stream = seen.pre[0]
    for layer in range(adapter.n_layers):
        at = f" at layer {layer}"
        if layer and not torch.equal(seen.pre[layer], seen.post[layer - 1]):
            stream = stream + (seen.pre[layer] - seen.post[layer - 1])
        mid, seen_mid = seen.pre[layer] + seen.attn[layer], seen.mid[layer]
        if seen_mid is not None:
            terms = [seen.pre[layer], seen.attn[layer]]
            ledger.require("resid_pre + attn_out == resid_mid", mid, seen_mid, at, terms)
            mid = seen_mid
        added = [part for part in (seen.mlp[layer], seen.then[layer]) if part is not None]
        scale = 1.0 if scale_name is None else getattr(_module(adapter, layer, ""), scale_name)
        post, terms = sum(added, start=mid) * scale, [part * scale for part in (mid, *added)]
        ledger.require("resid_mid + mlp_out == resid_post", post, seen.post[layer], at, terms)
        stream = sum(added, start=stream + seen.attn[layer]) * scale
    ledger.require("embed + all attn_out + all mlp_out == last resid_post", stream, seen.post[-1])


def _check_write(
    adapter: "Adapter", inputs: Mapping[str, Any], seen: Seen, ledger: _Ledger
) -> None:
    """A write to the middle of a layer reaches both of its readers, the MLP and the sum.

    Where there is no middle, because both blocks read the same stream, one block does not read what
    the other adds.
    """
    layer = adapter.n_layers // 2
    inside, at = adapter.layout.inside[layer], f" at layer {adapter.n_layers // 2}"
    got: list[Tensor] = []
    if inside.mid_norm is None:
        with adapter.trace(**inputs) as tracer:
            adapter.attn_out[layer] = 2 * adapter.attn_out[layer]
            got.append(adapter.mlp_out[layer])
            tracer.stop()
        name = "mlp_out is the same without resid_mid, whatever attn_out is"
        ledger.require(name, got[0], seen.mlp[layer], at)
    elif not (inside.then_adds or adapter.family.layer_scalar):
        with adapter.trace(**inputs) as tracer:
            mid = adapter.resid_mid[layer]
            adapter.resid_mid[layer] = 2 * mid
            mlp = adapter.mlp_out[layer]
            got.extend([2 * mid, mlp, adapter.resid_post[layer]])
            tracer.stop()
        *terms, post = got
        name = "a write to resid_mid reaches resid_post"
        ledger.require(name, terms[0] + terms[1], post, at, terms)


def _module(adapter: "Adapter", layer: int, inner: str) -> Any:
    path = f"{adapter.layout.layers}.{layer}"
    return adapter.module.get_submodule(f"{path}.{inner}" if inner else path)


def _difference(got: Tensor, expected: Tensor, terms: Sequence[Tensor] = ()) -> float:
    """Largest difference relative to the largest value or, if given, to the terms of a sum."""
    if terms:
        size = torch.stack([term.float().abs() for term in terms]).sum(dim=0).clamp(min=1e-30)
        return float(((got - expected).float().abs() / size).max())
    largest = max(float(expected.abs().max()), 1e-30)
    return float((got - expected).abs().max()) / largest
