"""Short random prompts for a family: text, and every medium it takes in two sizes."""

from collections.abc import Iterator
from typing import Any

from model_adapters import Adapter, Batch
from model_adapters.families.medium import Kind, Medium
from model_adapters.probe import example, plain_tokens

Encoding = dict[str, Any]


class Prompts:
    """Ready encodings of one model."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.kinds: tuple[Kind, ...] = tuple(medium.kind for medium in adapter.family.media)
        self.word = plain_tokens(adapter.module.config, adapter.family)[3]

    def _example(self, kind: Kind | None, size: int) -> Encoding:
        kinds = () if kind is None else (kind,)
        return example(self.adapter.module, self.adapter.family, kinds, size=size, seed=size)

    def _sizes(self, kind: Kind) -> list[Encoding]:
        return [self._example(kind, 0), self._example(None, 1), self._example(kind, 1)]

    def text(self) -> Batch:
        """A text."""
        return self.adapter.describe(**self._example(None, 0))

    def each(self) -> Iterator[Batch]:
        """A text, and one item of every medium, each in a batch of its own."""
        yield self.text()
        for kind in self.kinds:
            yield self.adapter.describe(**self._example(kind, 1))

    def media(self) -> Iterator[tuple[Kind, Batch]]:
        """Every medium: an item of each size, in one batch with a text where sizes can be mixed."""
        for kind in self.kinds:
            yield kind, self.adapter.join([self._example(kind, 1), self._example(None, 0)])
            yield kind, self.adapter.describe(**self._example(kind, 0))

    def sizes(self) -> Iterator[tuple[Kind, Batch]]:
        """Every medium: items of both sizes in one batch, a text between them."""
        for kind in self.kinds:
            yield kind, self.adapter.join(self._sizes(kind))

    def together(self) -> Iterator[list[Encoding]]:
        """Requests for one batch: a text and both sizes of a medium; one of every medium."""
        for kind in self.kinds:
            yield self._sizes(kind)
        joint = [kind for kind in self.kinds if kind not in self.adapter.family.alone]
        if len(joint) > 1 and not self.adapter.family.apart:
            yield [self._example(kind, 0) for kind in (*joint, None)]
        if not self.kinds:
            yield [self._example(None, 0), self._example(None, 1)]


def medium_of(adapter: Adapter, kind: Kind) -> Medium:
    """The medium of that kind, which the family has."""
    return next(medium for medium in adapter.family.media if medium.kind == kind)
