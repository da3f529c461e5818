"""Many requests in few passes: encoded once each, sorted by length, as many at a time as fit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.collate import collate
from model_adapters.encode import Chat
from model_adapters.errors import InputError
from model_adapters.tracer import lock_of

Result = TypeVar("Result")
Pass = Callable[[Batch, Sequence[str]], Result]
"""Takes a batch and its rows' names."""

# What is read ahead to be sorted: so many requests, or so many bytes of encodings.
_WINDOW = 256
_WINDOW_BYTES = 256 * 2**20
# Positions in one pass, padding included. More gain nothing on a CPU; a GPU starts here and
# doubles as long as its memory allows.
_POSITIONS = 1024
_MOST_POSITIONS = 65536


@dataclass(frozen=True)
class Encoded:
    """One request, ready to be put into a batch."""

    index: int
    """Its place among the requests given."""
    name: str
    """What errors call it."""
    batch: Batch

    @property
    def length(self) -> int:
        """Positions, media expanded."""
        return self.batch.roles.shape[1]


def passes(
    adapter: Adapter,
    requests: Iterable[tuple[str, Chat]],
    run: Pass[Result],
    *,
    batch_size: int | None,
) -> Iterator[tuple[list[int], Result]]:
    """Run requests of similar length together, and yield which ones with what came of them.

    Args:
        adapter: Encodes the requests.
        requests: A name for errors, and a chat. Read a window at a time.
        run: One pass.
        batch_size: Requests in a pass; None takes as many as a number of positions allows, which
            grows on a GPU. A pass that runs out of memory is tried again with half of them.

    Raises:
        InputError: For a request that cannot be encoded; it names it.
    """
    size = _Size(batch_size, grows=adapter.device.type == "cuda")
    for waiting in _windows(adapter, requests):
        waiting.sort(key=lambda one: one.length, reverse=True)
        while waiting:
            taken = size.cut(waiting)
            result = _tried(run, adapter, taken)
            if result is None:
                size.halve(taken)
                continue
            del waiting[: len(taken)]
            size.passed(taken)
            yield [one.index for one in taken], result


def join(adapter: Adapter, batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, padded on the left."""
    if len(batches) == 1:
        return batches[0]
    encodings = [batch.inputs for batch in batches]
    inputs, _ = collate(
        encodings, adapter.family, pad_id=adapter.pad_id, sides=["left"] * len(encodings)
    )
    return adapter.describe(**inputs)


class _Size:
    """How many requests go into the next pass."""

    def __init__(self, rows: int | None, *, grows: bool) -> None:
        self.rows = rows
        self.positions = _POSITIONS
        self.grows = grows and rows is None

    def cut(self, waiting: list[Encoded]) -> list[Encoded]:
        # The longest comes first, so it sets the width.
        rows = self.positions // waiting[0].length if self.rows is None else self.rows
        return waiting[: max(1, rows)]

    def passed(self, taken: list[Encoded]) -> None:
        full = 2 * taken[0].length * len(taken) > self.positions
        if self.grows and full and self.positions < _MOST_POSITIONS:
            self.positions *= 2

    def halve(self, taken: list[Encoded]) -> None:
        self.grows = False
        if self.rows is None:
            self.positions = taken[0].length * (len(taken) // 2)
        else:
            self.rows = len(taken) // 2


def _tried(run: Pass[Result], adapter: Adapter, taken: list[Encoded]) -> Result | None:
    """What the pass gave; None if several requests did not fit into memory together."""
    try:
        with lock_of(adapter.module):
            batch = join(adapter, [one.batch for one in taken])
        return run(batch, [one.name for one in taken])
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        if len(taken) == 1:
            error.add_note(f"one request of {taken[0].length} positions does not fit by itself")
            raise
    # Only here is the failed pass let go of.
    if adapter.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _is_lack_of_memory(error: Exception) -> bool:
    # The second is what torch says on a CPU.
    said = any(words in str(error) for words in ("out of memory", "can't allocate memory"))
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _windows(adapter: Adapter, requests: Iterable[tuple[str, Chat]]) -> Iterator[list[Encoded]]:
    window: list[Encoded] = []
    size = 0
    for index, (name, chat) in enumerate(requests):
        try:
            # Processors and the model's own position code are not made for several threads.
            with lock_of(adapter.module):
                batch = adapter.encode([chat])
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        window.append(Encoded(index, name, batch))
        size += sum(v.nbytes for v in batch.inputs.values() if isinstance(v, Tensor))
        if len(window) == _WINDOW or size >= _WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window
