"""Which axis of the arguments of a decoder layer is the position, found by trying.

Two texts that differ in nothing but their length tell; a size alone would not, since a head may be
as wide as a prompt is long.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model_adapters import Adapter
from model_adapters.errors import SiteError
from model_adapters.probe import example
from model_adapters.resume_probe import Path, first_positional, mapped
from model_adapters.stand_down import standing_down, without_a_trace_left

_KNOWN: "weakref.WeakKeyDictionary[Adapter, PositionAxes]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class PositionAxes:
    """Axes that grow with the prompt, by place and number of axes of an argument."""

    axes: Mapping[tuple[Path, int], tuple[int, ...]] = field(default_factory=dict)

    def cut(self, path: Path, value: Tensor, start: int, width: int) -> Tensor:
        """The part of an argument that belongs to positions from `start` on.

        Of two axes the first is that of the positions that attend, the second of those that they
        attend to, which stays whole.

        Raises:
            SiteError: when it is not known how the argument depends on positions.
        """
        if (path, value.ndim) not in self.axes:
            raise SiteError(f"it is not known how the argument {path} depends on positions")
        axes = self.axes[path, value.ndim]
        if not axes or value.shape[axes[0]] == 1 != width:
            return value
        if value.shape[axes[0]] != width:
            raise SiteError(f"axis {axes[0]} of the argument {path} is not the {width} positions")
        return value.narrow(axes[0], start, width - start)


def position_axes(adapter: Adapter) -> PositionAxes:
    """Try it on short texts, once for an adapter; nothing of the trial is left on the model.

    Raises:
        SiteError: when the arguments do not follow the number of positions.
    """
    if adapter not in _KNOWN:
        with torch.no_grad(), standing_down(adapter), without_a_trace_left(adapter.module):
            _KNOWN[adapter] = PositionAxes(_found(adapter))
    return _KNOWN[adapter]


def _found(adapter: Adapter) -> dict[tuple[Path, int], tuple[int, ...]]:
    short, middle, long = (
        example(adapter.module, adapter.family, (), size=size) for size in (0, 1, 2)
    )
    widths = [text["input_ids"].shape[1] for text in (middle, long)]
    axes: dict[tuple[Path, int], tuple[int, ...]] = {}
    plain = [_shapes(adapter, text) for text in (middle, long)]
    # Where nothing is padded, some models make no mask.
    padded = [_shapes(adapter, adapter.join([text, short]).inputs) for text in (middle, long)]
    for one, other in (plain, padded):
        for key in one.keys() & other.keys():
            sizes = zip(one[key], other[key], strict=True)
            growing = tuple(i for i, pair in enumerate(sizes) if pair[0] != pair[1])
            if any([one[key][i], other[key][i]] != widths for i in growing) or len(growing) > 2:
                raise SiteError(
                    f"the argument {key[0]} of a decoder layer has shape {one[key]} for "
                    f"{widths[0]} positions and {other[key]} for {widths[1]}"
                )
            if axes.setdefault(key, growing) != growing:
                raise SiteError(f"the argument {key[0]} of a decoder layer changes its axes")
    return axes


def _shapes(adapter: Adapter, inputs: Mapping[str, Any]) -> dict[tuple[Path, int], tuple[int, ...]]:
    """Shapes of all tensors that layers are called with, of those that all layers agree on."""
    shapes: dict[tuple[Path, int], tuple[int, ...]] = {}

    def note(path: Path, value: Any) -> None:
        if isinstance(value, Tensor):
            key = (path, value.ndim)
            if shapes.setdefault(key, tuple(value.shape)) != tuple(value.shape):
                raise SiteError(f"the argument {path} differs in shape between decoder layers")

    def look(module: Any, args: Any, kwargs: Any) -> None:
        args, kwargs = first_positional(args, kwargs)
        mapped(args[1:], ("positional",), note)
        mapped(kwargs, (), note)

    handles = [
        site.envoy._module.register_forward_pre_hook(look, with_kwargs=True)
        for site in adapter.resid_post.sites
    ]
    try:
        adapter.module(**inputs, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
