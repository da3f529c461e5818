"""What every part of a model wrote in one pass."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from analyses.patching.recorded import Reader, run_to
from model_adapters import Adapter, Batch
from model_adapters.heads import head_results
from model_adapters.stand_down import standing_down

Place = tuple[str, int | None]
Hook = Callable[[Tensor], Tensor | None]
TOLERANCE = 1e-3
"""Of the largest value: how far sums may be from what they should be."""


@dataclass
class Recording:
    """Values of the sites, `[batch, position, ...]`, each by its place; `added` by layer."""

    batch: Batch
    sites: dict[Place, Tensor] = field(default_factory=dict)
    added: dict[int, Tensor] = field(default_factory=dict)

    def results(self, adapter: Adapter, layer: int) -> Tensor:
        """What heads write, `[batch, position, head, d_model]`."""
        return written_by_heads(adapter, layer, self.sites["z", layer])


def written_by_heads(adapter: Adapter, layer: int, z: Tensor) -> Tensor:
    """`result` of a layer from its `z`, or of the difference of two."""
    with standing_down(adapter):
        module = adapter.result.site(layer).envoy._module
        return head_results(z.flatten(-2), module, z.shape[-2])


def run(
    adapter: Adapter, batch: Batch, reader: Reader, hooks: Mapping[Place, Hook], depth: int
) -> Tensor:
    """States where the metric is read, a row each, of a pass with hooks."""
    read: list[Tensor] = []

    def look(value: Tensor) -> None:
        read.append(value[torch.arange(len(batch)), batch.last])

    with contextlib.ExitStack() as stack:
        for (site, layer), hook in hooks.items():
            stack.callback(adapter.hook(site, layer, hook).remove)
        stack.callback(adapter.hook("resid_post", depth - 1, look).remove)
        run_to(adapter, batch.inputs, depth - 1)
    return read[0]


def record(adapter: Adapter, batch: Batch, reader: Reader, depth: int) -> tuple[Recording, Tensor]:
    """One pass over a batch, and the states where the metric is read.

    Raises:
        ValueError: a layer does more than add what attention and MLP write.
    """
    recording = Recording(batch)
    places: list[Place] = [("embed", None)]
    for layer in range(depth):
        names = ("resid_pre", "z", "attn_out", "mlp_out", "resid_post")
        places += [(name, layer) for name in names]

    def keep(place: Place) -> Hook:
        def hook(value: Tensor) -> None:
            recording.sites[place] = value.detach().clone()

        return hook

    read = run(adapter, batch, reader, {place: keep(place) for place in places}, depth)
    mask = batch.prompt_mask[..., None]
    for layer in range(depth):
        pre, post = (recording.sites.pop((name, layer)) for name in ("resid_pre", "resid_post"))
        parts = recording.sites["attn_out", layer] + recording.sites["mlp_out", layer]
        gap = ((pre + parts - post) * mask).abs().max()
        if gap > TOLERANCE * (post * mask).abs().max():
            raise ValueError(
                f"layer {layer} of this model ({adapter.family.name}) does more than add what its "
                "attention and MLP write to the stream, so the parts do not add up to a circuit"
            )
        if layer:
            before = recording.sites.pop(("resid_post", layer - 1))
            if layer - 1 in adapter.discontinuities:
                recording.added[layer - 1] = (pre - before) * mask
        recording.sites["resid_post", layer] = post
    return recording, read.detach()
