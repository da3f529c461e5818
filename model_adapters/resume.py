"""Running later decoder layers again within a forward pass, for some rows of its batch.

A pass over a prompt computes every layer once. To see what an edit at layer k does, or to apply it
to a few rows only, the layers after k are enough: `LayerCalls` keeps the arguments they were called
with, and `RowCache` the keys and values they write. Layers count from 0.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from model_adapters.errors import SiteError
from model_adapters.resume_probe import call_layer, first_positional, is_cache, repeated

if TYPE_CHECKING:
    from transformers.cache_utils import Cache, DynamicLayer

    from model_adapters.adapter import Adapter

Stream = Float[Tensor, "row position d_model"]
Rows = Int[Tensor, "row"]

_running = threading.local()
"""`again` is set while a layer is run again in this thread: no call to record."""


def resume_obstacle(adapter: "Adapter", layer: int) -> str | None:
    """Why the layers after `layer` cannot be run again from its output; None if they can.

    The first call tries it on small batches of text, which takes a few short passes.

    Raises:
        LayerError: for a layer that the model does not have.
    """
    number = adapter.resid_post.number(layer)
    late = [broken for broken in adapter.discontinuities if broken >= number]
    if late:
        return (
            f"the model adds features to the stream after layer {late[-1]}, outside its layers; "
            f"they can be run again from the output of layer {late[-1] + 1} on, not of {number}"
        )
    return adapter.layer_arguments.obstacle


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    width: int
    past: int
    cache: "Cache | None"


class LayerCalls:
    """The latest call of each of some decoder layers, to be repeated; hidden states are not kept.

    It listens from its construction to `remove()`.
    """

    def __init__(self, adapter: "Adapter", layers: Iterable[int]) -> None:
        """Listen to the calls of `layers`.

        Raises:
            LayerError: for a layer that the model does not have.
            SiteError: when this model's layers cannot be run again; see `resume_obstacle`.
        """
        self.adapter = adapter
        numbers = [adapter.resid_post.number(layer) for layer in layers]
        obstacle = adapter.layer_arguments.obstacle
        if obstacle is not None:
            raise SiteError(f"layers cannot be run again: {obstacle}")
        self._calls: dict[int, _Call] = {}
        self._handles = [self._listen(number) for number in dict.fromkeys(numbers)]

    def _listen(self, layer: int) -> Any:
        def record(module: Any, args: Any, kwargs: Any) -> None:
            if self.running:
                return
            args, kwargs = first_positional(args, kwargs)
            batch, width = args[0].shape[:2]
            cache = _cache_of(args, kwargs)
            past = cache.get_seq_length(layer) if cache is not None else 0
            self._calls[layer] = _Call((None, *args[1:]), kwargs, batch, width, past, cache)

        module = self.adapter.resid_post.site(layer).envoy._module
        return module.register_forward_pre_hook(record, with_kwargs=True)

    @property
    def running(self) -> bool:
        """Whether a layer is being run again in this thread, so that hooks can tell."""
        return getattr(_running, "again", False)

    def past(self, layer: int) -> int:
        """Positions that the layer's cache held before the pass; 0 without a cache."""
        return self._call(layer).past

    def cache(self, layer: int) -> "Cache | None":
        """The cache that the pass writes to, or None if it keeps none."""
        return self._call(layer).cache

    def rerun(
        self,
        layer: int,
        states: Stream,
        rows: Rows | None,
        cache: "Cache | None",
    ) -> Stream:
        """Run a layer again on other hidden states, with the arguments of its latest call.

        Hooks on the layer and inside it fire; a running trace does not notice.

        Args:
            layer: one of those listened to.
            states: what enters the layer, one entry for each of `rows`, all positions of the pass.
            rows: rows of the pass's batch, or None for all.
            cache: where its keys and values go, such as that of a `RowCache`; None keeps none.

        Returns:
            What leaves the layer.

        Raises:
            SiteError: when the layer has not run since listening began, shapes do not fit, or the
                call had an argument of which it is not known how it depends on rows.
        """
        call = self._call(layer)
        count = call.batch if rows is None else len(rows)
        if states.shape[:2] != (count, call.width):
            raise SiteError(
                f"layer {layer} is run again for {count} rows of {call.width} positions; the "
                f"states have shape {tuple(states.shape)}"
            )
        if cache is None and call.past:
            raise SiteError(
                f"layer {layer} attended to {call.past} positions before this pass; to run it "
                "again, give a RowCache made with past, which holds them"
            )
        if cache is not None and call.cache is None:
            raise SiteError("this pass keeps no cache; give cache=None")
        args, kwargs = repeated(
            self.adapter.layer_arguments,
            call.args,
            call.kwargs,
            rows=rows,
            batch=call.batch,
            cache=cache,
        )
        before, _running.again = self.running, True
        try:
            return call_layer(self.adapter, layer, (states, *args), kwargs)
        finally:
            _running.again = before

    def clear(self) -> None:
        """Let go of the calls; the next pass brings new ones."""
        self._calls.clear()

    def remove(self) -> None:
        """Stop listening and let go of everything."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def _call(self, layer: int) -> _Call:
        number = self.adapter.resid_post.number(layer)
        if number not in self._calls:
            raise SiteError(
                f"layer {number} has not run since listening began, or is not listened to "
                f"(those that have: {sorted(self._calls)})"
            )
        return self._calls[number]


def _cache_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Cache | None":
    return next((v for v in (*args, *kwargs.values()) if is_cache(v)), None)


def cache_obstacle(cache: "Cache | None", past: int = 0) -> str | None:
    """Why keys and values of single rows cannot be replaced in a cache; None if they can.

    Args:
        cache: of a pass; None if it keeps none.
        past: positions it held before the pass.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if cache is None:
        return None
    if type(cache) is not DynamicCache:
        return f"its cache is a {type(cache).__name__}; only a DynamicCache can be corrected"
    if cache.offloading:
        return "its cache is offloaded to another device"
    for number, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"layer {number} of its cache is a {type(layer).__name__}"
        if isinstance(layer, DynamicSlidingWindowLayer) and (past or layer.record_past):
            return f"layer {number} of its cache is a window that has moved over earlier positions"
    return None


