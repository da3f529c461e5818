"""The organism's architecture and tokenizer: a small Qwen2.5-Omni thinker."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor
from transformers.models.qwen2_5_omni import (
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from model_adapters.organism import render, words
from model_adapters.organism.processor import CHAT_TEMPLATE, OrganismProcessor

LAYERS = 12
D_MODEL = 128
PATCH = 8
MELS = 64
INITIAL_SPREAD = 0.1
"""Standard deviation of initial weights: about 1 / sqrt(width), since 0.02 is for wide models."""
EMBEDDING_GAIN = 5.0

SPECIAL = (
    "<|pad|>",
    "<|unk|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|IMAGE|>",
    "<|AUDIO|>",
    "<|VIDEO|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world, and the special tokens of the chat template."""
    vocab = {word: index for index, word in enumerate((*SPECIAL, *words.vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    # Cut at punctuation too: a special token typed by a user falls apart into unknown words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[s for s in SPECIAL if s not in ("<|pad|>", "<|unk|>")],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor() -> OrganismProcessor:
    """The processor with the sizes that the towers of `build_model` expect."""
    pixels = render.WIDTH * render.HEIGHT
    return OrganismProcessor(
        tokenizer=build_tokenizer(),
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": pixels, "longest_edge": pixels},
            patch_size=PATCH,
            temporal_patch_size=2,
            merge_size=2,
        ),
        feature_extractor=WhisperFeatureExtractor(feature_size=MELS, chunk_length=1),
        frames_per_second=2.0,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """A freshly initialised model: 12 decoder layers of width 128, vision and audio towers."""
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": D_MODEL,
            "intermediate_size": 3 * D_MODEL,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": ids["<|pad|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [8, 4, 4],
            },
            "initializer_range": INITIAL_SPREAD,
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "window_size": 8 * PATCH,
            "fullatt_block_indexes": [0, 1, 2],
            "out_hidden_size": D_MODEL,
            "initializer_range": INITIAL_SPREAD,
        },
        audio_config={
            "num_mel_bins": MELS,
            "encoder_layers": 3,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "d_model": 96,
            "max_source_positions": 128,
            "output_dim": D_MODEL,
            "initializer_range": INITIAL_SPREAD,
        },
        image_token_index=ids["<|IMAGE|>"],
        audio_token_index=ids["<|AUDIO|>"],
        video_token_index=ids["<|VIDEO|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
        user_token_id=tokenizer.convert_tokens_to_ids("user"),
        pad_token_id=ids["<|pad|>"],
        initializer_range=INITIAL_SPREAD,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    with torch.no_grad():
        # Words at the size of a residual stream: copying them is then learned in minutes.
        model.get_input_embeddings().weight.mul_(EMBEDDING_GAIN)
    generation = model.generation_config
    generation.pad_token_id, generation.eos_token_id = ids["<|pad|>"], ids["<|im_end|>"]
    return model
