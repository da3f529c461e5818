"""References that know nothing of sites: plain hooks on the modules where a layer keeps its parts.

`PLACES` says where each site is to be seen, in the words of the layout alone.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_adapters import Adapter, Batch
from model_adapters.hooks import find_site
from model_adapters.layout import LayerLayout
from model_adapters.parts import OneStream

SITES = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
NEW_TOKENS = 3

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where a plain hook sees a site."""

    path: str
    """Of the module."""
    entering: bool
    """Whether it is what the module is called with, or what it returns."""
    factor: float = 1.0
    """By which the model multiplies it before it is added to the stream."""
    stream: int | None = None
    """Which of several streams side by side it is."""


def place(adapter: Adapter, site: str, layer: int) -> Place:
    """Where to see a site that the model has."""
    inside: LayerLayout = adapter.layout.inside[layer]
    root = f"{adapter.layout.layers}.{layer}"
    if site in ("resid_pre", "resid_post"):
        return Place(root, entering=site == "resid_pre", stream=_stream(adapter))
    if site == "z":
        return Place(f"{root}.{inside.out_proj}", entering=True)
    if site == "resid_mid":
        return Place(f"{root}.{inside.mid_norm}", entering=True)
    module = inside.attn_out if site == "attn_out" else inside.mlp_out
    name = adapter.family.residual_multiplier
    text: Any = adapter.module.config
    factor = 1.0 if name is None else float(getattr(text.get_text_config(), name))
    return Place(f"{root}.{module}", entering=False, factor=factor)


def has(adapter: Adapter, site: str, layer: int) -> bool:
    """Whether the model has that site there."""
    return find_site(adapter, site, layer).obstacle is None


def kinds_of_layers(adapter: Adapter) -> list[int]:
    """The last layer of every kind that the model has."""
    by_kind = {inside: number for number, inside in enumerate(adapter.layout.inside)}
    return sorted(by_kind.values())


@contextlib.contextmanager
def hooked(module: nn.Module, where: Place, change: Change) -> Iterator[None]:
    """What passes `where` is replaced by `change` of it while this is open."""
    target = module.get_submodule(where.path)

    def of_one(raw: Tensor) -> Tensor:
        if where.stream is None:
            return change(raw)
        streams = raw.clone()
        streams[where.stream] = change(raw[where.stream])
        return streams

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (of_one(args[0]), *args[1:]), kwargs
        name = next(name for name in ("hidden_states", "x", "input") if name in kwargs)
        return args, {**kwargs, name: of_one(kwargs[name])}

    def after(_: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (of_one(output[0]), *output[1:])
        return of_one(output)

    if where.entering:
        handle = target.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = target.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def watched(adapter: Adapter, places: Sequence[tuple[str, int]]) -> Iterator[dict[Any, Tensor]]:
    """What a pass shows at (site, layer), by plain hooks; scaled as the model scales it."""
    seen: dict[Any, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for site, layer in places:
            where = place(adapter, site, layer)
            stack.enter_context(
                hooked(adapter.module, where, _note(seen, (site, layer), where.factor))
            )
        yield seen


def _note(seen: dict[Any, Tensor], key: Any, factor: float) -> Change:
    def note(value: Tensor) -> Tensor:
        seen[key] = value.detach().clone() * factor
        return value

    return note


def steered(adapter: Adapter, layer: int, vector: Tensor) -> Any:
    """A vector added to what a layer returns while this is open."""
    where = place(adapter, "resid_post", layer)
    return hooked(adapter.module, where, lambda states: states + vector.to(states.dtype))


def keep(kept: list[Tensor]) -> Callable[[Tensor], None]:
    """A hook that keeps what it sees, as it was."""

    def note(value: Tensor) -> None:
        kept.append(value.clone())

    return note


def direction(adapter: Adapter) -> Tensor:
    """A vector of the stream's width."""
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(adapter.d_model, generator=generator)


@torch.no_grad()
def logits(adapter: Adapter, batch: Batch) -> Tensor:
    """What the bare model returns."""
    returned: Tensor = adapter.module(**batch.inputs).logits
    return returned


@torch.no_grad()
def generated(adapter: Adapter, batch: Batch) -> Tensor:
    """Tokens of a short answer."""
    return adapter.generate(batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS).tokens


def _stream(adapter: Adapter) -> int | None:
    part = getattr(find_site(adapter, "resid_post", 0), "part", None)
    return part.index if isinstance(part, OneStream) else None
