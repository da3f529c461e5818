"""Tiny random models, a small processor, and requests with every medium."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import model_adapters
from model_adapters import Adapter
from model_adapters.tiny.qwen import FULL

IMAGE, VIDEO, AUDIO, VISION_START, VISION_END, AUDIO_START, AUDIO_END = range(100, 107)
PATCH, MERGE, MELS = 4, 2, 16
SPECIAL = {
    "<pad>": 0,
    "<end>": 1,
    "<unk>": 2,
    "<image>": IMAGE,
    "<video>": VIDEO,
    "<audio>": AUDIO,
    "<vision>": VISION_START,
    "</vision>": VISION_END,
    "<sound>": AUDIO_START,
    "</sound>": AUDIO_END,
}
WORDS = {f"w{i}": i for i in range(3, 100)}


def thinker_config() -> Any:
    """A Qwen2.5-Omni thinker of width 32 and 4 layers, towers included."""
    return transformers.Qwen2_5OmniThinkerConfig(
        audio_config={
            "num_mel_bins": MELS,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "n_window": 50,
            "output_dim": 32,
            "max_source_positions": 200,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        },
        text_config={
            "vocab_size": 120,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
            },
            "pad_token_id": 0,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=AUDIO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        audio_start_token_id=AUDIO_START,
        audio_end_token_id=AUDIO_END,
        initializer_range=0.2,
    )


def build_thinker() -> Any:
    """A random thinker; the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Qwen2_5OmniThinkerForConditionalGeneration(thinker_config()).eval()


def build_text_model() -> Any:
    """A random text-only decoder of width 32 and 3 layers; the same weights at every call."""
    config = transformers.Qwen2Config(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Qwen2ForCausalLM(config).eval()


class SmallProcessor:
    """Does what the real processor does, with patches and frames cut in the simplest way."""

    def __init__(self) -> None:
        tokens = Tokenizer(models.WordLevel({**SPECIAL, **WORDS}, unk_token="<unk>"))
        tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokens,
            pad_token="<pad>",
            eos_token="<end>",
            unk_token="<unk>",
            extra_special_tokens=[
                name for name in SPECIAL if name not in ("<pad>", "<end>", "<unk>")
            ],
        )

    def apply_chat_template(self, conversations: Any, **options: Any) -> dict[str, Tensor]:
        (chat,) = conversations
        ids: list[int] = []
        packed: dict[str, list[Tensor]] = {}
        for part in (part for message in chat for part in message["content"]):
            if part["type"] == "text":
                ids += self.tokenizer(part["text"]).input_ids
            elif part["type"] == "image":
                count = self._patches(packed, "pixel_values", "image_grid_thw", [part["image"]])
                ids += [VISION_START, *[IMAGE] * count, VISION_END]
            elif part["type"] == "video":
                count = self._patches(
                    packed, "pixel_values_videos", "video_grid_thw", part["video"]
                )
                packed.setdefault("video_second_per_grid", []).append(torch.ones(1))
                ids += [VISION_START, *[VIDEO] * count, VISION_END]
            else:
                frames = len(part["audio"]) // 160
                sound = torch.from_numpy(part["audio"][: frames * 160]).reshape(frames, 10, MELS)
                packed.setdefault("input_features", []).append(sound.mean(1).T[None])
                mask = torch.ones(1, frames, dtype=torch.long)
                packed.setdefault("feature_attention_mask", []).append(mask)
                ids += [AUDIO_START, *[AUDIO] * (((frames - 1) // 2 - 1) // 2 + 1), AUDIO_END]
        ids.append(WORDS["w99"])
        row = torch.tensor([ids])
        media = {name: torch.cat(values) for name, values in packed.items()}
        return {"input_ids": row, "attention_mask": torch.ones_like(row), **media}

    def _patches(
        self, packed: dict[str, list[Tensor]], values: str, grid: str, frames: list[Image.Image]
    ) -> int:
        pixels = np.stack([np.asarray(frame, dtype=np.float32) / 255 for frame in frames])
        time, height, width, _ = pixels.shape
        rows, columns = height // PATCH, width // PATCH
        cut = torch.from_numpy(pixels[:, : rows * PATCH, : columns * PATCH])
        cut = cut.reshape(time, rows, PATCH, columns, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
        flat = cut.reshape(time * rows * columns, -1)
        packed.setdefault(values, []).append(torch.cat([flat, flat], dim=1))
        packed.setdefault(grid, []).append(torch.tensor([[time, rows, columns]]))
        return time * rows * columns // MERGE**2


def user(*parts: dict[str, Any] | str) -> list[dict[str, Any]]:
    """One user turn; strings are text parts."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


def picture_part(rows: int = 4, columns: int = 6, seed: int = 0) -> dict[str, Any]:
    """An image part of so many patches."""
    pixels = np.random.default_rng(seed).integers(0, 255, (rows * PATCH, columns * PATCH, 3))
    return {"type": "image", "image": Image.fromarray(pixels.astype(np.uint8))}


def sound_part(frames: int = 21, seed: int = 0) -> dict[str, Any]:
    """An audio part of so many frames."""
    samples = np.random.default_rng(seed).standard_normal(160 * frames).astype(np.float32)
    return {"type": "audio", "audio": samples}


def clip_part(frames: int = 2, seed: int = 0) -> dict[str, Any]:
    """A video part of so many frames, four patches on a side."""
    shape = (frames, 4 * PATCH, 4 * PATCH, 3)
    pixels = np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)
    return {"type": "video", "video": pixels}


@pytest.fixture
def parts() -> Any:
    """Makers of content parts: `parts.user`, `parts.picture`, `parts.sound`, `parts.clip`."""

    class Parts:
        user = staticmethod(user)
        picture = staticmethod(picture_part)
        sound = staticmethod(sound_part)
        clip = staticmethod(clip_part)

    return Parts


@pytest.fixture
def requests_of_every_kind() -> list[list[dict[str, Any]]]:
    """Text, image, audio, video, and two images with an audio; all of different lengths."""
    return [
        user("w5 w6 w7"),
        user("w5", picture_part(), "w8 w9"),
        user(sound_part(), "w10"),
        user("w3 w4", clip_part(), "w11"),
        user(picture_part(2, 4, seed=1), picture_part(4, 4, seed=2), "w12", sound_part(13, seed=3)),
    ]


@pytest.fixture
def fresh_thinker() -> Callable[[], Any]:
    """Builds the thinker anew, for tests that change it."""
    return build_thinker


@pytest.fixture
def full_omni() -> Any:
    """Thinker, talker and vocoder in one model, all of them tiny."""
    return FULL["qwen2_5_omni"]()


@pytest.fixture(scope="session")
def _thinker() -> Any:
    return build_thinker()


@pytest.fixture(scope="session")
def adapter(_thinker: Any) -> Adapter:
    """The tiny thinker with its processor. Shared: do not change its weights."""
    return model_adapters.load(_thinker, processor=SmallProcessor())


@pytest.fixture(scope="session")
def text_adapter() -> Adapter:
    """A tiny text-only decoder. Shared: do not change its weights."""
    return model_adapters.load(build_text_model())


@pytest.fixture
def small_processor() -> SmallProcessor:
    """The processor of the tiny thinker."""
    return SmallProcessor()


@pytest.fixture
def bare(adapter: Adapter) -> Any:
    """The same weights in a model that nothing has wrapped: the reference of the tests."""
    model = build_thinker()
    model.load_state_dict(copy.deepcopy(adapter.module.state_dict()))
    return model
