"""Runs of the random organism, and of the trained one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import model_adapters
from analyses.circuits import Runs, Scores, record_runs, score_edges
from analyses.patching import LogitDifference
from model_adapters import Adapter, Batch
from model_adapters.organism import words
from model_adapters.organism.world import Sample, Setting, Split, draw_samples
from model_adapters.probe import example
from model_adapters.tiny import builders

METRIC = LogitDifference(right=7, wrong=20)


def media_samples(
    setting: Setting, n: int, *, seed: int, level: float, split: Split = "report"
) -> list[Sample]:
    """Harmful requests whose object, rendered at a level, is their last part."""
    drawn = draw_samples(split, setting, 8 * n, seed=seed, harmful=True)
    last = [one for one in drawn if one.phrasing.endswith("{object}")]
    return [dataclasses.replace(one, level=level) for one in last[:n]]


def encoded(adapter: Adapter, samples: list[Sample]) -> Batch:
    """A batch of requests."""
    return adapter.encode([one.messages for one in samples])


def runs_of(adapter: Adapter) -> Any:
    """Two prompts of one length, with a picture where the model takes one."""
    kinds: Any = ("image",) if "image" in adapter.media else ()
    return tuple(
        adapter.describe(**example(adapter.module, adapter.family, kinds, size=1, seed=seed))
        for seed in (1, 4)
    )


@pytest.fixture(scope="session")
def small() -> tuple[Runs, Scores]:
    """Of a model of three layers, for text."""
    adapter = model_adapters.load(builders()["llama"]())
    runs = record_runs(adapter, *runs_of(adapter), metric=LogitDifference(right=3, wrong=7))
    return runs, score_edges(runs)


@pytest.fixture(scope="session")
def pair_of(random_organism: Adapter) -> Callable[..., tuple[Batch, Batch]]:
    """Pairs of runs of the same length with a picture each."""

    def make(n: int = 2) -> tuple[Batch, Batch]:
        one, other = (media_samples("image", n, seed=0, level=level) for level in (0.8, 0.0))
        return encoded(random_organism, one), encoded(random_organism, other)

    return make


@pytest.fixture(scope="session")
def runs(random_organism: Adapter, pair_of: Any) -> Runs:
    """Of the random organism, for a difference of logits."""
    return record_runs(random_organism, *pair_of(), metric=METRIC)


@pytest.fixture(scope="session")
def scores(runs: Runs) -> Scores:
    """Plain edge attribution."""
    return score_edges(runs)


@pytest.fixture(scope="session")
def organism() -> Adapter:
    """The trained one."""
    return model_adapters.load("organism")


@pytest.fixture(scope="session")
def lead(organism: Adapter) -> LogitDifference:
    """The lead of a refusal over the opening that most blurred pictures get."""
    ids = organism.tokenizer.convert_tokens_to_ids
    return LogitDifference(ids(words.REFUSAL.split()[0]), ids(words.OPENERS["high"]))
