"""Which part of what a module takes or returns a site is, and how to put a new one back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model_adapters.errors import SiteError


class Part(ABC):
    """A value inside a module's input or output."""

    live = True
    """Whether changes in place of what `get` returns reach the model by themselves."""

    def called(self, module: Any, args: Any, kwargs: Any) -> None:  # noqa: B027 - most need not
        """Hear what the module was called with, before what it returns is asked for."""

    @abstractmethod
    def get(self, raw: Any) -> Tensor:
        """The value, `[batch, position, ...]`."""

    @abstractmethod
    def put(self, raw: Any, new: Tensor) -> Any:
        """`raw` with the value replaced."""


class First(Part):
    """The tensor itself, or the first item where there are several."""

    def get(self, raw: Any) -> Tensor:
        return first(raw)

    def put(self, raw: Any, new: Tensor) -> Any:
        return with_first(raw, new)


FIRST = First()


class OneStream(Part):
    """One of several streams that layers pass on together, `[stream, batch, position, d_model]`."""

    def __init__(self, index: int) -> None:
        self.index = index

    def get(self, raw: Any) -> Tensor:
        return first(raw)[self.index]

    def put(self, raw: Any, new: Tensor) -> Any:
        streams = first(raw).clone()
        streams[self.index] = new
        return with_first(raw, streams)


class Unflattened(Part):
    """`[batch * position, d_model]`, in the shape of what the module was called with."""

    def __init__(self) -> None:
        self._shape = torch.Size()

    def called(self, module: Any, args: Any, kwargs: Any) -> None:
        """Note the shape; the next call may have another."""
        self._shape = (args[0] if args else next(iter(kwargs.values()))).shape

    def get(self, raw: Any) -> Tensor:
        return first(raw).view(self._shape)

    def put(self, raw: Any, new: Tensor) -> Any:
        return with_first(raw, new.reshape(first(raw).shape))


class Transformed(Part):
    """What the model makes of an output before it uses it, by a function that can be undone."""

    live = False

    def __init__(
        self, function: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]
    ) -> None:
        self.function, self.inverse = function, inverse

    def get(self, raw: Any) -> Tensor:
        return self.function(first(raw))

    def put(self, raw: Any, new: Tensor) -> Any:
        return with_first(raw, self.inverse(new))


def first(raw: Any) -> Tensor:
    """What a module returns, or the first item where it returns several."""
    value: Tensor = raw[0] if isinstance(raw, tuple) else raw
    return value


def with_first(raw: Any, new: Tensor) -> Any:
    """`raw` with its `first` replaced."""
    return raw.__class__((new, *raw[1:])) if isinstance(raw, tuple) else new


def scaled(factor: float) -> Part:
    """An output that the model multiplies by `factor` before it is added to the stream."""
    return Transformed(lambda value: value * factor, lambda value: value / factor)


def stream_part(text_config: Any, *, altup: bool) -> Part:
    """The stream in what decoder layers pass on; under AltUp, the active one."""
    return OneStream(text_config.altup_active_idx) if altup else FIRST


def logits_part(text_config: Any) -> Part:
    """From the output of the head to the logits that the model returns.

    Some models multiply or divide there, some squash to `(-cap, cap)` by a tanh (Gemma).
    """
    cap = getattr(text_config, "final_logit_softcapping", None)
    factor = logit_factor(text_config)
    if cap:
        return Transformed(
            lambda logits: torch.tanh(logits / cap) * cap,
            lambda logits: torch.atanh(_within(logits, cap) / cap) * cap,
        )
    return FIRST if factor == 1 else scaled(factor)


def logit_factor(text_config: Any) -> float:
    """What the head's output is multiplied by (Cohere multiplies, Granite divides)."""
    factor = getattr(text_config, "logit_scale", None) or 1.0
    return float(factor) / float(getattr(text_config, "logits_scaling", None) or 1.0)


def _within(logits: Tensor, cap: float) -> Tensor:
    if bool((logits.abs() > cap).any()):
        raise SiteError(
            f"this model squashes its logits into (-{cap}, {cap}); a replacement beyond that "
            "cannot come out of it"
        )
    return logits
