"""A graph inside the user's own trace."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model_adapters import Adapter, Batch
from regap_interp.graph.nodes import Node
from regap_interp.graph.passes import Pass
from regap_interp.graph.places import site_at
from regap_interp.graph.plan import Plan
from regap_interp.graph.values import Values, reads_below


class Bound:
    """A graph bound to one batch: other passes have run, what is left is done in a trace."""

    def __init__(
        self,
        adapter: Adapter,
        batch: Batch,
        plan: Plan,
        outputs: Mapping[str, Node],
        values: Values,
    ) -> None:
        self.adapter, self.batch = adapter, batch
        self._plan, self._outputs, self._values = plan, dict(outputs), values

    def apply(self, step: int = 0) -> None:
        """Do the graph's reads and edits in the running pass of the trace.

        Call it in a block of its own (`with tracer.invoke():`) where the trace also asks for sites
        before the graph's last one. In a generation, once for each step:

            with adapter.generate(batch, max_new_tokens=8) as run:
                for step in run.steps():
                    bound.apply(step.number)

        Args:
            step: 0 in the prefill, then the number of the step of decoding.
        """
        phase = "decode" if step else "prefill"
        running = Pass(
            self._values,
            self.batch,
            [edit for edit in self._plan.edits if edit.phase in (phase, "both")],
            [read for read in self._plan.reads if read.phase == phase],
            step=step or None,
        )
        for where in sorted({*running.edits, *running.reads}):
            site, layer = site_at(where, self._plan.n_layers)
            new = running.visit(where, _get(self.adapter, site, layer))
            if new is not None:
                _set(self.adapter, site, layer, new)

    @property
    def values(self) -> dict[str, Tensor]:
        """Outputs read so far: `[batch, ...]`."""
        return {
            name: self._values.of(node).tensor.detach()
            for name, node in self._outputs.items()
            if reads_below(node) <= self._values.reads.keys()
        }


def _get(adapter: Any, site: str, layer: int | None) -> Tensor:
    found: Tensor = getattr(adapter, site) if layer is None else getattr(adapter, site)[layer]
    return found


def _set(adapter: Any, site: str, layer: int | None, states: Tensor) -> None:
    if layer is None:
        setattr(adapter, site, states)
    else:
        getattr(adapter, site)[layer] = states
