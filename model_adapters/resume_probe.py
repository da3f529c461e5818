"""How the calls of a model's decoder layers depend on the rows of a batch, found by trying.

Nothing about an argument says which of its axes is the batch: position codes of some models have
three axes in front, and a batch may have three rows. Two small batches that differ in nothing but
their number of rows tell.
"""

import contextlib
import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model_adapters.errors import AdapterError, InputError, SiteError
from model_adapters.generation import generation_config
from model_adapters.parts import first
from model_adapters.probe import plain_tokens
from model_adapters.selfcheck import TOLERANCE
from model_adapters.stand_down import standing_down, without_a_trace_left
from model_adapters.tracer import lock_of

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from model_adapters.adapter import Adapter

Path = tuple[str | int, ...]
"""Where an argument stands in a call: its name or number, then those inside it."""

_WIDTH = 5


@dataclass(frozen=True)
class LayerArguments:
    """Which axis of each argument of a decoder layer is the batch."""

    axes: Mapping[tuple[Path, int], int | None]
    """By place and number of axes; None for what all rows share."""
    obstacle: str | None = None
    """Why layers cannot be run again by hand, or None if they can."""

    def cut(self, path: Path, value: Tensor, rows: Tensor | None, batch: int) -> Tensor:
        """The part of an argument that belongs to some rows, or to all if `rows` is None.

        Raises:
            SiteError: when it is not known how the argument depends on rows.
        """
        if (path, value.ndim) not in self.axes:
            raise SiteError(
                f"a decoder layer was called with {_name(path)} of shape {tuple(value.shape)}, "
                "which this model's layers did not get when they were tried; this pass cannot be "
                "resumed. Run it again as a whole instead"
            )
        axis = self.axes[path, value.ndim]
        if axis is None or value.shape[axis] == 1 != batch:
            return value
        if value.shape[axis] != batch:
            raise SiteError(
                f"a decoder layer was called with {_name(path)} of shape {tuple(value.shape)}, "
                f"whose axis {axis} should be the {batch} rows; this pass cannot be resumed"
            )
        return value if rows is None else value.index_select(axis, rows.to(value.device))


@dataclass(frozen=True)
class _Seen:
    layer: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def is_cache(value: object) -> bool:
    """Whether it is a cache of keys and values, of whatever kind."""
    from transformers.cache_utils import Cache

    return isinstance(value, Cache)


def mapped(value: Any, path: Path, leaf: Callable[[Path, Any], Any]) -> Any:
    """`value` with `leaf(path, item)` in place of every item, through tuples, lists and dicts.

    Raises:
        SiteError: for an object of another kind, whose rows could not be told apart.
    """
    if type(value) in (tuple, list):
        return type(value)(mapped(item, (*path, i), leaf) for i, item in enumerate(value))
    if type(value) is dict:
        return {name: mapped(item, (*path, name), leaf) for name, item in value.items()}
    plain = (bool, int, float, str, torch.dtype, torch.device, Tensor)
    if value is not None and not isinstance(value, plain) and not is_cache(value):
        raise SiteError(
            f"decoder layers are called with {_name(path)}, a {type(value).__name__}, of which it "
            "is not known how it depends on rows"
        )
    return leaf(path, value)


