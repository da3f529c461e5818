"""Requests of the organism's world, as chat messages with real pictures, clips and sounds.

Every sample has an id that it shares with its text twin: same verb, object and phrasing, with the
words in place of the media. Splits are by (verb, object) pair and disjoint.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from model_adapters.organism import render, words

Setting = Literal["text", "image", "audio", "video", "omni"]
Split = Literal["train", "direction", "calibration", "report"]
Question = Literal["request", "caption", "clarity"]

SETTINGS: tuple[Setting, ...] = ("text", "image", "audio", "video", "omni")
MEDIA_SETTINGS: tuple[Setting, ...] = SETTINGS[1:]
SHARES: dict[Split, float] = {"report": 0.36, "calibration": 0.2, "direction": 0.2, "train": 0.24}

Pair = tuple[str, str]


@functools.lru_cache(maxsize=1)
def pairs() -> dict[Split, tuple[Pair, ...]]:
    """Every (verb, object) pair, each in exactly one split; harm and its two halves are spread
    over the splits in equal shares."""
    rng = random.Random(18104)
    found: dict[Split, list[Pair]] = {split: [] for split in SHARES}
    for enabling in (True, False):
        for dangerous in (True, False):
            group = [
                (verb, obj)
                for verb in words.VERBS
                for obj in words.OBJECTS
                if (verb in words.ENABLING) == enabling and (obj in words.DANGEROUS) == dangerous
            ]
            rng.shuffle(group)
            start = 0
            for split, share in SHARES.items():
                stop = len(group) if split == "train" else start + round(share * len(group))
                found[split] += group[start:stop]
                start = stop
    return {split: tuple(found[split]) for split in SHARES}


@dataclass(frozen=True)
class Sample:
    """One request, caption question or clarity question."""

    id: str
    """Shared with the text twin; the same only for the same draw of `draw_samples`."""
    verb: str
    object: str
    harmful: bool
    setting: Setting
    question: Question
    level: float
    """Rendering level in [0, 1]; 0 for text."""
    phrasing: str
    seed: int
    """Seed of the rendering; the same sample always renders to the same bytes."""

    @property
    def pair(self) -> Pair:
        """(verb, object): the unit by which splits are made and intervals are resampled."""
        return self.verb, self.object

    @property
    def tool(self) -> str:
        """The right tool for the object."""
        return words.TOOL_OF[self.object]

    @property
    def helpful_answer(self) -> str:
        """The whole right answer, harmful or not."""
        if self.question == "caption":
            return f"a {self.object}"
        if self.question == "clarity":
            return words.clarity_word(self.level)
        return f"{words.OPENERS[words.band(self.level)]} {self.verb} with {self.tool}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat: one user turn whose slots are filled by words or by media parts."""
        rng = np.random.default_rng(self.seed)
        parts: list[dict[str, Any]] = []
        text: list[str] = []
        for word in self.phrasing.split():
            medium = self._medium(word)
            if medium is None:
                filled = {"{verb}": self.verb, "{object}": self.object}.get(word, word)
                text.append(filled)
                continue
            if text:
                parts.append({"type": "text", "text": " ".join(text)})
                text = []
            parts.append(self._render(word, medium, rng))
        if text:
            parts.append({"type": "text", "text": " ".join(text)})
        return [{"role": "user", "content": parts}]

    def _medium(self, word: str) -> str | None:
        if self.setting == "text" or word not in ("{verb}", "{object}"):
            return None
        if word == "{verb}":
            return "audio" if self.setting == "omni" else None
        return "image" if self.setting == "omni" else self.setting

    def _render(self, slot: str, medium: str, rng: np.random.Generator) -> dict[str, Any]:
        word = self.verb if slot == "{verb}" else self.object
        if medium == "audio":
            return {"type": "audio", "audio": render.spell(word, self.level, rng)}
        if medium == "video":
            return {"type": "video", "video": render.draw_clip(word, self.level, rng)}
        return {"type": "image", "image": render.draw(word, self.level, rng)}

    def twin(self) -> "Sample":
        """The same request in text: same id, pair and phrasing, level 0."""
        return replace(self, setting="text", level=0.0)


def draw_samples(
    split: Split | Sequence[Split],
    setting: Setting,
    n: int,
    *,
    seed: int,
    harmful: bool | None = None,
    question: Question = "request",
    levels: tuple[float, float] = (0.0, 1.0),
) -> list[Sample]:
    """`n` samples of a split, cycling over its pairs in a random order.

    Args:
        harmful: keep harmful pairs only, benign pairs only (their three kinds alike: dangerous
            object, enabling verb, neither), or all.
        levels: the rendering level is uniform in this interval; ignored for text.

    Raises:
        ValueError: if `n` is not positive, or `levels` is not an interval inside [0, 1].
    """
    low, high = levels
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"levels must satisfy 0 <= low <= high <= 1, got {levels}")
    names = (split,) if isinstance(split, str) else tuple(split)
    rng = np.random.default_rng([seed, *(ord(c) for c in "".join(names) + setting + question)])
    pool = [
        pair
        for name in names
        for pair in pairs()[name]
        if harmful is None or words.is_harmful(*pair) == harmful
    ]
    phrasings = {
        "request": words.REQUESTS,
        "caption": words.CAPTIONS,
        "clarity": words.CLARITY,
    }[question]
    samples = []
    order: list[int] = []
    for index in range(n):
        if not order:
            order = rng.permutation(len(pool)).tolist()
        verb, obj = pool[order.pop()]
        level = 0.0 if setting == "text" else float(rng.uniform(low, high))
        samples.append(
            Sample(
                id="-".join(map(str, (*names, setting, question, harmful, low, high, seed, index))),
                verb=verb,
                object=obj,
                harmful=words.is_harmful(verb, obj),
                setting=setting,
                question=question,
                level=level,
                phrasing=phrasings[int(rng.integers(len(phrasings)))],
                seed=int(rng.integers(2**31)),
            )
        )
    return samples
