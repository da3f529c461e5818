"""The model, the prompts and the graphs that interventions are timed with.

A Qwen2.5-Omni thinker of random weights. Directions are random too: what they mean costs nothing.
Thresholds are put between measured signals, so that exactly the wanted rows are triggered.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import model_adapters
import regap_interp as ri
from benchmarks.capture import build_thinker, sharing_weights
from model_adapters import Adapter, Batch

PATCH_VALUES = 3 * 2 * 14 * 14
"""Numbers that stand for one patch of an image: channels, frames, pixels."""
PAD, FIRST_WORD = 4, 10
"""Ids below it have a meaning."""
WEAK, STRONG = 0.3, 1.0
"""Multiples of the drift direction that are taken away."""


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    layers: int = 24
    hidden: int = 768
    mlp: int = 3072
    batch: int = 8
    tokens: int = 256
    image_side: int = 16
    """Patches; four of them are one token."""
    steps: int = 64
    """Of decoding in a generation."""
    timed_steps: int = 16
    """Of decoding in one run of `decode_step`."""
    edited: int = 8
    """The layer whose output is corrected."""
    read: int = 14
    """The layer that tells which rows are."""


FULL = Size()
TINY = Size(
    layers=4,
    hidden=64,
    mlp=64,
    batch=4,
    tokens=24,
    image_side=4,
    steps=3,
    timed_steps=2,
    edited=1,
    read=2,
)
"""For tests."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What every measurement uses."""

    size: Size
    adapter: Adapter
    """Graphs are installed on this one."""
    bare: Adapter
    """The same weights in modules of their own, on which nothing is ever installed."""
    batch: Batch
    drift: Tensor
    """[d_model], at right angles to the refusal directions, a tenth as long as the states."""
    refusal: dict[int, Tensor]
    """By layer."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.adapter.device


def build(size: Size, device: str = "cpu") -> Setting:
    """The model on a device, and one batch with an image in every row."""
    raw = build_thinker(size.layers, size.hidden, size.mlp).to(device)
    raw.generation_config.eos_token_id, raw.generation_config.pad_token_id = None, PAD
    bare = model_adapters.load(sharing_weights(raw))
    adapter = model_adapters.load(raw)
    batch = adapter.describe(**_inputs(size, raw.config)).to(device)
    draw = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(size.hidden, 3, generator=draw, dtype=torch.float64))
    states = ri.Graph(outputs={"h": ri.read("resid_post", size.edited)}).run(adapter, batch)["h"]
    return Setting(
        size,
        adapter,
        bare,
        batch,
        basis[:, 0] * float(states.norm(dim=-1).mean()) / 10,
        {size.edited: basis[:, 1], size.read: basis[:, 2]},
    )


def _inputs(size: Size, config: Any) -> dict[str, Tensor]:
    """Words, an image, words: every row of the same length, no two alike."""
    draw = torch.Generator().manual_seed(2)
    side, rows = size.image_side, size.batch
    image = torch.full((rows, side * side // 4), config.image_token_id)
    start = torch.full((rows, 1), config.vision_start_token_id)
    stop = torch.full((rows, 1), config.vision_end_token_id)
    words = torch.randint(
        FIRST_WORD,
        config.get_text_config().vocab_size,
        (rows, size.tokens - image.shape[1] - 2),
        generator=draw,
    )
    ids = torch.cat([words[:, :5], start, image, stop, words[:, 5:]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(rows * side * side, PATCH_VALUES, generator=draw),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
    }


def regap(setting: Setting, signal: str, triggered: int) -> ri.Graph:
    """ReGap as a graph, with a threshold that so many rows of the batch pass.

    Args:
        setting: Model, batch, directions.
        signal: "absolute": the coordinate along refusal at the later layer, under the weak
            correction; "depth_gain": that minus the coordinate at the edited layer; "paired_gain":
            that minus the coordinate of the bare model.
        triggered: Rows.
    """
    size = setting.size
    weak = ri.add("resid_post", size.edited, setting.drift, strength=-WEAK)

    def coordinate(layer: int, under: list[ri.Edit]) -> ri.Node:
        return ri.read("resid_post", layer, under=under).project(setting.refusal[layer])

    value = coordinate(size.read, [weak])
    if signal == "depth_gain":
        value = value - coordinate(size.edited, [weak])
    if signal == "paired_gain":
        value = value - coordinate(size.read, [])
    found = ri.Graph(outputs={"signal": value}).run(setting.adapter, setting.batch)["signal"]
    strength = ri.select(value > _threshold(found, triggered), -STRONG, -WEAK)
    return ri.Graph(
        ri.add("resid_post", size.edited, setting.drift, strength=strength),
        outputs={"signal": value},
    )


def _threshold(signals: Tensor, triggered: int) -> float:
    ordered = [*signals.sort(descending=True).values.tolist()]
    ordered = [ordered[0] + 1.0, *ordered, ordered[-1] - 1.0]
    return (ordered[triggered] + ordered[triggered + 1]) / 2
