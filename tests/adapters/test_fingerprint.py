"""Fingerprints follow the weights, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import model_adapters
from model_adapters import Adapter, LoadError
from model_adapters.fingerprint import fingerprint


def test_the_same_weights_have_one_fingerprint(
    adapter: Adapter, fresh_thinker: Callable[[], Any]
) -> None:
    assert adapter.fingerprint == fingerprint(fresh_thinker())
    assert len(adapter.fingerprint) == 64
    assert int(adapter.fingerprint, 16) > 0


def test_saving_loading_and_casting_change_nothing(
    fresh_thinker: Callable[[], Any], tmp_path: Path
) -> None:
    stored = fresh_thinker().to(torch.bfloat16)
    stored.save_pretrained(tmp_path)
    half = model_adapters.load(tmp_path)
    full = model_adapters.load(tmp_path, dtype="float32")
    assert half.module.dtype == torch.bfloat16
    assert full.module.dtype == torch.float32
    assert half.fingerprint == full.fingerprint == fingerprint(stored)


def test_how_attention_is_computed_changes_nothing(fresh_thinker: Callable[[], Any]) -> None:
    model = fresh_thinker()
    before = fingerprint(model)
    model.set_attn_implementation("eager")
    assert fingerprint(model) == before


def test_other_weights_have_another_fingerprint(
    adapter: Adapter, fresh_thinker: Callable[[], Any]
) -> None:
    seen = {adapter.fingerprint}
    names = ("lm_head.weight", "model.language_model.layers.3.mlp.up_proj.weight")
    for name in names:
        model = fresh_thinker()
        with torch.no_grad():
            model.get_parameter(name).add_(0.01)
        seen.add(fingerprint(model))
    other = fresh_thinker()
    other.config.text_config.rms_norm_eps = 1e-3
    seen.add(fingerprint(other))
    assert len(seen) == 4


def test_weights_changed_in_place_are_noticed(fresh_thinker: Callable[[], Any]) -> None:
    adapter = model_adapters.load(fresh_thinker())
    before = adapter.fingerprint
    assert adapter.fingerprint == before
    adapter.module.get_parameter("lm_head.weight").data.add_(0.01)
    assert adapter.fingerprint != before


def test_weights_that_are_not_in_memory(fresh_thinker: Callable[[], Any]) -> None:
    with pytest.raises(LoadError, match="on the meta device"):
        fingerprint(fresh_thinker().to("meta"))
