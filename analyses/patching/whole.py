"""Patched runs of the whole model: slower, and right wherever hooks are."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.patching.recorded import Change, Reader, Recorded, hooked, run_to
from model_adapters import Adapter


class Whole:
    """Runs the batch of a recorded pass again, in several copies, patched."""

    def __init__(self, adapter: Adapter, base: Recorded, site: str, layers: Sequence[int]) -> None:
        self.adapter, self.base, self.site, self.layers = adapter, base, site, tuple(layers)

    def run(self, copies: int, change: Change, reader: Reader) -> Float[Tensor, "row width"]:
        """States where the metric is read, a row for every item of every copy, copy by copy.

        Args:
            copies: of the batch, joined to one.
            change: gets the layer and all rows.
            reader: where the metric is read.
        """
        batch = self.base.batch
        inputs = batch.inputs
        if copies > 1:
            inputs = self.adapter.join([inputs] * copies, padding_side=batch.padding_side).inputs
        last, rows = batch.last.repeat(copies), torch.arange(copies * len(batch))
        read: list[Tensor] = []

        def look(value: Tensor) -> None:
            read.append(value[rows, last])

        with hooked(self.adapter, self.site, self.layers, change):
            handle = self.adapter.hook(*reader.place, look)
            try:
                end = None if reader.place[0] == "logits" else reader.layer
                run_to(self.adapter, inputs, end)
            finally:
                handle.remove()
        return read[0]