class RowCache:
    """Keys and values of some rows, computed anew, for layers that are run again.

    `cache` is for `LayerCalls.rerun`. For each of `layers` it starts with what the pass's own cache
    holds of these rows from before the pass.
    """

    def __init__(
        self, cache: "Cache | None", layers: Iterable[int], rows: Rows | None, past: int
    ) -> None:
        """Start with the first `past` positions.

        Args:
            cache: the pass's own; None if it keeps none, then nothing is kept here either.
            layers: those that will be run again, after each has run in the pass.
            rows: rows of the pass's batch, or None for all.
            past: positions that `cache` held before the pass.

        Raises:
            SiteError: for a kind of cache that cannot be corrected; see `cache_obstacle`.
        """
        from transformers.cache_utils import DynamicCache

        obstacle = cache_obstacle(cache, past)
        if obstacle is not None:
            raise SiteError(f"rows cannot be computed anew: {obstacle}")
        self._own, self._rows, self._layers = cache, rows, sorted(set(layers))
        self.cache: Cache | None = None
        if cache is not None:
            self.cache = DynamicCache()
            for number in range(max(self._layers, default=-1) + 1):
                self.cache.layers.append(self._started(cache, number, past))

    def _started(self, cache: "Cache", number: int, past: int) -> "DynamicLayer":
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        own = cache.layers[number]
        if isinstance(own, DynamicSlidingWindowLayer):
            return DynamicSlidingWindowLayer(own.sliding_window)
        layer = DynamicLayer()
        if past and number in self._layers:
            layer.update(
                self._of_rows(own.keys)[:, :, :past], self._of_rows(own.values)[:, :, :past]
            )
        return layer

    def _of_rows(self, states: Tensor) -> Tensor:
        return states if self._rows is None else states[self._rows.to(states.device)]

    def write_back(self) -> None:
        """Put what was computed anew into the pass's own cache; layers not run again stay."""
        if self._own is None or self.cache is None:
            return
        for number in self._layers:
            new, own = self.cache.layers[number], self._own.layers[number]
            if new.is_initialized:
                own.keys = self._replaced(own.keys, new.keys)
                own.values = self._replaced(own.values, new.values)

    def _replaced(self, own: Tensor, new: Tensor) -> Tensor:
        if own.shape[1:] != new.shape[1:]:
            raise SiteError(
                f"the pass's cache holds {tuple(own.shape)} [batch, head, position, d_head], the "
                f"rows run again {tuple(new.shape)}: did the layers run in this pass, each once?"
            )
        if self._rows is None:
            return new
        rows = self._rows.to(own.device)
        # With gradients the graph may still need what is there.
        return own.index_copy(0, rows, new) if own.requires_grad else own.index_copy_(0, rows, new)
