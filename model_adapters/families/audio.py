"""Audio language models, and Phi-4 multimodal."""

from dataclasses import replace

import torch

from model_adapters.families.family import Family
from model_adapters.families.forms_audio import Frames, Projected
from model_adapters.families.forms_phi import Crops, Heard
from model_adapters.families.measures import (
    Counts,
    chunk,
    each_frame,
    halved,
    mel_bins,
    of_chunks,
    patch,
    pooled,
)
from model_adapters.families.medium import Config, like
from model_adapters.families.text import GRANITE


def _whisper_frames(config: Config, frames: int) -> int:
    """Whisper takes all sounds filled up to one length, with a convolution of stride two."""
    return 2 * int(config.audio_config.max_source_positions)


def _stacked(config: Config, frames: Counts) -> Counts:
    audio = config.audio_config
    return torch.div(frames, 2 * audio.intermediate_size // audio.hidden_size).long()


def _merged_up(config: Config, frames: Counts) -> Counts:
    size = config.audio_merge_size
    return torch.div(halved(frames) + size - 1, size, rounding_mode="floor")


def _whole_chunks(config: Config, frames: int) -> int:
    return -(-frames // chunk(config)) * chunk(config)


def _input_size(config: Config) -> int:
    return int(config.audio_config.input_size)


def _crop(config: Config) -> int:
    return int(config.vision_config.crop_size)


def _granite_positions(config: Config, frames: int) -> int:
    return int(-(-frames // config.window_size) * (config.window_size // config.downsample_rate))


SOUND = Frames(
    kind="audio",
    tower="model.audio_tower",
    features="model.multi_modal_projector",
    token="audio_token_id",
    values="input_features",
    mask="input_features_mask",
    positions=pooled(2),
    width=mel_bins,
)
WHISPER = replace(SOUND, filled=_whisper_frames)

AUDIO_FLAMINGO = Family(name="Audio Flamingo 3", model_types=("audioflamingo3",), media=(WHISPER,))
MUSIC_FLAMINGO = replace(
    AUDIO_FLAMINGO,
    name="Music Flamingo",
    model_types=("musicflamingo",),
    # Sounds side by side would count as windows of one longer sound.
    media=(
        replace(
            WHISPER,
            opens="audio_bos_token_id",
            closes="audio_eos_token_id",
            counts_opens=True,
        ),
    ),
    control_tokens=("audio_bos_token_id", "audio_eos_token_id"),
)
QWEN2_AUDIO = replace(
    AUDIO_FLAMINGO,
    name="Qwen2-Audio",
    model_types=("qwen2_audio",),
    media=(replace(WHISPER, mask="feature_attention_mask"),),
)
VOXTRAL = replace(
    AUDIO_FLAMINGO,
    name="Voxtral",
    model_types=("voxtral",),
    media=(replace(WHISPER, mask=None, positions=_stacked),),
)
MOSS = replace(
    AUDIO_FLAMINGO,
    name="MOSS-Transcribe-Diarize",
    model_types=("moss_transcribe_diarize",),
    media=(replace(WHISPER, positions=_merged_up),),
    quirks=("encoder hears padding", "tied head"),
)
QWEN3_ASR = replace(
    AUDIO_FLAMINGO,
    name="Qwen3-ASR",
    model_types=("qwen3_asr",),
    media=(replace(SOUND, positions=of_chunks, filled=_whole_chunks, lengths=(37, 130)),),
    quirks=("tower returns a tuple", "tied head"),
)
GLM_ASR = replace(
    AUDIO_FLAMINGO,
    name="GLM-ASR",
    model_types=("glmasr",),
    media=(replace(SOUND, positions=pooled(4), pads=False),),
    quirks=("encoder hears padding", "tied head"),
)
FUN_ASR = replace(
    AUDIO_FLAMINGO,
    name="Fun-ASR-Nano",
    model_types=("fun_asr_nano",),
    media=(
        replace(
            SOUND,
            positions=each_frame,
            width=_input_size,
            frames_first=True,
            pads=False,
            lengths=(12, 7),
        ),
    ),
    quirks=("encoder hears padding", "tied head"),
)

GRANITE_SPEECH = replace(
    GRANITE,
    name="Granite Speech",
    model_types=("granite_speech", "granite_speech_plus"),
    media=(
        like(
            Projected,
            SOUND,
            tower="model.encoder",
            features="model.projector",
            positions=_granite_positions,
            width=lambda config: int(config.encoder_config.input_dim),
            multiplier="text_config.embedding_multiplier",
        ),
    ),
    quirks=("residual multiplier", "encoder hears padding", "tied head"),
)

_EMBED = "model.embed_tokens_extend"

PHI4 = Family(
    name="Phi-4 multimodal",
    model_types=("phi4_multimodal",),
    media=(
        Crops(
            kind="image",
            tower=f"{_EMBED}.image_embed.img_processor",
            features=f"{_EMBED}.image_embed.img_projection_down",
            token="vision_config.image_token_id",
            values="image_pixel_values",
            sizes="image_sizes",
            mask="image_attention_mask",
            side=_crop,
            patches=lambda config: _crop(config) // patch(config),
        ),
        Heard(
            kind="audio",
            tower=f"{_EMBED}.audio_embed.encoder",
            features=f"{_EMBED}.audio_embed.down_proj_for_speech",
            token="audio_config.audio_token_id",
            values="audio_input_features",
            sizes="audio_embed_sizes",
            mask="audio_attention_mask",
            reduction=lambda config: int(config.audio_config.time_reduction),
            width=_input_size,
            pictures="image_pixel_values",
            picture_token="vision_config.image_token_id",
        ),
    ),
    apart=True,
    quirks=("encoders see padding", "sounds beside pictures take another projection"),
)

FAMILIES: tuple[Family, ...] = (
    QWEN2_AUDIO,
    VOXTRAL,
    AUDIO_FLAMINGO,
    MUSIC_FLAMINGO,
    GRANITE_SPEECH,
    GLM_ASR,
    QWEN3_ASR,
    FUN_ASR,
    MOSS,
    PHI4,
)
