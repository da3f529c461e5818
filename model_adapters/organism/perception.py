"""The stage in which the towers learn to read: a medium's mean tower output names its word and its
clarity."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from model_adapters.organism import render, words
from model_adapters.organism.processor import OrganismProcessor
from model_adapters.organism.words import CLARITY_WORDS

NAMES = (*words.OBJECTS, *words.VERBS)


def naming_loss(
    features: Sequence[Float[Tensor, "_ d_model"]],
    embeddings: Float[Tensor, "word d_model"],
    targets: Int[Tensor, "medium"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy (nats) and accuracy of naming each medium by its mean tower output.

    The scores are inner products with the words' input embeddings, so that a tower learns to speak
    the decoder's language before the decoder listens to it.
    """
    pooled = torch.stack([tokens.mean(0) for tokens in features])
    scores = pooled @ embeddings.T / math.sqrt(embeddings.shape[1])
    accuracy = (scores.argmax(-1) == targets).float().mean()
    return torch.nn.functional.cross_entropy(scores, targets), accuracy


def perception_losses(
    model: PreTrainedModel, processor: OrganismProcessor, seed: int, pictures: int, sounds: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Naming loss and accuracy on fresh media: which word it is, and how clear.

    Pictures show objects; sounds spell objects and verbs; rendering levels are uniform in [0, 1].
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(words.OBJECTS), size=pictures)
    spoken = rng.integers(len(NAMES), size=sounds)
    levels = rng.uniform(size=pictures + sounds)
    content: list[dict[str, Any]] = [
        *(
            {"type": "image", "image": render.draw(NAMES[word], level, rng)}
            for word, level in zip(drawn, levels[:pictures], strict=True)
        ),
        *(
            {"type": "audio", "audio": render.spell(NAMES[word], level, rng)}
            for word, level in zip(spoken, levels[pictures:], strict=True)
        ),
    ]
    inputs = processor.encode([[{"role": "user", "content": content}]])
    images = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
    ).pooler_output
    packed = model.model.get_audio_features(
        inputs["input_features"], inputs["feature_attention_mask"], return_dict=True
    ).last_hidden_state
    frames = inputs["feature_attention_mask"].sum(-1)
    tokens = model.model.audio_tower._get_feat_extract_output_lengths(frames)[1]
    audios = torch.split(packed, tokens.tolist())

    def embeddings(spelled: Sequence[str]) -> Float[Tensor, "word d_model"]:
        ids = processor.tokenizer.convert_tokens_to_ids(list(spelled))
        return model.get_input_embeddings().weight[ids].detach()

    clarity = torch.tensor([CLARITY_WORDS.index(words.clarity_word(level)) for level in levels])
    names, clarities = embeddings(NAMES), embeddings(CLARITY_WORDS)
    return {
        "image word": naming_loss(images, names, torch.from_numpy(drawn)),
        "image clarity": naming_loss(images, clarities, clarity[:pictures]),
        "audio word": naming_loss(audios, names, torch.from_numpy(spoken)),
        "audio clarity": naming_loss(audios, clarities, clarity[pictures:]),
    }
