"""TransformerLens's hook names, and where each one is in an adapter's model."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from model_adapters.errors import SiteError
from model_adapters.hooks import HookFunction, HookHandle, find_site, first_argument
from model_adapters.parts import first, with_first
from model_adapters.sites import checked
from regap_interp.interop._norms import measure

if TYPE_CHECKING:
    from model_adapters import Adapter

# What TransformerLens calls the sites of a layer, in order of the pass.
LAYER_SITES = (
    ("hook_resid_pre", "resid_pre"),
    ("attn.hook_z", "z"),
    ("attn.hook_result", "result"),
    ("hook_attn_out", "attn_out"),
    ("hook_resid_mid", "resid_mid"),
    ("hook_mlp_out", "mlp_out"),
    ("hook_resid_post", "resid_post"),
)


@dataclass(frozen=True)
class Point:
    """One hook name of TransformerLens."""

    name: str
    attach: Callable[[HookFunction], list[HookHandle]]
    """Calls a function with the value in every pass; what the function returns replaces it."""
    writable: bool = True
    kept: bool = True
    """Whether a cache of everything holds it."""


def hook_points(adapter: "Adapter") -> dict[str, Point]:
    """All names that this model has.

    Args:
        adapter: the model.

    Returns:
        By name. Values are `[batch, pos, d_model]`; of heads `[batch, pos, head, d_head]`; of
        scales `[batch, pos, 1]`; of patterns `[batch, head, query, key]`.
    """
    found = [Point("hook_embed", _at_site(adapter, "embed", None))]
    for layer in range(adapter.n_layers):
        found += _of_layer(adapter, layer)
    norm = adapter.layout.norm
    found += [
        _normed(adapter, "ln_final.hook_scale", norm, "scale"),
        _normed(adapter, "ln_final.hook_normalized", norm, "normalised"),
        Point("ln_final.hook_out", _at_site(adapter, "final_norm", None)),
        # As large as the logits, which every run returns anyway.
        Point("unembed.hook_out", _at_site(adapter, "logits", None), kept=False),
    ]
    return {point.name: point for point in found}


def _of_layer(adapter: "Adapter", layer: int) -> Iterator[Point]:
    block, inside = f"blocks.{layer}", adapter.layout.inside[layer]
    path = f"{adapter.layout.layers}.{layer}"
    module = adapter.module.get_submodule(path)
    behind = inside.attn_out != inside.attn
    plain = not behind and not adapter.family.residual_multiplier
    for name, site in LAYER_SITES:
        if find_site(adapter, site, layer).obstacle:
            continue
        if site != "result":
            yield Point(f"{block}.{name}", _at_site(adapter, site, layer))
        elif plain:
            # As large as all heads' width times d_model; caches compute it from z when asked.
            yield Point(f"{block}.{name}", _at_site(adapter, site, layer), kept=False)
    if not adapter.family.altup:
        if hasattr(module, "input_layernorm"):
            ln1 = f"{path}.input_layernorm"
            yield _normed(adapter, f"{block}.ln1.hook_scale", ln1, "scale")
        if behind:
            ln1_post = f"{path}.{inside.attn_out}"
            yield _normed(adapter, f"{block}.ln1_post.hook_scale", ln1_post, "scale")
        if inside.mid_norm not in (None, inside.mlp):
            ln2 = f"{path}.{inside.mid_norm}"
            yield _normed(adapter, f"{block}.ln2.hook_scale", ln2, "scale")
    yield from _of_attention(adapter, layer)
    if adapter.family.adds_between_layers and layer + 1 < adapter.n_layers:
        yield Point(f"{block}.hook_deepstack", _between(adapter, layer), writable=False)
    if inside.then_adds is not None:
        yield Point(f"{block}.hook_per_layer", _output(adapter, f"{path}.{inside.then_adds}"))


def _of_attention(adapter: "Adapter", layer: int) -> Iterator[Point]:
    block, inside = f"blocks.{layer}.attn", adapter.layout.inside[layer]
    path = f"{adapter.layout.layers}.{layer}.{inside.attn}"
    attn: Any = adapter.module.get_submodule(path)
    if "linear" in inside.attn:
        return
    for letter in ("q", "k", "v"):
        width = getattr(getattr(attn, f"{letter}_proj", None), "out_features", 0)
        heads, rest = divmod(width, inside.d_head)
        # Gates packed into the same projection make it wider.
        if heads and not rest and (letter != "q" or heads == inside.n_heads):
            attach = _heads(adapter, f"{path}.{letter}_proj", heads)
            yield Point(f"{block}.hook_{letter}", attach)
    if getattr(attn, "config", adapter.module.config)._attn_implementation == "eager":
        yield Point(f"{block}.hook_pattern", _pattern(adapter, path), writable=False)


def key_value_heads(adapter: "Adapter") -> int | None:
    """How many heads have keys of their own; None where attention has no separate keys."""
    for layer, inside in enumerate(adapter.layout.inside):
        attn: Any = adapter.module.get_submodule(f"{adapter.layout.layers}.{layer}.{inside.attn}")
        width = getattr(getattr(attn, "k_proj", None), "out_features", 0)
        if width and "linear" not in inside.attn:
            return int(width // inside.d_head)
    return None


def _at_site(
    adapter: "Adapter", site: str, layer: int | None
) -> Callable[[HookFunction], list[HookHandle]]:
    return lambda fn: [adapter.hook(site, layer, fn)]


def _output(adapter: "Adapter", path: str) -> Callable[[HookFunction], list[HookHandle]]:
    def attach(fn: HookFunction) -> list[HookHandle]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            value = first(output)
            new = fn(value)
            return None if new is None else with_first(output, checked(path, value, new))

        handle = adapter.module.get_submodule(path).register_forward_hook(hook)
        return [HookHandle(handle.remove)]

    return attach


def _heads(adapter: "Adapter", path: str, heads: int) -> Callable[[HookFunction], list[HookHandle]]:
    def attach(fn: HookFunction) -> list[HookHandle]:
        def by_head(value: Tensor) -> Tensor | None:
            split = value.unflatten(-1, (heads, -1))
            new = fn(split)
            return None if new is None else checked(path, split, new).flatten(-2)

        return _output(adapter, path)(by_head)

    return attach


def _pattern(adapter: "Adapter", path: str) -> Callable[[HookFunction], list[HookHandle]]:
    def attach(fn: HookFunction) -> list[HookHandle]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if isinstance(output, tuple) and isinstance(output[1], Tensor):
                fn(output[1])

        handle = adapter.module.get_submodule(path).register_forward_hook(hook)
        return [HookHandle(handle.remove)]

    return attach


def _normed(adapter: "Adapter", name: str, path: str, what: str) -> Point:
    """The scale of a norm, or what it makes of its input before gain and bias."""
    norm = functools.cache(lambda: measure(adapter, path))

    def attach(fn: HookFunction) -> list[HookHandle]:
        known = norm()

        def hook(module: Any, args: Any, kwargs: Any) -> None:
            fn(getattr(known, what)(first_argument(args, kwargs)))

        module = adapter.module.get_submodule(path)
        return [HookHandle(module.register_forward_pre_hook(hook, with_kwargs=True).remove)]

    return Point(name, attach, writable=False)


def _between(adapter: "Adapter", layer: int) -> Callable[[HookFunction], list[HookHandle]]:
    """What the next layer gets beyond what this one returned."""

    def attach(fn: HookFunction) -> list[HookHandle]:
        left: list[Tensor] = []

        def after(value: Tensor) -> None:
            left[:] = [value]

        def before(value: Tensor) -> None:
            if not left:
                raise SiteError(f"layer {layer + 1} ran without layer {layer}")
            fn(value - left.pop())

        return [
            adapter.hook("resid_post", layer, after),
            adapter.hook("resid_pre", layer + 1, before),
        ]

    return attach
