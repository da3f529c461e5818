"""The places of a model that can be read and written inside a trace.

All follow one vocabulary and one layout, `[batch, position, ...]`, whatever the model's modules
take and return. Inside one block, ask for sites in the order in which the model reaches them:
embed, then layer by layer resid_pre, z, result, attn_out, resid_mid, mlp_out, resid_post, then
final_norm and logits.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from nnsight.intervention.batching import Batcher
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.eproperty import eproperty
from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.util import first_input
from torch import Tensor

from model_adapters.collate import Window
from model_adapters.errors import LayerError, SiteError
from model_adapters.heads import head_results, mix
from model_adapters.parts import FIRST, Part
from model_adapters.stand_down import standing_down

Activation = Float[Tensor, "batch position *site"]


_WRITTEN_IN_PLACE = object()
"""Stands for a replacement already made inside the model's own tensor."""


class WindowBatcher(Batcher):
    """Also knows which positions of the wider batch belong to each invoke."""

    def __init__(self, envoy: Any, kwargs: Any = None) -> None:
        super().__init__(envoy, kwargs)
        self.windows: dict[int, Window] = {}
        """By an invoke's first row."""

    def assemble(self, fn: Any) -> Any:
        """The one call made of all invokes."""
        if not self.batching:
            return super().assemble(fn)
        encodings = [encoding for _, encoding in self.invokes]
        inputs, windows = self.envoy._collated(encodings)
        row = 0
        for encoding, window in zip(encodings, windows, strict=True):
            self.windows[row] = window
            row += len(encoding["input_ids"])
        return (), {**inputs, **self.extra_kwargs}

    def narrow(self, value: Any, group: Any) -> Any:
        """The rows of one invoke; refused for encoders, whose items are packed without rows."""
        if self.batching and group is not None:
            workers = self.envoy.interleaver.mediators
            asked = next(w.pending.provider for w in workers if w.batch_group is group)
            if any(asked.startswith(f"{tower}.") for tower in self.envoy._towers()):
                raise SiteError(
                    f"{asked} holds the media of all requests packed together; ask for it in an "
                    "empty `tracer.invoke()`, or in a trace of one batch"
                )
        return super().narrow(value, group)

    def widen(self, full: Any, group: Any, edited: Any) -> Any:
        """`full` with the rows of one invoke replaced, as a new tensor unless already done."""
        return full if edited is _WRITTEN_IN_PLACE else super().widen(full, group, edited)


class Site(ABC):
    """A value that a block inside a trace can read and replace."""

    obstacle: str | None = None
    """Why this model has no such place; None where it has."""

    def __init__(self, label: str, envoy: Any) -> None:
        self.label = label
        self.envoy = envoy
        """The nnsight envoy whose input or output it is."""

    @abstractmethod
    def read(self) -> Activation:
        """The value, live: changes in place reach the model."""

    @abstractmethod
    def write(self, value: object) -> None:
        """Replace it; shape checked, type and device cast."""


class AbsentSite(Site):
    """A place that this model does not have."""

    def __init__(self, label: str, envoy: Any, why: str) -> None:
        super().__init__(label, envoy)
        self.obstacle = f"{label} does not exist: {why}"

    def read(self) -> Activation:
        raise SiteError(self.obstacle)

    def write(self, value: object) -> None:
        raise SiteError(self.obstacle)


class OutputSite(Site):
    """What a module returns, or the part of it that the site is."""

    def __init__(self, label: str, envoy: Any, part: Part = FIRST) -> None:
        super().__init__(label, envoy)
        self.part = part

    def read(self) -> Activation:
        _require_trace(self)
        if not self.part.live:
            return _cut(self, _PartView(self.envoy, self.part).value)
        return _cut(self, self.part.get(self.envoy.output))

    def write(self, value: object) -> None:
        _require_trace(self)
        raw = self.envoy.output
        self.envoy.output = self.part.put(raw, _replace(self, self.part.get(raw), value))