def call_layer(
    adapter: "Adapter", layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Run one decoder layer by hand, hooks on it included; a running trace does not notice."""
    module = adapter.resid_post.site(layer).envoy._module
    with standing_down(adapter):
        # In a context of its own: transformers collects hidden states by way of one.
        return first(contextvars.Context().run(module, *args, **kwargs))


@torch.no_grad()
def probe_layers(adapter: "Adapter") -> LayerArguments:
    """Try it; nothing of the trial is left on the model, and nobody's hooks see it."""
    module = adapter.module
    with lock_of(module), standing_down(adapter), without_a_trace_left(module):
        try:
            axes = _find_axes(adapter)
            found = LayerArguments(axes)
            _check(adapter, found)
        except (
            AdapterError,
            AttributeError,
            IndexError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            return LayerArguments({}, f"a trial of its layers failed: {error}")
    return found


def _find_axes(adapter: "Adapter") -> dict[tuple[Path, int], int | None]:
    axes: dict[tuple[Path, int], int | None] = {}
    for run in (_masked, _unmasked, _generated):
        two, three = (_shapes(adapter, run, rows) for rows in (2, 3))
        if two.keys() != three.keys():
            raise SiteError("their arguments differ between batches of two and of three rows")
        for key, shape in two.items():
            axis = _batch_axis(key[0], shape, three[key])
            known = axes.setdefault(key, axis)
            if known is None:
                axes[key] = axis
            elif axis is not None and axis != known:
                raise SiteError(f"the batch is axis {known} of {_name(key[0])} or axis {axis}")
    return axes


def _batch_axis(path: Path, two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    differing = [
        axis for axis, sizes in enumerate(zip(two, three, strict=True)) if len({*sizes}) > 1
    ]
    if not differing:
        return None
    if len(differing) > 1 or (two[differing[0]], three[differing[0]]) != (2, 3):
        raise SiteError(
            f"the shape of {_name(path)} is {two} for two rows and {three} for three: no one axis "
            "is the batch"
        )
    return differing[0]


def _shapes(
    adapter: "Adapter", run: "Callable[[Adapter, int], None]", rows: int
) -> dict[tuple[Path, int], tuple[int, ...]]:
    """Shapes of all tensors that layers are called with; the widest where there are several."""
    shapes: dict[tuple[Path, int], tuple[int, ...]] = {}

    def note(path: Path, value: Any) -> None:
        if isinstance(value, Tensor):
            key, shape = (path, value.ndim), tuple(value.shape)
            shapes[key] = max(shapes.get(key, shape), shape)

    for seen in _recorded(adapter, lambda: run(adapter, rows)):
        mapped(seen.args[1:], ("positional",), note)
        mapped(seen.kwargs, (), note)
    return shapes


def _recorded(adapter: "Adapter", run: Callable[[], None]) -> list[_Seen]:
    """All calls of decoder layers in a run, in order."""
    calls: list[_Seen] = []
    with contextlib.ExitStack() as stack:
        for layer, site in enumerate(adapter.resid_post.sites):

            def record(
                module: Any, args: Any, kwargs: Any, output: Any, layer: int = layer
            ) -> None:
                args, kwargs = first_positional(args, kwargs)
                calls.append(_Seen(layer, args, kwargs, first(output)))

            handle = site.envoy._module.register_forward_hook(record, with_kwargs=True)
            stack.callback(handle.remove)
        run()
    return calls


def first_positional(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with its first argument, the hidden states, given by position."""
    if args:
        return args, kwargs
    name = next(iter(kwargs))
    return (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}


def _inputs(adapter: "Adapter", rows: int) -> dict[str, Tensor]:
    """Text of `rows` rows; all but the first are padded on the left."""
    words = plain_tokens(adapter.module.config, adapter.family)
    ids = torch.tensor([[words[1 + i % 7] for i in range(r, r + _WIDTH)] for r in range(rows)])
    mask = torch.ones_like(ids)
    mask[1:, 0] = 0
    inputs = {
        "input_ids": ids.masked_fill(mask == 0, adapter.pad_id),
        "attention_mask": mask,
    }
    types = adapter.family.token_types
    if types is not None and (types.always or types.wider is not None):
        # Such types reach the layers themselves.
        inputs |= {name: torch.zeros_like(ids) for name in types.names}
    return {name: value.to(adapter.device) for name, value in inputs.items()}


def _masked(adapter: "Adapter", rows: int) -> None:
    adapter.module(**_inputs(adapter, rows), use_cache=True)


def _unmasked(adapter: "Adapter", rows: int) -> None:
    adapter.module(input_ids=_inputs(adapter, rows)["input_ids"], use_cache=True)


def _generated(adapter: "Adapter", rows: int) -> None:
    options = {"max_new_tokens": 2, "min_new_tokens": 2}
    try:
        config = generation_config(adapter.module, adapter.pad_id, options)
    except InputError:
        return  # `generate` of this model cannot be used either
    adapter._generate(config, **_inputs(adapter, rows))


def _check(adapter: "Adapter", found: LayerArguments) -> None:
    """Layers run again give what they gave, and rows do not depend on one another."""
    start = max(adapter.discontinuities, default=-1) + 1
    rows = torch.tensor([2, 0])
    for seen in _recorded(adapter, lambda: _masked(adapter, 3)):
        if seen.layer < start:
            continue
        args, kwargs = repeated(found, seen.args, seen.kwargs, rows=None, batch=3, cache=None)
        again = call_layer(adapter, seen.layer, (seen.args[0], *args), kwargs)
        if not torch.equal(again, seen.output):
            raise SiteError(f"layer {seen.layer} gave another output when it was run again")
        args, kwargs = repeated(found, seen.args, seen.kwargs, rows=rows, batch=3, cache=None)
        states = seen.args[0][rows.to(seen.output.device)]
        some = call_layer(adapter, seen.layer, (states, *args), kwargs)
        expected = seen.output[rows.to(seen.output.device)]
        difference = float((some - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        if not difference <= TOLERANCE.get(expected.dtype, 5e-2):
            raise SiteError(
                f"layer {seen.layer} gave another output when it was run again for some rows: "
                f"{difference:.1e} of its largest value"
            )


def repeated(
    found: LayerArguments,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    rows: Tensor | None,
    batch: int,
    cache: "Cache | None",
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer's call after its hidden states, cut to some rows.

    Args:
        found: which axes are the batch.
        args: of the call, hidden states first.
        kwargs: of the call.
        rows: batch rows, or None for all.
        batch: rows of the call.
        cache: takes the place of the call's own cache.

    Raises:
        SiteError: for an argument of which it is not known how it depends on rows.
    """

    def leaf(path: Path, value: Any) -> Any:
        if is_cache(value):
            return cache
        return found.cut(path, value, rows, batch) if isinstance(value, Tensor) else value

    return mapped(args[1:], ("positional",), leaf), mapped(kwargs, (), leaf)


def _name(path: Path) -> str:
    return ".".join(str(step) for step in path) or "an argument"
