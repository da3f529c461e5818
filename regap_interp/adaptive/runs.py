"""Items under a graph: values and answers, batch by batch, each item encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters import Adapter, Batch
from regap_interp.adaptive.item import Item
from regap_interp.adaptive.outcomes import Judged, Refused, judge
from regap_interp.graph.graph import Graph


@dataclass(frozen=True, eq=False)
class Prepared:
    """Items encoded for a model, to be run as often as wanted."""

    adapter: Adapter
    items: Sequence[Item]
    batches: Sequence[Batch]
    max_new_tokens: int
    tick: Callable[[int], object] = field(default=lambda done: None)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def first(self, batches: int) -> "Prepared":
        """The items of the first batches."""
        taken = self.batches[:batches]
        count = sum(map(len, taken))
        return Prepared(self.adapter, self.items[:count], taken, self.max_new_tokens, self.tick)

    def values(self, graph: Graph) -> dict[str, Float[Tensor, "item"]]:
        """The graph's outputs, one number for each item, float64 on the CPU."""
        found: dict[str, list[Tensor]] = {name: [] for name in graph.outputs}
        for batch in self.batches:
            run = graph.run(self.adapter, batch)
            for name, parts in found.items():
                parts.append(run[name].detach().to("cpu", torch.float64))
            self.tick(len(batch))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def log_probabilities(self, graph: Graph) -> Float[Tensor, "item d_vocab"]:
        """Of the first answer token, float64 on the CPU."""
        parts = []
        for batch in self.batches:
            logits = graph.run(self.adapter, batch, logits=True).logits
            assert logits is not None
            parts.append(logits.detach().to("cpu", torch.float64).log_softmax(dim=-1))
            self.tick(len(batch))
        return torch.cat(parts)

    def answers(self, graph: Graph | None = None) -> list[str]:
        """Greedy answers, with the graph installed."""
        texts: list[str] = []
        for batch in self.batches:
            if graph is None:
                generation = self.adapter.generate(batch, max_new_tokens=self.max_new_tokens)
            else:
                with graph.on(self.adapter) as steered:
                    generation = steered.generate(batch, max_new_tokens=self.max_new_tokens)
            texts += generation.texts
            self.tick(len(batch))
        return texts

    def judged(self, refused: Refused, graph: Graph | None = None) -> Judged:
        """Refusals among the answers under a graph."""
        return judge(self.answers(graph), refused)


def prepare(
    adapter: Adapter,
    items: Sequence[Item],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    tick: Callable[[int], object] | None = None,
) -> Prepared:
    """Encode items once, `batch_size` in a batch.

    Raises:
        ValueError: No items, or a batch size below 1.
        InputError: Something the model cannot take.
    """
    if not items or batch_size < 1:
        raise ValueError(f"{len(items)} items in batches of {batch_size}; both must be at least 1")
    batches = [
        adapter.encode([item.messages for item in items[start : start + batch_size]])
        for start in range(0, len(items), batch_size)
    ]
    return Prepared(adapter, items, batches, max_new_tokens, tick or (lambda done: None))


def kl_of_items(
    bare: Float[Tensor, "item d_vocab"], edited: Float[Tensor, "item d_vocab"]
) -> Float[Tensor, "item"]:
    """KL(bare || edited) of each item, in nats, of log probabilities."""
    chance = bare.exp()
    return torch.where(chance > 0, chance * (bare - edited), 0.0).sum(dim=1)


def kl(bare: Float[Tensor, "item d_vocab"], edited: Float[Tensor, "item d_vocab"]) -> float:
    """Mean over items of KL(bare || edited), in nats, of log probabilities."""
    return float(kl_of_items(bare, edited).mean())
