"""Tiny models of several houses, each with one prompt of every medium that it takes at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor

import model_adapters
from model_adapters import Adapter, Batch
from model_adapters.collate import collate
from model_adapters.families import family_of
from model_adapters.probe import example
from model_adapters.tiny import builders

PROMPTS = 2


class Made(NamedTuple):
    """A tiny model and a batch for it."""

    adapter: Adapter
    batch: Batch


def build(name: str) -> Any:
    """The tiny model of that name, computing attention step by step, as bridges do."""
    if name == "starcoder2":
        return starcoder2()
    module: Any = builders()[name]()
    module.set_attn_implementation("eager")
    return module


def starcoder2() -> Any:
    """A text decoder with layer norms and biases everywhere, none of them zero."""
    config = transformers.Starcoder2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Starcoder2ForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def make(name: str, module: Any = None) -> Made:
    """A fresh adapter of a tiny model, and two prompts in one batch, padded on the left."""
    module = build(name) if module is None else module
    adapter = model_adapters.Adapter(module, family_of(module.config), model_id=name)
    family = adapter.family
    kinds = tuple(m.kind for m in family.media if m.kind not in family.alone)
    prompts = [example(module, family, kinds, size=n, seed=n) for n in range(PROMPTS)]
    inputs, _ = collate(prompts, family, pad_id=adapter.pad_id, sides=["left"] * PROMPTS)
    return Made(adapter, adapter.describe(**inputs))


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Made]:
    """Makes each model once. Shared: do not change weights."""
    return functools.cache(make)


@pytest.fixture
def metric() -> Callable[[Tensor], Tensor]:
    """What patching is measured by: one logit against another behind the prompt."""
    return lambda logits: (logits[:, -1, 7] - logits[:, -1, 9]).mean()
