"""Tiny audio language models, and Phi-4 multimodal."""

from model_adapters.tiny.build import (
    AUDIO,
    AUDIO_CLOSES,
    AUDIO_OPENS,
    GRANITE,
    IMAGE,
    SPREAD,
    Builder,
    Options,
    made,
    model,
    rope,
    sounds,
    text,
    vision,
)

_WHISPER: Options = {
    "num_mel_bins": 8,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_source_positions": 16,
    "initializer_range": SPREAD,
}
"""For sounds of 32 frames."""


def _granite(name: str, *layers: int) -> Builder:
    """With features of these layers of the encoder beside those of its last."""
    encoder = {
        "input_dim": 8,
        "num_layers": 2,
        "hidden_dim": 16,
        "feedforward_mult": 2,
        "num_heads": 2,
        "output_dim": 10,
        "context_size": 8,
        "max_pos_emb": 16,
        "conv_kernel_size": 3,
        "initializer_range": SPREAD,
    }
    return model(
        name,
        text("granite", **GRANITE),
        encoder_config=encoder | ({"cat_hidden_layers": list(layers)} if layers else {}),
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 16,
            "encoder_hidden_size": 16 * (1 + len(layers)),
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "cross_attention_frequency": 1,
            "initializer_range": SPREAD,
        },
        audio_token_index=AUDIO,
        has_lora_adapter=False,
        downsample_rate=2,
        window_size=6,
        initializer_range=SPREAD,
    )


TINY: dict[str, Builder] = {
    # Sounds of one length, with a mask.
    "qwen2_audio": model(
        "Qwen2Audio",
        text("qwen2"),
        audio_config=sounds(encoder_ffn_dim=64, max_source_positions=16),
        audio_token_index=AUDIO,
    ),
    # The same without a mask.
    "voxtral": model("Voxtral", text("llama"), audio_config=_WHISPER, audio_token_id=AUDIO),
    "audioflamingo3": model(
        "AudioFlamingo3", text("qwen2"), audio_config=_WHISPER, audio_token_id=AUDIO
    ),
    # The time of every frame is turned into the features.
    "musicflamingo": model(
        "MusicFlamingo",
        text("qwen2"),
        audio_config={"model_type": "audioflamingo3_encoder", **_WHISPER},
        audio_token_id=AUDIO,
        audio_bos_token_id=AUDIO_OPENS,
        audio_eos_token_id=AUDIO_CLOSES,
        rope_parameters=rope(rope_theta=64, partial_rotary_factor=0.25),
    ),
    # Sounds without a mask of frames.
    "granite_speech": _granite("GraniteSpeech"),
    "granite_speech_plus": _granite("GraniteSpeechPlus", 1),
    # A mask that the encoder does not look at.
    "glmasr": model("GlmAsr", text("llama"), audio_config=_WHISPER, audio_token_id=AUDIO),
    # Sounds of any length, cut into chunks.
    "qwen3_asr": model(
        "Qwen3ASR",
        text("qwen3"),
        audio_config=sounds(n_window_infer=200, downsample_hidden_size=4),
        audio_token_id=AUDIO,
        timestamp_token_id=107,
        pad_token_id=0,
        eos_token_id=1,
        initializer_range=SPREAD,
    ),
    # Sounds of any length, `[items, frames, bins]`, with a mask; a position for every frame.
    "fun_asr_nano": model(
        "FunAsrNano",
        text("qwen3"),
        audio_config={
            "num_mel_bins": 4,
            "num_stacked_frames": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_timestamp_prediction_layers": 1,
            "fsmn_kernel_size": 3,
            "initializer_range": SPREAD,
        },
        adaptor_config={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "projector_hidden_size": 24,
            "initializer_range": SPREAD,
        },
        audio_token_id=AUDIO,
        initializer_range=SPREAD,
    ),
    # Sounds of one length, several frames merged into a position.
    "moss_transcribe_diarize": model(
        "MossTranscribeDiarize", text("qwen3"), audio_config=_WHISPER, audio_token_id=AUDIO
    ),
    # Pictures in crops, and sounds; other projections for sounds that come with pictures.
    "phi4_multimodal": made(
        "Phi4Multimodal",
        "Phi4MultimodalForCausalLM",
        # The config replaces a missing end token by one outside this vocabulary.
        **text(eos_token_id=119, original_max_position_embeddings=512),
        vision_config=vision(num_hidden_layers=3, crop_size=16, image_token_id=IMAGE),
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "input_size": 16,
            "time_reduction": 4,
            "bias_max_distance": 20,
            "nemo_conv_channels": 8,
            "audio_token_id": AUDIO,
            "initializer_range": SPREAD,
        },
    ),
}
