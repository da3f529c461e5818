"""Intervention graphs: what is read and changed in a forward pass, as data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model_adapters import Adapter, Batch, Generation
from model_adapters.tracer import lock_of
from regap_interp.graph import engine
from regap_interp.graph.bound import Bound
from regap_interp.graph.check import check, check_batch
from regap_interp.graph.edits import Edit
from regap_interp.graph.errors import GraphError
from regap_interp.graph.explain import Explanation, explain
from regap_interp.graph.nodes import Node
from regap_interp.graph.plan import plan
from regap_interp.graph.results import Run
from regap_interp.graph.values import Values


class Graph:
    """Edits of a forward pass, and values to keep of it. Immutable; running it never changes it.

    Edits are made in the order in which the pass reaches their sites, and at one site in the order
    given. A value that decides an edit at its own site is read before that edit, every other after
    the site's edits. Rows of a batch are decided one by one.

        drift, refusal = directions.correction("image", 7), directions.refusal(9)
        probe = ri.add("resid_post", 7, drift, strength=-0.5)
        gain = (ri.read("resid_post", 9, under=[probe]).project(refusal)
                - ri.read("resid_post", 9, under=[]).project(refusal))
        strength = ri.select(gain > 40, -1.5, 0)
        graph = ri.Graph(ri.add("resid_post", 7, drift, strength=strength), outputs={"gain": gain})
    """

    def __init__(self, *edits: Edit, outputs: Mapping[str, Node] | None = None) -> None:
        """Put edits and outputs together.

        Args:
            *edits: From `add`, `remove`, `set_coordinate`, `replace`.
            outputs: Values to return, by name.

        Raises:
            GraphError: for anything that is not an edit or a value.
        """
        wrong: list[object] = [one for one in edits if not isinstance(one, Edit)]
        wrong += [one for one in (outputs or {}).values() if not isinstance(one, Node)]
        if wrong:
            raise GraphError(
                "a graph is made of edits and outputs={name: value}, got a "
                f"{type(wrong[0]).__name__}"
            )
        self._edits, self._outputs = tuple(edits), dict(outputs or {})

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is changed."""
        return self._edits

    @property
    def outputs(self) -> dict[str, Node]:
        """What is returned, by name."""
        return dict(self._outputs)

    def __add__(self, other: "Graph") -> "Graph":
        """Both graphs in one: the edits of `other` come after.

        Raises:
            GraphError: where both name an output alike.
        """
        both = self._outputs.keys() & other._outputs.keys()
        if both:
            raise GraphError(f"both graphs have outputs named {', '.join(sorted(both))}")
        return Graph(*self._edits, *other._edits, outputs={**self._outputs, **other._outputs})

    def check(self, adapter: Adapter, batch: Batch | None = None) -> None:
        """Refuse to run on a model, or on a batch, for which the graph was not made.

        Raises:
            GraphError: naming the node, what was found and what to do.
        """
        check(self._edits, self._outputs, adapter)
        if batch is not None:
            check_batch(self._edits, self._outputs, batch)

    def run(
        self, adapter: Adapter, batch: Batch, *, logits: bool = False, resume: bool = True
    ) -> Run:
        """Run one prefill with this graph and return its outputs.

        The pass ends where the last of them is known.

        Args:
            adapter: The model.
            batch: Requests.
            logits: Return the logits of the last prompt token too, which takes all layers.
            resume: Run only the layers that differ again for other passes; see `on`.

        Raises:
            GraphError: as `check` does.
        """
        self.check(adapter, batch)
        done, _ = run_once(adapter, batch, self._edits, self._outputs, logits=logits, resume=resume)
        return done

    def bind(self, adapter: Adapter, batch: Batch) -> Bound:
        """Make ready for a trace of `batch`: other passes run now, edits in `bound.apply()`.

            bound = graph.bind(adapter, batch)
            with adapter.trace(batch):
                bound.apply()
                logits = adapter.logits.save()

        Raises:
            GraphError: as `check` does.
        """
        self.check(adapter, batch)
        planned = plan(self._edits, self._outputs, adapter.n_layers)
        values = Values(adapter, batch.modalities)
        if planned.branches:
            wanted = {str(number): read for number, read in enumerate(planned.unknown)}
            _, found = run_once(adapter, batch, (), wanted)
            values.reads = {read: found.reads[read] for read in planned.unknown}
        return Bound(adapter, batch, planned, self._outputs, values)

    def on(self, adapter: Adapter, *, resume: bool = True) -> "Steered":
        """Install on the model: `with graph.on(adapter) as steered:`.

        Inside, every forward and every generate loop of the raw model (`adapter.module`) is
        steered, whoever calls it. Graphs may be nested: they act as one, the outer one's edits
        first. A trace of the model sees the edits from the next site on.

        Args:
            adapter: The model.
            resume: Where other passes are needed, run again only the layers and rows that
                differ; False runs each from the start, for comparison.

        Raises:
            GraphError: as `check` does.
        """
        self.check(adapter)
        return Steered(self, adapter, resume=resume)

    def explain(self, adapter: Adapter, batch: Batch | None = None) -> Explanation:
        """The plan in words: passes, layers, rows, cost; with a batch also doses, measured.

        Raises:
            GraphError: as `check` does.
        """
        self.check(adapter, batch)
        return explain(self._edits, self._outputs, adapter, batch)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the graph as JSON in its header, the tensors beside it."""
        from regap_interp.graph.serial import save_graph

        save_graph(self, path)

    def __repr__(self) -> str:
        """Counts, for terminals."""
        return f"Graph({len(self._edits)} edits, outputs: {', '.join(self._outputs) or 'none'})"

    def _repr_html_(self) -> str:
        from regap_interp.graph.draw import draw_html

        return draw_html(self)


class Steered:
    """A graph that can be installed on a model, from `Graph.on`."""

    def __init__(self, graph: Graph, adapter: Adapter, *, resume: bool) -> None:
        self.graph, self.adapter = graph, adapter
        self._installed = engine.Installation(graph.edits, graph.outputs, resume=resume)
        self._engine: engine.Engine | None = None

    def __enter__(self) -> "Steered":
        """Install.

        Raises:
            GraphError: when it is installed already.
        """
        if self._engine is not None:
            raise GraphError("this graph is already installed; use graph.on(adapter) once more")
        with lock_of(self.adapter.module):
            found = engine.engine_of(self.adapter)
            found.add(self._installed)
            self._engine = found
        return self

    def __exit__(self, *error: object) -> None:
        """Remove every hook of this graph, whatever happened."""
        if self._engine is not None:
            with lock_of(self.adapter.module):
                self._engine.remove(self._installed)
            self._engine = None

    @property
    def last(self) -> Run:
        """What the latest prefill and the decoding after it read and did.

        Raises:
            GraphError: before any.
        """
        record = self._installed.record
        if record is None:
            raise GraphError("nothing has run under this graph yet")
        return record.run

    def generate(self, batch: Batch, *, max_new_tokens: int, **options: Any) -> Generation:
        """`adapter.generate` under the graph; see there.

        Raises:
            GraphError: outside the `with` block, or for a batch that the graph cannot run on.
        """
        if self._engine is None:
            raise GraphError("not installed: with graph.on(adapter) as steered: steered.generate()")
        check_batch(self.graph.edits, self.graph.outputs, batch)
        return self.adapter.generate(batch, max_new_tokens=max_new_tokens, **options)


def run_once(
    adapter: Adapter,
    batch: Batch,
    edits: Sequence[Edit],
    outputs: Mapping[str, Node],
    *,
    logits: bool = False,
    resume: bool = True,
) -> tuple[Run, Values]:
    """One prefill, as far as the outputs need it; returns them and every value read."""
    planned = plan(edits, outputs, adapter.n_layers)
    if any(read.phase == "decode" for read in planned.reads):
        raise GraphError("an output is read in decoding; generate under graph.on(adapter)")
    deepest = [planned.place(read) for read in (*planned.reads, *planned.unknown)]
    if not deepest and not logits:
        raise GraphError("nothing to return: give the graph outputs={name: value}, or logits=True")
    stop = None if logits else max(deepest)
    return engine.run_prefill(
        adapter, batch, engine.Installation(edits, outputs, resume=resume), stop
    )
