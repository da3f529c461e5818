"""The audio half of the MiniCPM-o stand-in: a Whisper encoder as older versions called it.

Our own code, with the vendor's names, shapes and order of calls.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder


class AudioLayer(nn.Module):
    """Calls its attention by the names, and for the three values, that Whisper's had before 5.0."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = WhisperAttention(
            width, config.encoder_attention_heads, config=config, layer_idx=number
        )
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor]:
        """One layer; a tuple of one."""
        found, _, _ = self.self_attn(
            hidden_states=self.self_attn_layer_norm(states),
            past_key_value=None,
            attention_mask=attention_mask,
            layer_head_mask=None,
            output_attentions=False,
        )
        states = states + found
        return (states + self.fc2(nn.functional.gelu(self.fc1(self.final_layer_norm(states)))),)


class AudioTower(WhisperEncoder):
    """`apm`: takes clips of any length, with a mask of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers = [AudioLayer(config, number) for number in range(config.encoder_layers)]
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        input_features: Float[Tensor, "clip bin frame"],
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = True,
    ) -> Any:
        """States after every layer; the last ones are those after the norm."""
        states = nn.functional.gelu(self.conv1(input_features))
        states = nn.functional.gelu(self.conv2(states)).transpose(1, 2)
        states = states + self.embed_positions.weight[: states.shape[1]]
        seen = []
        for layer in self.layers:
            seen.append(states)
            states = layer(states, attention_mask)[0]
        states = self.layer_norm(states)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(*seen, states))


class AudioProjection(nn.Module):
    """`audio_projection_layer`: from encoder frames to the decoder's width."""

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, d_model), nn.Linear(d_model, d_model)

    def forward(
        self, states: Float[Tensor, "clip frame width"]
    ) -> Float[Tensor, "clip frame d_model"]:
        """Two maps."""
        return self.linear2(nn.functional.relu(self.linear1(states)))


def clip_mask(
    lengths: Tensor, frames: int, chunk: int, like: Tensor
) -> Float[Tensor, "clip 1 frame frame"]:
    """Which encoder frames see which, to be added to attention scores.

    Lengths are those of the features, twice the encoder's, as in the vendor's code: padding of
    shorter clips is seen.

    Args:
        lengths: feature frames of each clip.
        frames: encoder frames.
        chunk: encoder frames of a chunk, which sees itself and earlier ones; 0 for all.
        like: gives type and device.
    """
    number = torch.arange(frames, device=lengths.device)
    hidden = (number >= lengths[:, None])[:, None, None].expand(-1, 1, frames, -1)
    if chunk:
        hidden = hidden | (number[None] >= (number[:, None] // chunk + 1) * chunk)
    return (
        torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden.cpu(), -torch.inf).to(like)
    )
