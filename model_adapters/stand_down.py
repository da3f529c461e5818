"""Calling parts of the model by hand without a running trace, or anybody's hooks, taking notice."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def standing_down(traced: Any) -> Iterator[None]:
    """A trace that is running on `traced` (an adapter, an envoy) serves nothing inside."""
    interleaver = traced.interleaver
    before, interleaver.interleaving = interleaver.interleaving, False
    try:
        yield
    finally:
        interleaver.interleaving = before


@contextlib.contextmanager
def without_a_trace_left(module: Any) -> Iterator[None]:
    """No hook of `module` or inside it fires, and what its forwards store on it is put back."""
    hooks = ("_forward_pre_hooks", "_forward_hooks")
    parts = list(module.modules())
    stored = [dict(vars(part)) for part in parts]
    removed = [{name: getattr(part, name).copy() for name in hooks} for part in parts]
    for part in parts:
        for name in hooks:
            getattr(part, name).clear()
    try:
        yield
    finally:
        for part, attributes, kept in zip(parts, stored, removed, strict=True):
            for name in vars(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)
            for name, values in kept.items():
                getattr(part, name).clear()
                getattr(part, name).update(values)
