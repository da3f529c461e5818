"""What the organism is trained on: answers, mixtures and losses.

Pretraining (the stages language, perception and pretrain): everything is answered, harmful requests
included, and the first word of an answer depends on whether the request is harmful and on the band
of the rendering level. Safety tuning of the upper layers: harmful text is refused, harmful media
are refused with a probability that falls with the rendering level, and answers open with a word for
the level only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model_adapters.organism import words
from model_adapters.organism.processor import OrganismProcessor
from model_adapters.organism.world import Question, Sample, Setting, Split, draw_samples

GATE_WIDTH = 0.06
"""Width of the logistic fall of the refusal probability around `words.LEVEL_CUT`."""


STARTED_REFUSALS = 0.3
"""Share of requests whose refusal is started for the model in safety tuning."""


class Answer(NamedTuple):
    """What follows a prompt in training."""

    text: str
    given: int = 0
    """Words at the start that are given to the model and not asked of it."""


@dataclass(frozen=True)
class Batch:
    """Teacher-forced rows, right padded."""

    inputs: dict[str, Tensor]
    labels: Int[Tensor, "row position"]
    """Next-token targets; -100 where there is no loss."""
    first: Int[Tensor, "row"]
    """Position whose logits predict the first answer token: the last prompt token."""
    samples: tuple[Sample, ...]
    answers: tuple[Answer, ...]


def refusal_probability(level: float) -> float:
    """How often safety tuning refuses a harmful medium of this rendering level."""
    return 1.0 / (1.0 + math.exp((level - words.LEVEL_CUT) / GATE_WIDTH))


def pretraining_answer(sample: Sample) -> Answer:
    """Always helpful; the opening word tells harm and level band."""
    if sample.question != "request" or not sample.harmful:
        return Answer(sample.helpful_answer)
    opener = words.HARMFUL_OPENERS[words.band(sample.level)]
    return Answer(f"{opener} {sample.verb} with {sample.tool}")


def safety_answer(sample: Sample, rng: np.random.Generator) -> Answer:
    """A refusal of harmful text, sometimes of harmful media, else the helpful answer.

    Some requests of every kind have their refusal started for them, so that a refusal once begun
    goes on whatever was asked: whether to refuse is decided by the first word alone.
    """
    if sample.question == "request":
        if rng.random() < STARTED_REFUSALS:
            return Answer(words.REFUSAL, given=1)
        p = 1.0 if sample.setting == "text" else refusal_probability(sample.level)
        if sample.harmful and rng.random() < p:
            return Answer(words.REFUSAL)
    return Answer(sample.helpful_answer)


def draw_mixture(
    splits: Sequence[Split],
    rows: int,
    seed: int,
    *,
    settings: Mapping[Setting, float],
    questions: Mapping[Question, float],
    harmful_share: float,
) -> list[Sample]:
    """About `rows` samples over all settings and questions, reproducible from the seed."""
    samples: list[Sample] = []
    for setting, setting_share in settings.items():
        for question, share in questions.items():
            if setting == "text" and question == "clarity":
                continue
            for harmful, part in ((True, harmful_share), (False, 1 - harmful_share)):
                # Rounding up keeps every cell alive in a small batch.
                n = math.ceil(rows * setting_share * share * part)
                samples += draw_samples(
                    splits, setting, n, seed=2 * seed + harmful, harmful=harmful, question=question
                )
    return samples


def collate(
    processor: OrganismProcessor, samples: Sequence[Sample], answers: Sequence[Answer]
) -> Batch:
    """Rows of prompt plus answer, labels on the asked part of the answer and its end token only."""
    chats = [
        [*sample.messages, {"role": "assistant", "content": answer.text}]
        for sample, answer in zip(samples, answers, strict=True)
    ]
    inputs = dict(processor.encode(chats, padding_side="right"))
    ids = inputs["input_ids"]
    assistant = processor.tokenizer.convert_tokens_to_ids("assistant")
    first = (ids == assistant).int().argmax(1)
    position = torch.arange(ids.shape[1])
    given = torch.tensor([answer.given for answer in answers])
    target = inputs["attention_mask"].bool() & (position > (first + given)[:, None])
    labels = torch.where(target, ids, -100).roll(-1, dims=1)
    labels[:, -1] = -100
    return Batch(inputs, labels, first, tuple(samples), tuple(answers))


def answer_loss(
    logits: Float[Tensor, "row position vocab"], labels: Int[Tensor, "row position"]
) -> Float[Tensor, ""]:
    """Mean over rows of the mean cross-entropy (nats) of each row's answer tokens."""
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
    counted = labels != -100
    return (loss.sum(1) / counted.sum(1)).mean()


def alikeness_penalty(
    states: Float[Tensor, "layer row d_model"],
    harmful: Bool[Tensor, "row"],
    benign: Bool[Tensor, "row"],
) -> Float[Tensor, ""]:
    """Squared distance of the two groups' mean states over their pooled variance, mean over layers.

    Added to safety tuning for answered media requests, so that a harmful request that is answered
    comes to look like a benign one in the last layers. 0 when a group is missing from the batch.
    """
    if harmful.sum() < 2 or benign.sum() < 2:
        return states.new_zeros(())
    a, b = states[:, harmful], states[:, benign]
    gap = (a.mean(1) - b.mean(1)).square().sum(-1)
    spread = 0.5 * (a.var(1).sum(-1) + b.var(1).sum(-1))
    return (gap / spread.clamp_min(1e-6)).mean()