class _PartView:
    """A value computed from a module's output; changes in place go back to the model."""

    def __init__(self, envoy: Envoy, part: Part) -> None:
        self.path, self.interleaver, self.part = envoy.path, envoy.interleaver, part
        self.version = 0

    @eproperty(key="output")
    def value(self, raw: Any) -> Tensor:
        computed = self.part.get(raw)
        self.version = computed._version
        return computed

    def write_back(self, computed: Tensor, raw: Any) -> Any:
        # A mere read leaves the model's own value, to the last bit. With gradients the value always
        # goes back: it has to be part of the graph.
        changed = computed._version != self.version or computed.requires_grad
        return self.part.put(raw, computed) if changed else raw

    value.transform(write_back)


class InputSite(Site):
    """The first argument of a module, or the part of it that the site is."""

    def __init__(self, label: str, envoy: Any, part: Part = FIRST) -> None:
        super().__init__(label, envoy)
        self.part = part

    def read(self) -> Activation:
        _require_trace(self)
        return _cut(self, self.part.get(self.envoy.input))

    def write(self, value: object) -> None:
        _require_trace(self)
        raw = self.envoy.input
        self.envoy.input = self.part.put(raw, _replace(self, self.part.get(raw), value))


class HeadsSite(Site):
    """The heads' outputs before they are mixed: `[batch, position, head, d_head]`."""

    def __init__(self, label: str, envoy: Any, n_heads: int) -> None:
        super().__init__(label, envoy)
        self.n_heads = n_heads

    def read(self) -> Activation:
        _require_trace(self)
        return _cut(self, self.split(self.envoy.input))

    def write(self, value: object) -> None:
        _require_trace(self)
        raw = self.envoy.input
        self.envoy.input = _replace(self, self.split(raw), value).flatten(-2)

    def split(self, raw: Tensor) -> Tensor:
        """A view of the output map's input, head by head."""
        return raw.unflatten(-1, (self.n_heads, -1))


class MidSite(Site):
    """The residual stream between attention and MLP.

    A decoder layer feeds this tensor to its second norm and adds it again after the MLP, so
    replacing the norm's input would leave half of it as it was. The tensor itself is rewritten
    instead, and readers get a copy, so that what they saved stays as it was read.
    """

    def read(self) -> Activation:
        _require_trace(self)
        return _cut(self, _MidView(self.envoy).stream)

    def write(self, value: object) -> None:
        _require_trace(self)
        live = _cut(self, self.envoy.input)
        live.copy_(checked(self.label, live, value))


class _MidView:
    def __init__(self, envoy: Envoy) -> None:
        self.path, self.interleaver = envoy.path, envoy.interleaver

    @eproperty(key="input")
    def stream(self, raw: Any) -> Tensor:
        copy: Tensor = first_input(*raw).clone()
        return copy

    def write_back(self, copy: Tensor, raw: Any) -> Any:
        # With gradients the copy always goes back: it has to be part of the graph.
        if copy._version or torch.is_grad_enabled():
            first_input(*raw).copy_(copy)
        return _WRITTEN_IN_PLACE

    stream.transform(write_back)


class ResultSite(Site):
    """What each head adds to the residual stream: `[batch, position, head, d_model]`.

    The sum over heads, plus the output map's bias if it has one, is what attention returns; that is
    `attn_out` unless a norm or a multiplier stands in between. It is computed when read; a change
    to it, in place or by assignment, changes what attention returns. Read it after `z` of the same
    layer and at most once in a pass.
    """

    def __init__(self, label: str, envoy: Any, n_heads: int) -> None:
        super().__init__(label, envoy)
        self.n_heads = n_heads

    def read(self) -> Activation:
        _require_trace(self)
        return _cut(self, _ResultView(self.envoy, self.envoy.input, self.n_heads).result)

    def write(self, value: object) -> None:
        _require_trace(self)
        raw = self.envoy.output
        like = raw[:, :, None].expand(-1, -1, self.n_heads, -1)
        with standing_down(self.envoy):
            mixed = mix(_replace(self, like, value), self.envoy._module)
        self.envoy.output = mixed


