"""Requests of every modality for the random organism, and plain hooks to compare with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.organism.world import SETTINGS, draw_samples


@pytest.fixture(scope="session")
def chats() -> list[Any]:
    """One request of each modality and a second one in text, of different lengths."""
    samples = [draw_samples("report", setting, 1, seed=3)[0] for setting in SETTINGS]
    return [sample.messages for sample in (*samples, draw_samples("report", "text", 1, seed=8)[0])]


@pytest.fixture(params=["left", "right"])
def batch(request: Any, random_organism: Adapter, chats: list[Any]) -> Batch:
    """The requests in one batch, padded on either side."""
    return random_organism.encode(chats, padding_side=request.param)


@pytest.fixture(scope="session")
def left(random_organism: Adapter, chats: list[Any]) -> Batch:
    """The requests, padded for generation."""
    return random_organism.encode(chats)


@pytest.fixture(scope="session")
def vectors() -> Tensor:
    """Some fixed directions `[8, d_model]`, as long as states of the random organism are."""
    generator = torch.Generator().manual_seed(5)
    return 3 * torch.randn(8, 128, generator=generator, dtype=torch.float64)


def layer_of(adapter: Adapter, number: int) -> Any:
    """A decoder layer of the raw model."""
    return adapter.module.model.language_model.layers[number]


@contextmanager
def hooked(module: Any, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A plain hook that replaces a module's output in the prefill."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if states.shape[1] == 1:
            return output
        new = function(states)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def last_logits(adapter: Adapter, batch: Batch) -> Tensor:
    """Logits of the raw model at the last prompt token."""
    with torch.no_grad():
        logits: Tensor = adapter.module(**batch.inputs).logits
    return logits[torch.arange(len(batch)), batch.last]


def last_state(adapter: Adapter, batch: Batch, layer: int) -> Tensor:
    """What leaves a layer at the last prompt token, by a plain hook."""
    found: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        found.append(states[torch.arange(len(batch)), batch.last])
        return states

    with hooked(layer_of(adapter, layer), keep):
        last_logits(adapter, batch)
    return found[0]
