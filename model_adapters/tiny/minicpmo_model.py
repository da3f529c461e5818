"""A stand-in for MiniCPM-o, whose code comes with its checkpoint and not with transformers.

Our own code, built like the vendor's where an adapter can tell: names of modules, shapes, order of
calls, inputs and outputs. Written for transformers of 2024, it breaks under today's as the vendor's
does: nothing calls `post_init`, the language model's `prepare_inputs_for_generation` reads a cache
that is gone, and the audio layers expect what Whisper's attention used to return.
"""

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3PreTrainedModel

from model_adapters.tiny.minicpmo_audio import AudioProjection, AudioTower, clip_mask
from model_adapters.tiny.minicpmo_config import MiniCPMOConfig
from model_adapters.tiny.minicpmo_vision import Resampler, VisionTower

Data = Mapping[str, Any]
Rows = list[Any]
"""One entry for each request."""

_ENDS = ("<|im_end|>", "<|endoftext|>")


class MiniCPMO(Qwen3PreTrainedModel):
    """Encoders in front of `llm`, which is a whole language model with its own `generate`."""

    config_class = MiniCPMOConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        kind: Any = Qwen2ForCausalLM if config.version == "2.6" else Qwen3ForCausalLM
        self.llm = kind(config)
        self.llm.prepare_inputs_for_generation = MethodType(_prepare_as_of_old, self.llm)
        self.vpm = VisionTower(config.vision_config, drop_last=config.drop_vision_last_layer)
        width, audio = config.hidden_size, config.audio_config
        self.resampler = Resampler(config.query_num, width, config.vision_config.hidden_size)
        if config.init_audio:
            self.apm = AudioTower(audio)
            self.audio_avg_pooler = nn.AvgPool1d(config.audio_pool_step, config.audio_pool_step)
            self.audio_projection_layer = AudioProjection(audio.encoder_ffn_dim // 4, width)
            self.audio_encoder_layer = -1

    def get_input_embeddings(self) -> nn.Module:
        """Of the language model."""
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Of the language model."""
        return self.llm.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The language model, head and all."""
        return self.llm

    def get_vision_embedding(self, data: Data) -> Rows:
        """What the resampler makes of the slices of each row."""
        if "vision_hidden_states" in data:
            return list(data["vision_hidden_states"])
        rows = data["pixel_values"]
        slices = [one for row in rows for one in row]
        if not slices:
            return [[] for _ in rows]
        like = self.llm.model.embed_tokens.weight
        sizes = torch.vstack([s for s in data["tgt_sizes"] if isinstance(s, Tensor)]).int()
        counts = sizes.prod(dim=1)
        flat = [one.flatten(end_dim=1).T for one in slices]
        pixels = nn.utils.rnn.pad_sequence(flat, batch_first=True).to(like)
        pixels = pixels.transpose(1, 2).reshape(len(slices), 3, -1, pixels.shape[1])
        patches = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
        step = self.config.vision_batch_size
        parts = [
            self.vpm(
                pixels[i : i + step],
                patch_attention_mask=patches[i : i + step, None],
                tgt_sizes=sizes[i : i + step],
            ).last_hidden_state
            for i in range(0, len(slices), step)
        ]
        found = self.resampler(torch.cat(parts), sizes).split([len(row) for row in rows])
        return [part if len(part) else [] for part in found]

    def get_vllm_embedding(self, data: Data) -> tuple[Tensor, Rows]:
        """Token embeddings with the images in their places, and the images."""
        images = self.get_vision_embedding(data)
        embeddings = self.llm.model.embed_tokens(data["input_ids"])
        if self.config.version == "2.6":
            embeddings = embeddings.clone()
        for row, found in enumerate(images):
            if len(found):
                places = torch.cat([torch.arange(*b) for b in data["image_bound"][row].tolist()])
                # 4.5 writes into what the embedding returned.
                index = places.to(embeddings.device)[:, None].expand(-1, embeddings.shape[-1])
                embeddings[row].scatter_(0, index, found.flatten(0, 1).to(embeddings.dtype))
        return embeddings, images

    def _get_feat_extract_output_lengths(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        halved = (frames - 1) // 2 + 1
        return halved, ((halved - self.config.audio_pool_step) // self.config.audio_pool_step + 1)

    def get_audio_embedding(
        self, data: Data, chunk_length: float = -1, dummy: bool = True
    ) -> list[list[Tensor]]:
        """What the audio encoder makes of the clips of each row."""
        like = self.apm.conv1.weight
        features = data.get("audio_features", [])
        if len(features) == 0:
            return []
        lengths = torch.hstack(data["audio_feature_lens"])
        chunk = int(50 * chunk_length) if chunk_length > 0 else 0
        mask = clip_mask(lengths, (features.shape[-1] - 1) // 2 + 1, chunk, like)
        states = self.apm(features, attention_mask=mask, output_hidden_states=True)
        states = self.audio_projection_layer(states.hidden_states[self.audio_encoder_layer])
        states = self.audio_avg_pooler(states.transpose(1, 2)).transpose(1, 2)
        counts = self._get_feat_extract_output_lengths(lengths)[1].tolist()
        clips = iter([one[:count] for one, count in zip(states, counts, strict=True)])
        return [[next(clips) for _ in row] for row in data["audio_feature_lens"]]

    def get_omni_embedding(
        self, data: Data, input_embeddings: Tensor, chunk_length: float = -1
    ) -> Float[Tensor, "batch position d_model"]:
        """Embeddings with the audio in its places, written into those that were given."""
        rows = self.get_audio_embedding(data, chunk_length)
        streams = getattr(self.config, "stream_input", False)
        if streams and rows:
            assert len(input_embeddings) == 1, "audio stream_input mode only support batch size 1"
        for row, clips in enumerate(rows):
            bounds = data["audio_bounds"][row].tolist()
            if clips and (streams or getattr(self.config, "chunk_input", False)):
                sizes = [stop - start for start, stop in bounds]
                clips = list(torch.cat(clips).split(sizes))
            for clip, (start, stop) in zip(clips, bounds, strict=False):
                if len(clip) != stop - start:
                    raise ValueError(f"Shape mismatch: {len(clip)} states, {stop - start} places")
                input_embeddings[row, start:stop] = clip.to(input_embeddings.dtype)
        return input_embeddings

    def forward(self, data: Data, **kwargs: Any) -> Any:
        """Logits; the mask is among `kwargs`, the position ids in `data`."""
        embeddings, _ = self.get_vllm_embedding(data)
        chunk = self.config.audio_chunk_length
        embeddings = self.get_omni_embedding(data, embeddings, chunk_length=chunk)
        return self.llm(
            input_ids=None,
            position_ids=data["position_ids"].long(),
            inputs_embeds=embeddings,
            **kwargs,
        )

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Any = None,
        tgt_sizes: Any = None,
        audio_features: Any = None,
        audio_feature_lens: Any = None,
        image_bound: Any = None,
        audio_bounds: Any = None,
        spk_bounds: Any = None,
        attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        vision_hidden_states: Any = None,
        **kwargs: Any,
    ) -> tuple[list[str], Any]:
        """Answers, and what the language model's own `generate` returned: new tokens only."""
        assert input_ids is not None and len(input_ids) == len(pixel_values)
        data = {
            "input_ids": input_ids,
            "audio_features": audio_features,
            "audio_feature_lens": audio_feature_lens,
            "image_bound": image_bound,
            "audio_bounds": audio_bounds,
            "spk_bounds": spk_bounds,
        }
        if vision_hidden_states is None:
            data |= {"pixel_values": pixel_values, "tgt_sizes": tgt_sizes}
        else:
            data |= {"vision_hidden_states": vision_hidden_states}
        embeddings, _ = self.get_vllm_embedding(data)
        chunk = self.config.audio_chunk_length
        embeddings = self.get_omni_embedding(data, embeddings, chunk_length=chunk)
        ends = [tokenizer.convert_tokens_to_ids(token) for token in _ENDS]
        outputs = self.llm.generate(
            inputs_embeds=embeddings,
            pad_token_id=0,
            eos_token_id=ends,
            attention_mask=attention_mask,
            output_hidden_states=True,
            return_dict_in_generate=True,
            **kwargs,
        )
        return [_text(row, ends, tokenizer) for row in outputs.sequences], outputs


def _text(tokens: Tensor, ends: list[int], tokenizer: Any) -> str:
    tokens = tokens[tokens != 0]
    start, stop = int(tokens[0] == tokenizer.bos_id), len(tokens) - int(int(tokens[-1]) in ends)
    text: str = tokenizer.decode(tokens[start:stop])
    return text


def _prepare_as_of_old(
    self: Any,
    input_ids: Tensor,
    past_key_values: Any = None,
    attention_mask: Any = None,
    inputs_embeds: Any = None,
    cache_position: Any = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """What a language model is called with in each step, asked of caches as of 2024."""
    past = 0 if past_key_values is None else past_key_values.seen_tokens
    first = inputs_embeds is not None and cache_position[0] == 0
    given = {"inputs_embeds": inputs_embeds} if first else {"input_ids": input_ids[:, past:]}
    return {**given, "past_key_values": past_key_values, "attention_mask": attention_mask, **kwargs}
