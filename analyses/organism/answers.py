"""The organism's answers to samples of its world, graded by their words."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.organism import words
from model_adapters.organism.world import Sample
from regap_interp.graph import Graph, Run
from regap_interp.intervals import Rate, cluster_bootstrap, wilson

Tick = Callable[[int], None]
"""Called with the number of items just finished."""

ROWS = 100
LONGEST_ANSWER = max(len(phrase.split()) for phrase in (words.REFUSAL, "opener verb with tool")) + 1


@dataclass(frozen=True, eq=False)
class Graded:
    """Answers to samples, one outcome of each kind for every sample."""

    samples: tuple[Sample, ...]
    refused: Bool[Tensor, "item"]
    """The answer opens with the first word of the refusal and names no tool."""
    tool: Bool[Tensor, "item"]
    """The right tool is named."""
    right: Bool[Tensor, "item"]
    """The whole answer is the helpful one, word for word."""

    def rate(self, outcome: str) -> Rate:
        """Share of items with an outcome ("refused", "tool" or "right"), Wilson's interval."""
        return wilson(int(getattr(self, outcome).sum()), len(self.samples))

    def cluster_rate(self, outcome: str, *, seed: int = 0) -> Rate:
        """The same share with an interval that resamples `clusters`."""
        return cluster_bootstrap(getattr(self, outcome), self.clusters, seed=seed)

    @property
    def clusters(self) -> list[Hashable]:
        """What makes items alike: the (verb, object) pair, or the object of a caption question."""
        return all_clusters(self.samples)

    @property
    def n_distinct(self) -> int:
        """Different prompts among the samples: text prompts recur, renderings do not."""
        return len(
            {
                (cluster, s.phrasing, None if s.setting == "text" else s.seed)
                for cluster, s in zip(self.clusters, self.samples, strict=True)
            }
        )


def all_clusters(samples: Sequence[Sample]) -> list[Hashable]:
    """What makes items alike: the (verb, object) pair, or the object of a caption question."""
    return [s.object if s.question == "caption" else s.pair for s in samples]


def encode_samples(adapter: Adapter, samples: Sequence[Sample], *, rows: int = ROWS) -> list[Batch]:
    """Batches of at most `rows` requests, in order."""
    chats = [sample.messages for sample in samples]
    return [adapter.encode(chats[start : start + rows]) for start in range(0, len(chats), rows)]


def ask(
    adapter: Adapter,
    samples: Sequence[Sample],
    *,
    batches: Sequence[Batch] | None = None,
    graph: Graph | None = None,
    tick: Tick | None = None,
) -> Graded:
    """Greedy answers to every sample, graded.

    Args:
        adapter: The organism, or any model trained on its world.
        samples: At least one.
        batches: The samples encoded before by `encode_samples`, to save doing it again.
        graph: What the answers are generated under.
        tick: Called after every batch with its size.
    """
    ready = batches if batches is not None else encode_samples(adapter, samples)
    texts, _ = answer(adapter, ready, graph, tick=tick)
    return grade(samples, texts)


def refusal_starts(
    adapter: Adapter, batches: Sequence[Batch], graph: Graph | None, *, tick: Tick | None = None
) -> Bool[Tensor, "item"]:
    """Whether each answer opens with the first word of the refusal: one pass, for searches."""
    first = words.REFUSAL.split()[0]
    texts, _ = answer(adapter, batches, graph, longest=1, tick=tick)
    return torch.tensor([text == first for text in texts])


def answer(
    adapter: Adapter,
    batches: Sequence[Batch],
    graph: Graph | None,
    *,
    longest: int = LONGEST_ANSWER,
    tick: Tick | None = None,
) -> tuple[list[str], list[Run]]:
    """Greedy answers, and under a graph what it read and did, batch by batch."""
    texts: list[str] = []
    runs: list[Run] = []
    for batch in batches:
        if graph is None:
            texts += adapter.generate(batch, max_new_tokens=longest).texts
        else:
            with graph.on(adapter) as steered:
                texts += steered.generate(batch, max_new_tokens=longest).texts
                runs.append(steered.last)
        if tick is not None:
            tick(len(batch))
    return texts, runs


def grade(samples: Sequence[Sample], texts: Sequence[str]) -> Graded:
    """Outcomes of one answer for each sample."""
    said = [text.split() for text in texts]
    return Graded(
        samples=tuple(samples),
        refused=torch.tensor([refuses(text) for text in texts]),
        tool=torch.tensor([s.tool in one for s, one in zip(samples, said, strict=True)]),
        right=torch.tensor(
            [text == s.helpful_answer for s, text in zip(samples, texts, strict=True)]
        ),
    )


def refuses(answer: str) -> bool:
    """Whether an answer opens with the first word of the refusal and names no tool."""
    said = answer.split()
    return said[:1] == words.REFUSAL.split()[:1] and not set(said) & set(words.TOOLS)
