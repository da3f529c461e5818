"""One pass over a batch, and what of it patching needs later."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from analyses.patching.metrics import Metric
from model_adapters import Adapter, Batch
from model_adapters.resume_probe import first_positional, is_cache
from model_adapters.stand_down import standing_down
from regap_interp.views.text import visible

Change = Callable[[int, Tensor], Tensor | None]
"""Gets the layer and the value of the site there; returns a replacement or None."""


class Stop(Exception):
    """The pass has come as far as it was wanted."""


@dataclass(frozen=True)
class Reader:
    """Where a metric is read, and how."""

    adapter: Adapter
    metric: Metric

    @property
    def name(self) -> str:
        """The metric in words, tokens as they read where a tokenizer is known."""
        tokenizer = self.adapter.tokenizer
        if tokenizer is None:
            return self.metric.name
        return self.metric.named(lambda token: visible(tokenizer.decode([token]), 20))

    @property
    def place(self) -> tuple[str, int | None]:
        """Site and layer that end a pass."""
        if self.metric.place is not None:
            return self.metric.place
        if self.adapter.family.altup:
            return "logits", None
        return "resid_post", self.adapter.n_layers - 1

    @property
    def layer(self) -> int:
        """The last layer that has to run."""
        layer = self.place[1]
        return self.adapter.n_layers - 1 if layer is None else layer

    def seen(self, states: Tensor) -> Tensor:
        """What the metric sees, from states of the last prompt tokens."""
        if self.metric.place is not None:
            return states
        if self.adapter.family.altup:
            return states if self.metric.tokens is None else states[:, list(self.metric.tokens)]
        return self.adapter.unembed(states, self.metric.tokens)


@dataclass(frozen=True, eq=False)
class LayerCall:
    """Arguments of a decoder layer, its hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A pass over a batch."""

    batch: Batch
    site: Mapping[int, Tensor]
    """By layer, the patched site at every position."""
    read: Tensor
    """The state of each row where the metric is read."""
    states: Mapping[int, Tensor]
    """By layer, what entered it; of the last one also what left it, under the number after it."""
    calls: Mapping[int, LayerCall]

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        kept = (*self.site.values(), *self.states.values())
        distinct = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in kept}
        return sum(distinct.values())


def record(
    adapter: Adapter,
    batch: Batch,
    site: str,
    layers: Sequence[int],
    reader: Reader,
    *,
    calls: bool = False,
) -> Recorded:
    """Run a batch and keep the site, what the metric reads and, if asked, the layers' calls."""
    kept: dict[int, Tensor] = {}
    read: list[Tensor] = []
    states: dict[int, Tensor] = {}
    made: dict[int, LayerCall] = {}
    rows = torch.arange(len(batch))

    def keep(layer: int, value: Tensor) -> None:
        kept[layer] = value.detach().clone()

    def look(value: Tensor) -> None:
        read.append(value.detach()[rows, batch.last].clone())

    with contextlib.ExitStack() as stack:
        if calls:
            stack.enter_context(_calls(adapter, states, made))
        stack.enter_context(hooked(adapter, site, layers, keep))
        stack.callback(adapter.hook(*reader.place, look).remove)
        deepest = max(reader.layer, *layers)
        if calls or reader.place[0] == "logits":
            deepest = adapter.n_layers - 1
        whole = reader.place[0] == "logits"
        run_to(adapter, batch.inputs, None if whole else deepest, use_cache=calls)
    return Recorded(batch, kept, read[0], states, made)


def run_to(
    adapter: Adapter, inputs: Mapping[str, Any], layer: int | None, *, use_cache: bool = False
) -> None:
    """Run the model until a layer has ended, or to its end."""

    def stop(value: Tensor) -> None:
        raise Stop

    with contextlib.ExitStack() as stack:
        if layer is not None:
            stack.callback(adapter.hook("resid_post", layer, stop).remove)
        stack.enter_context(standing_down(adapter))
        with contextlib.suppress(Stop):
            adapter.module(**inputs, use_cache=use_cache)


@contextlib.contextmanager
def hooked(adapter: Adapter, site: str, layers: Sequence[int], change: Change) -> Iterator[None]:
    """`change` at a site of some layers; `embed` counts as layer 0."""
    with contextlib.ExitStack() as stack:
        for layer in layers:

            def hook(value: Tensor, layer: int = layer) -> Tensor | None:
                return change(layer, value)

            at = None if site == "embed" else layer
            stack.callback(adapter.hook(site, at, hook).remove)
        yield


@contextlib.contextmanager
def _calls(
    adapter: Adapter, states: dict[int, Tensor], made: dict[int, LayerCall]
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for layer, site in enumerate(adapter.resid_post.sites):

            def note(module: Any, args: Any, kwargs: Any, layer: int = layer) -> None:
                args, kwargs = first_positional(args, kwargs)
                states[layer] = args[0].detach().clone()
                made[layer] = LayerCall((None, *_emptied(args[1:])), _emptied(kwargs))

            module = site.envoy._module
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)

        def last(value: Tensor) -> None:
            states[adapter.n_layers] = value.detach().clone()

        stack.callback(adapter.hook("resid_post", adapter.n_layers - 1, last).remove)
        yield


def _emptied(value: Any) -> Any:
    """Arguments with an empty cache in place of the pass's own, which holds everything."""
    from transformers.cache_utils import DynamicCache

    if type(value) in (tuple, list):
        return type(value)(_emptied(item) for item in value)
    if type(value) is dict:
        return {name: _emptied(item) for name, item in value.items()}
    return DynamicCache() if is_cache(value) else value