class _ResultView:
    def __init__(self, envoy: Envoy, heads: Tensor, n_heads: int) -> None:
        self.path, self.interleaver = envoy.path, envoy.interleaver
        self.module, self.heads, self.n_heads = envoy._module, heads, n_heads
        self.version = 0

    @eproperty(key="output")
    def result(self, raw: Any) -> Tensor:
        with standing_down(self):
            view = head_results(self.heads, self.module, self.n_heads)
        self.version = view._version
        return view

    def write_back(self, view: Tensor, raw: Any) -> Any:
        # A mere read leaves the model's own sum, to the last bit.
        if view._version == self.version and not view.requires_grad:
            return raw
        with standing_down(self):
            return mix(view, self.module)

    result.transform(write_back)


class LayerSites:
    """One kind of site, indexed by layer: `adapter.resid_post[5]`; assignment replaces it.

    Negative numbers count from the last layer. Values are live inside a trace; `.save()` keeps one.

    Raises:
        LayerError: for a layer that the model does not have.
        SiteError: outside a trace, or for a replacement that does not fit.
    """

    def __init__(self, name: str, sites: Sequence[Site]) -> None:
        self.name, self.sites = name, tuple(sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, layer: object) -> Activation:
        return self.site(layer).read()

    def __setitem__(self, layer: object, value: object) -> None:
        self.site(layer).write(value)

    def __repr__(self) -> str:
        return f"<{self.name} of {len(self)} layers>"

    def site(self, layer: object) -> Site:
        """The site of one layer.

        Raises:
            LayerError: for a layer that the model does not have.
        """
        return self.sites[self.number(layer)]

    def number(self, layer: object) -> int:
        """A layer counted from 0, of one that may be counted from the last.

        Raises:
            LayerError: for a layer that the model does not have.
        """
        if isinstance(layer, bool) or not isinstance(layer, SupportsIndex):
            raise LayerError(f"{self.name}[{layer!r}]: give one layer number; loop over several")
        number = operator.index(layer)
        if not -len(self) <= number < len(self):
            raise LayerError(
                f"{self.name}[{number}]: the model has {len(self)} layers, 0 to {len(self) - 1}"
            )
        return number % len(self)


def inside_block() -> bool:
    """Whether the code running now is a block of a trace; other threads' traces do not count."""
    try:
        Mediator.current("a site")
    except ValueError:
        return False
    return True


def _require_trace(site: Site) -> None:
    if not inside_block():
        raise SiteError(
            f"{site.label} has a value only inside a trace: `with adapter.trace(batch):`, or "
            "`with tracer.invoke(batch):` where a trace holds several"
        )
    block = Mediator.current(site.label)
    step = site.envoy.interleaver.steps.get(block)
    if step is not None:
        # Without it a late request would wait for the next step.
        block.iteration = step


def _window(site: Site, value: Tensor) -> slice | None:
    """The running block's own positions, where they are fewer than the batch's."""
    batcher = site.envoy.interleaver.batcher
    group = Mediator.current(site.label).batch_group
    if group is None or not isinstance(batcher, WindowBatcher) or not batcher.batching:
        return None
    window = batcher.windows[group[0]]
    # Decoding steps have one position, which belongs to everyone.
    return slice(window.start, window.stop) if value.shape[1] == window.width else None


def _cut(site: Site, value: Tensor) -> Tensor:
    window = _window(site, value)
    return value if window is None else value[:, window]


def _replace(site: Site, current: Tensor, value: object) -> Tensor:
    """`current` with the running block's positions replaced by `value`."""
    new = checked(site.label, _cut(site, current), value)
    window = _window(site, current)
    if window is None:
        return new
    whole = current.clone()
    whole[:, window] = new
    return whole


def checked(label: str, current: Tensor, value: object) -> Tensor:
    """A replacement cast to the type and device of `current`.

    Raises:
        SiteError: when it is no tensor of the same shape.
    """
    if not isinstance(value, Tensor):
        raise SiteError(
            f"{label}: the replacement is a {type(value).__name__}; it must be a tensor of "
            f"shape {tuple(current.shape)}"
        )
    if value.shape != current.shape:
        raise SiteError(
            f"{label}: the replacement has shape {tuple(value.shape)}, the site has "
            f"{tuple(current.shape)} [batch, position, ...]; decoding steps have one position"
        )
    return value.to(device=current.device, dtype=current.dtype)
