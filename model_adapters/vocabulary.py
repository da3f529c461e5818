"""The sites of a model, built from where its parts are."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_adapters.families import Family
from model_adapters.layout import LayerLayout, Layout
from model_adapters.parts import FIRST, Part, Unflattened, scaled, stream_part
from model_adapters.sites import (
    AbsentSite,
    HeadsSite,
    InputSite,
    LayerSites,
    MidSite,
    OutputSite,
    ResultSite,
    Site,
)


@dataclass(frozen=True)
class Vocabulary:
    """Every site of one model, by its name."""

    embed: InputSite
    resid_pre: LayerSites
    z: LayerSites
    result: LayerSites
    attn_out: LayerSites
    resid_mid: LayerSites
    mlp_out: LayerSites
    resid_post: LayerSites
    final_norm: OutputSite
    logits: OutputSite

    def labels(self) -> Mapping[tuple[str, str], str]:
        """From a module's path and "input" or "output" to the site that is there, for errors."""
        kinds = (self.resid_pre, self.z, self.attn_out, self.resid_mid, self.mlp_out)
        named = [site for kind in (*kinds, self.resid_post) for site in kind.sites]
        found = {
            (site.envoy.path, "output" if isinstance(site, OutputSite) else "input"): site.label
            for site in (*named, self.final_norm, self.logits)
        }
        # Asked for after its input, so only `result` can be late there.
        found |= {(site.envoy.path, "output"): site.label for site in self.result.sites}
        return found


def vocabulary(
    get: Callable[[str], Any], layout: Layout, family: Family, text_config: Any, logits: Part
) -> Vocabulary:
    """Put sites on a wrapped model.

    Args:
        get: from a module's path to its envoy.
        layout: where the parts are.
        family: what is unusual about them.
        text_config: has the numbers that the family names.
        logits: what the model makes of its head's output.
    """
    stream = stream_part(text_config, altup=family.altup)
    factor = getattr(text_config, family.residual_multiplier or "", 1.0)
    added = FIRST if factor == 1 else scaled(factor)
    envoys = [get(f"{layout.layers}.{number}") for number in range(layout.n_layers)]
    inside = list(zip(envoys, layout.inside, strict=True))

    def sites(name: str, made: Iterable[Callable[[str], Site]]) -> LayerSites:
        return LayerSites(name, [make(f"{name}[{i}]") for i, make in enumerate(made)])

    def mid(envoy: Any, layer: LayerLayout) -> Callable[[str], Site]:
        if layer.mid_norm is not None:
            return lambda label: MidSite(label, envoy.get(layer.mid_norm))
        return lambda label: AbsentSite(
            label, envoy, "attention and MLP of this model read the same stream, side by side"
        )

    def mlp(envoy: Any) -> Callable[[str], Site]:
        part = Unflattened() if family.flat_mlp else added
        return functools.partial(OutputSite, envoy=envoy, part=part)

    def heads(kind: type[HeadsSite | ResultSite]) -> Iterable[Callable[[str], Site]]:
        for envoy, layer in inside:
            out_proj = envoy.get(layer.out_proj)
            yield functools.partial(kind, envoy=out_proj, n_heads=layer.n_heads)

    new = functools.partial
    return Vocabulary(
        embed=InputSite("embed", envoys[0], stream),
        resid_pre=sites("resid_pre", (new(InputSite, envoy=e, part=stream) for e in envoys)),
        z=sites("z", heads(HeadsSite)),
        result=sites("result", heads(ResultSite)),
        attn_out=sites(
            "attn_out", (new(OutputSite, envoy=e.get(at.attn_out), part=added) for e, at in inside)
        ),
        resid_mid=sites("resid_mid", (mid(e, at) for e, at in inside)),
        mlp_out=sites("mlp_out", (mlp(e.get(at.mlp_out)) for e, at in inside)),
        resid_post=sites("resid_post", (new(OutputSite, envoy=e, part=stream) for e in envoys)),
        final_norm=OutputSite("final_norm", get(layout.norm)),
        logits=OutputSite("logits", get(layout.head), logits),
    )
