"""Last-prompt-token states of many requests, at any layers, in one pass each."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.encode import Chat
from regap_interp.steering import Steer

Progress = Callable[[int, int], None]
"""Called with (items done, items in all) after every pass."""


def last_residuals(
    adapter: Adapter,
    requests: Sequence[Chat] | Sequence[Batch],
    *,
    layers: Sequence[int],
    batch_size: int = 16,
    steer: Steer | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "layer item d_model"]:
    """`resid_post` at the last prompt token of every request, float64 on the CPU.

    Only the wanted position is kept, and layers after the last wanted one do not run.

    Args:
        adapter: The model.
        requests: Chats, encoded here `batch_size` at a time, or batches encoded before.
        layers: Decoder layers, from 0; the result's first axis follows their order.
        batch_size: Chats in one pass.
        steer: Steering the passes run under; states at its own layer are read after the edit.
        progress: Called after every pass.

    Raises:
        ValueError: No requests, one batch outside a list, or layers the model does not have.
    """
    wanted = _checked_layers(adapter, layers)
    if isinstance(requests, Batch):
        raise ValueError("requests is one Batch; give a list of batches: [batch]")
    if not requests:
        raise ValueError("requests is empty; give at least one chat or batch")
    if steer is not None:
        steer.check(adapter)
    total = sum(len(one) if isinstance(one, Batch) else 1 for one in requests)
    parts: list[Tensor] = []
    done = 0
    for batch in _batches(adapter, requests, batch_size):
        parts.append(_one_pass(adapter, batch, sorted(wanted), steer))
        done += len(batch)
        if progress is not None:
            progress(done, total)
    ordered = torch.cat(parts, dim=1)
    return ordered[[sorted(wanted).index(layer) for layer in wanted]]


def _one_pass(
    adapter: Adapter, batch: Batch, layers: Sequence[int], steer: Steer | None
) -> Float[Tensor, "layer item d_model"]:
    rows, last = torch.arange(len(batch)), batch.last
    stops = [] if steer is None or steer.layer > layers[-1] else [steer.layer]
    taken: list[Tensor] = []
    with adapter.trace(batch) as tracer:
        for layer in sorted({*layers, *stops}):
            if steer is not None and layer == steer.layer:
                steer.apply(adapter, batch)
            if layer in layers:
                taken.append(adapter.resid_post[layer][rows, last])
        tracer.stop()
    return torch.stack([state.to("cpu", torch.float64) for state in taken])


def _batches(
    adapter: Adapter, requests: Sequence[Chat] | Sequence[Batch], batch_size: int
) -> Iterator[Batch]:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    chats: list[Chat] = []
    for request in requests:
        if isinstance(request, Batch):
            yield request
            continue
        chats.append(request)
        if len(chats) == batch_size:
            yield adapter.encode(chats)
            chats = []
    if chats:
        yield adapter.encode(chats)


def _checked_layers(adapter: Adapter, layers: Sequence[int]) -> list[int]:
    wanted = list(layers)
    wrong = [layer for layer in wanted if not 0 <= layer < adapter.n_layers]
    if not wanted or wrong or len(set(wanted)) != len(wanted):
        raise ValueError(
            f"layers is {wanted}; give different layers from 0 to {adapter.n_layers - 1} of "
            f"{adapter.model_id}"
        )
    return wanted
