"""The vision half of the MiniCPM-o stand-in: a SigLIP that takes images of any shape, a resampler.

Our own code, with the vendor's names, shapes and order of calls.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer


class VisionLayer(SiglipEncoderLayer):
    """Returns a tuple of one, as layers did in older versions of transformers."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """One layer."""
        return (super().forward(hidden_states, attention_mask),)


class _Embeddings(nn.Module):
    """Patches, and where they are in the image on a scale that all image sizes share."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.patch = config.hidden_size, config.patch_size
        self.side = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=self.patch, stride=self.patch)
        self.position_embedding = nn.Embedding(self.side**2, width)

    def forward(self, pixels: Tensor, patches: Tensor, sizes: Tensor) -> Tensor:
        found = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        places = torch.zeros(patches.shape, dtype=torch.long, device=found.device)
        for image, (rows, columns) in enumerate(sizes.tolist()):
            down = torch.arange(rows, device=found.device) * self.side // rows
            across = torch.arange(columns, device=found.device) * self.side // columns
            places[image, patches[image]] = (down[:, None] * self.side + across).flatten()
        return found + self.position_embedding(places)


class _Encoder(nn.Module):
    def __init__(self, config: Any, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([VisionLayer(config) for _ in range(count)])

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states, mask)[0]
        return states


class VisionTower(PreTrainedModel):
    """`vpm`: images of different shapes side by side, patches laid out in one row each."""

    config_class = SiglipVisionConfig

    def __init__(self, config: Any, *, drop_last: bool) -> None:
        super().__init__(config)
        config._attn_implementation = "eager"
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config, config.num_hidden_layers - drop_last)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        pixel_values: Float[Tensor, "slice 3 patch length"],
        patch_attention_mask: Bool[Tensor, "slice 1 patches"],
        tgt_sizes: Int[Tensor, "slice 2"],
    ) -> Any:
        """States of all patches, padding among them."""
        patches = patch_attention_mask[:, 0]
        states = self.embeddings(pixel_values, patches, tgt_sizes)
        hidden = torch.zeros(patches.shape, dtype=states.dtype, device=states.device)
        hidden = hidden.masked_fill(~patches, torch.finfo(states.dtype).min)
        states = self.encoder(states, hidden[:, None, None].expand(-1, 1, patches.shape[1], -1))
        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(states))


def _waves(width: int, rows: int, columns: int) -> np.ndarray:
    """Sines and cosines of both coordinates, `[row, column, width]`."""
    speed = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    across = np.broadcast_to(np.arange(columns)[None, :, None] * speed, (rows, columns, width // 4))
    down = np.broadcast_to(np.arange(rows)[:, None, None] * speed, across.shape)
    waves = [np.sin(across), np.cos(across), np.sin(down), np.cos(down)]
    return np.concatenate(waves, axis=-1).astype(np.float32)


class Resampler(nn.Module):
    """A fixed number of queries that read the patches of a slice.

    `pos_embed` is computed, not saved: transformers 5 leaves it unset where a checkpoint is loaded.
    """

    pos_embed: Tensor

    def __init__(self, queries: int, width: int, reads: int) -> None:
        super().__init__()
        self.embed_dim, self.max_size = width, (8, 8)
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.kv_proj = nn.Linear(reads, width, bias=False)
        self.attn = nn.MultiheadAttention(width, width // 128)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self._set_2d_pos_cache(self.max_size)

    def _set_2d_pos_cache(self, max_size: tuple[int, int], device: Any = "cpu") -> None:
        table = torch.from_numpy(_waves(self.embed_dim, *max_size)).to(device)
        self.register_buffer("pos_embed", table, persistent=False)

    def forward(
        self, states: Float[Tensor, "slice patch width"], tgt_sizes: Int[Tensor, "slice 2"]
    ) -> Float[Tensor, "slice query d_model"]:
        """What the queries find in each slice."""
        counts = tgt_sizes.prod(dim=1)
        beyond = torch.arange(int(counts.max()), device=states.device) >= counts[:, None]
        places = states.new_zeros(len(states), beyond.shape[1], self.embed_dim)
        for image, (rows, columns) in enumerate(tgt_sizes.tolist()):
            table = self.pos_embed[:rows, :columns].reshape(rows * columns, -1)
            places[image, : rows * columns] = table.to(states.dtype)
        values = self.ln_kv(self.kv_proj(states)).transpose(0, 1)
        asked = self.ln_q(self.query)[:, None].expand(-1, len(states), -1)
        found = self.attn(asked, values + places.transpose(0, 1), values, key_padding_mask=beyond)[
            0
        ]
        return self.ln_post(found.transpose(0, 1)) @ self.proj
