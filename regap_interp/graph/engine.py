"""Graphs installed on the raw model: what its hooks do in every pass of any generate loop.

One engine serves a model. Its only standing hooks are one before and one after the model's forward
and one that refuses calls past them; hooks on layers exist for the length of a pass that needs
them.
"""

import copy
import dataclasses
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from model_adapters import Adapter, Batch
from model_adapters.errors import SiteError
from model_adapters.resume import cache_obstacle
from model_adapters.stand_down import standing_down
from model_adapters.tracer import lock_of
from regap_interp.graph.ahead import Ahead, Stage, why_not_resumed
from regap_interp.graph.check import check, check_rows
from regap_interp.graph.edits import Edit
from regap_interp.graph.errors import GraphError
from regap_interp.graph.generating import GenerateWatch
from regap_interp.graph.nodes import Node, Read
from regap_interp.graph.passes import Pass
from regap_interp.graph.places import Place, site_at
from regap_interp.graph.plan import LAST_OF_LAYER, plan
from regap_interp.graph.results import Run
from regap_interp.graph.values import Values, reads_below

_ENGINES: "weakref.WeakKeyDictionary[nn.Module, Engine]" = weakref.WeakKeyDictionary()

Visit = Callable[[Place, Tensor], Tensor | None]


class _Stop(Exception):
    """Ends a pass that has told what it was run for."""


def engine_of(adapter: Adapter) -> "Engine":
    """The one engine of a model; it is forgotten with the last graph."""
    return _ENGINES.setdefault(adapter.module, Engine(adapter))


def is_steered(adapter: Adapter) -> bool:
    """Whether a graph is installed on the model."""
    return adapter.module in _ENGINES


@dataclasses.dataclass(eq=False)
class Record:
    """What one graph did in one prefill and in the decoding after it."""

    prefill: Run
    steps: dict[str, list[Tensor]] = dataclasses.field(default_factory=dict)
    """Outputs of decoding, one tensor for each step."""

    @property
    def run(self) -> Run:
        """Both together."""
        decoded = {name: torch.stack(of, dim=1) for name, of in self.steps.items()}
        return dataclasses.replace(self.prefill, values={**self.prefill.values, **decoded})


class Installation:
    """One graph as it stands on a model, and what it last did there."""

    def __init__(self, edits: Sequence[Edit], outputs: Mapping[str, Node], *, resume: bool) -> None:
        self.edits, self.outputs, self.resume = tuple(edits), dict(outputs), resume
        self.record: Record | None = None


@dataclasses.dataclass(eq=False)
class Errand:
    """What a single prefill is run for, and what it brings."""

    stop: Place | None
    """Where it may end."""
    doses: dict[Edit, Tensor] | None = None
    """Filled with how far edits moved states, if wanted."""
    states: Tensor | None = None
    """At `stop`."""
    values: Values | None = None


class Engine:
    """Runs the graphs installed on one model, in the order in which they were installed."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.graphs: list[Installation] = []
        self.plan = plan((), {}, adapter.n_layers)
        self.errand: Errand | None = None
        self.stage = Stage()
        self._standing: list[Any] = []
        self._handles: list[Any] = []
        self._busy = False
        self._owner: int | None = None
        """The thread whose pass is running."""
        self._main: Pass | None = None
        self._memories: weakref.WeakKeyDictionary[Any, _Memory] = weakref.WeakKeyDictionary()
        """By the cache that decoding goes on from."""
        self._names = list(inspect.signature(type(adapter.entry).forward).parameters)[1:]

    # --- putting graphs on and taking them off ---

    def add(self, graph: Installation) -> None:
        """Install one more graph; it edits after those that are there.

        Raises:
            GraphError: for a graph that cannot run on this model.
        """
        check(graph.edits, graph.outputs, self.adapter)
        try:
            # Found out before any hook of ours stands, by small passes of the adapter's own.
            _ = self.adapter.layer_arguments
            self._replan([*self.graphs, graph])
            if not self._standing:
                self._stand()
        except BaseException:
            self.remove(graph)
            raise

    def _stand(self) -> None:
        module, entry = self.adapter.module, self.adapter.entry
        decoder = module.get_submodule(self.adapter.layout.layers.rpartition(".")[0])
        self._standing.append(entry.register_forward_pre_hook(self._before, with_kwargs=True))
        after = entry.register_forward_hook(self._after, with_kwargs=True, always_call=True)
        self._standing.append(after)
        self._standing.append(decoder.register_forward_pre_hook(self._guard))
        self._standing += [GenerateWatch(part) for part in dict.fromkeys((module, entry))]

    def remove(self, graph: Installation) -> None:
        """Take a graph off; with the last one goes every hook. Call it under the model's lock."""
        self._finish()
        self._replan([one for one in self.graphs if one is not graph])
        if not self.graphs:
            for handle in self._standing:
                handle.remove()
            self._standing = []
            _ENGINES.pop(self.adapter.module, None)

    def _replan(self, graphs: list[Installation]) -> None:
        outputs = {
            f"{number} {name}": node
            for number, graph in enumerate(graphs)
            for name, node in graph.outputs.items()
        }
        edits = [edit for graph in graphs for edit in graph.edits]
        self.plan, self.graphs = plan(edits, outputs, self.adapter.n_layers), graphs

    # --- hooks that stand ---

    def _guard(self, module: nn.Module, args: Any) -> None:
        if self._owner != threading.get_ident():
            raise SiteError(
                "a graph is installed on this model, and its decoder was called past the model's "
                "own forward, where the graph cannot see what the positions hold. Call the model "
                "itself, or leave the graph's `with` block first"
            )

    def _before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        lock = lock_of(self.adapter.module)
        lock.acquire()
        if self._busy or not self.graphs:
            # A pass of our own, or the last graph left while this thread waited.
            lock.release()
            return
        if self._owner is not None:  # an interrupt ended the last pass before its hooks could
            self._finish()
        self._owner = threading.get_ident()
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs
        cache, ids = inputs.get("past_key_values"), inputs.get("input_ids")
        past = 0 if cache is None else int(cache.get_seq_length())
        memory = self._memories.get(cache) if past else None
        if past and (memory is None or not memory.knows(self.graphs)):
            raise SiteError(
                "the model goes on from keys and values that it computed before the graph was "
                "installed, or from a copy of a cache; read the prompt again inside the graph's "
                "`with` block"
            )
        if memory is not None and memory.values is None and ids is not None and ids.shape[1] == 1:
            return  # a step of decoding, of which the graph asks nothing
        call = self.adapter.read_call(inputs)
        if call.phase == "prefill":
            self._prefill(call, inputs, memory)
        elif memory is not None and memory.values is not None:
            self._decode(call, memory, memory.values)

    def _after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._busy or self._owner != threading.get_ident():
            return
        main = self._main
        if output is not None and main is not None:
            self._report(main)
            cache = _cache_in([kwargs.get("past_key_values"), output])
            if cache is not None and main.step is None:
                values = main.values if self.plan.decodes else None
                records = {graph: graph.record for graph in self.graphs if graph.record}
                self._memories[cache] = _Memory(values, main.values.modalities, records)
        self._finish()

    def _finish(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self.stage.running, self._main = [], None, None
        if self._owner == threading.get_ident():
            self._owner = None
            lock_of(self.adapter.module).release()

    # --- passes ---

    def _prefill(self, call: Any, inputs: Mapping[str, Any], memory: "_Memory | None") -> None:
        module = self.adapter.module
        if module.training and module.is_gradient_checkpointing and torch.is_grad_enabled():
            raise SiteError(
                "gradient checkpointing runs layers again in the backward pass, where the graph's "
                "edits are gone; switch it off: model.gradient_checkpointing_disable()"
            )
        for graph in self.graphs:
            check_rows(graph.edits, graph.outputs, len(call))
        self._recomputed = torch.zeros(len(call), dtype=torch.long)
        # A later turn still holds the media of earlier ones.
        earlier = ("text",) * len(call) if memory is None else memory.modalities
        values = Values(self.adapter, tuple(map(_joined, earlier, call.modalities)))
        if self.plan.branches and self._resumes(call, inputs):
            ahead = Ahead(values, self.plan, call, self.stage, self._recomputed)
            self._run(ahead.main, ahead.visit, ahead.places, until=ahead.end)
            self._handles.append(ahead.listen())
            return
        if self.plan.branches:
            self._run_before(values, call, inputs)
        edits = [edit for edit in self.plan.edits if edit.phase != "decode"]
        reads = [read for read in self.plan.reads if read.phase == "prefill"]
        self._run(Pass(values, call, edits, reads))

    def _resumes(self, call: Any, inputs: Mapping[str, Any]) -> bool:
        config = self.adapter.module.config
        shown = ("output_hidden_states", "output_attentions")
        # Whoever looks at layers in between must not see them run twice, or before they are right.
        watched = any(inputs.get(name) or getattr(config, name, False) for name in shown)
        return (
            not watched
            and not (self.adapter.interleaver.interleaving and self.adapter.interleaver.mediators)
            and all(graph.resume for graph in self.graphs)
            and why_not_resumed(self.plan, self.adapter) is None
            and cache_obstacle(inputs.get("past_key_values"), call.past) is None
        )

    def _run_before(self, values: Values, call: Any, inputs: Mapping[str, Any]) -> None:
        """Run the other passes one by one, each from the start as far as it is read."""
        cache = inputs.get("past_key_values")
        for branch in self.plan.branches:
            # A kept cache is read by the probe too, which must not add to it.
            kept = copy.deepcopy(cache) if call.past else None
            again = {**inputs, "past_key_values": kept, "use_cache": bool(call.past)}
            errand, self.errand = self.errand, Errand(branch.deepest)
            self._busy = True
            try:
                self._run(Pass(values, call, branch.edits, branch.reads))
                with standing_down(self.adapter), torch.no_grad():
                    self.adapter.entry(**again)
            except _Stop:
                pass
            finally:
                for handle in self._handles:
                    handle.remove()
                self._handles, self.errand, self._busy = [], errand, False
            self._recomputed += min(branch.deepest[0] + 1, self.plan.n_layers)

    def _decode(self, call: Any, memory: "_Memory", values: Values) -> None:
        if len(call) != len(values):
            raise GraphError(
                f"this step of decoding holds {len(call)} rows, the prompt held {len(values)}: "
                "strengths chosen row by row have nowhere to go"
            )
        memory.step += 1
        for graph in self.graphs:
            graph.record = memory.records[graph]
        edits = [edit for edit in self.plan.edits if edit.phase != "prefill"]
        reads = [read for read in self.plan.reads if read.phase == "decode"]
        self._run(Pass(values, call, edits, reads, step=memory.step))

    def _run(
        self,
        main: Pass,
        visit: Visit | None = None,
        places: Iterable[Place] = (),
        until: Place | None = None,
    ) -> None:
        """Hook the sites of the pass that begins.

        Args:
            main: The pass.
            visit: Serves it in place of `main.visit`, up to `until`.
            places: Further sites to hook.
            until: See `visit`.
        """
        self._main = self.stage.running = main
        stop = None
        if self.errand is not None:
            main.doses, stop = self.errand.doses, self.errand.stop
        wanted = {*main.edits, *main.reads, *places} | ({stop} if stop else set())
        for where in sorted(wanted):
            site, layer = site_at(where, self.plan.n_layers)
            own = visit if visit is not None and until is not None and where <= until else None
            hook = self._hook(where, main, own or main.visit, stop)
            self._handles.append(self.adapter.hook(site, layer, hook))

    def _hook(
        self, where: Place, main: Pass, visit: Visit, stop: Place | None
    ) -> Callable[[Tensor], Tensor | None]:
        def hook(states: Tensor) -> Tensor | None:
            running = self.stage.running
            if running is not main:
                return None if running is None else running.visit(where, states)
            new = visit(where, states)
            if where == stop:
                self._bring(main, states if new is None else new)
            return new

        return hook

    # --- what was read ---

    def _bring(self, main: Pass, states: Tensor) -> None:
        """Report a pass that has come as far as it was to, and end it."""
        assert self.errand is not None
        if not self._busy:
            self.errand.states = states
            self._report(main)
        raise _Stop

    def _report(self, main: Pass) -> None:
        if self.errand is not None:
            self.errand.values = main.values
        for graph in self.graphs:
            outputs = {
                name: main.values.of(node).tensor.detach()
                for name, node in graph.outputs.items()
                if reads_below(node) <= main.values.reads.keys()
                and (main.step is not None) == _decodes(node)
            }
            if main.step is not None and graph.record is not None:
                for name, value in outputs.items():
                    graph.record.steps.setdefault(name, []).append(value)
                continue
            graph.record = Record(
                Run(
                    values=outputs,
                    strengths={e: main.strengths[e] for e in graph.edits if e in main.strengths},
                    recomputed=self._recomputed,
                    n_layers=self.plan.n_layers,
                    modalities=main.values.modalities,
                )
            )


class _Memory:
    """What a prefill left for the steps of decoding that go on from its cache."""

    def __init__(
        self,
        values: Values | None,
        modalities: tuple[str, ...],
        records: Mapping[Installation, Record],
    ) -> None:
        self.values = values
        """Of the prefill; None where no step of decoding asks for them."""
        self.modalities, self.records = modalities, records
        self.step = 0

    def knows(self, graphs: Iterable[Installation]) -> bool:
        """Whether the prompt was read under all of these graphs."""
        return all(graph in self.records for graph in graphs)


def run_prefill(
    adapter: Adapter,
    batch: Batch,
    graph: Installation,
    stop: Place | None,
    *,
    doses: dict[Edit, Tensor] | None = None,
) -> tuple[Run, Values]:
    """One prefill of a batch under a graph; returns what it read, and every value.

    Args:
        adapter: The model.
        batch: Requests.
        graph: What to run.
        stop: Where the pass may end; None runs it to the end, for the last token's logits.
        doses: Filled with how far each edit moved the states it touched.
    """
    module = adapter.module
    with lock_of(module), torch.no_grad():
        engine = engine_of(adapter)
        engine.add(graph)
        last = (adapter.n_layers - 1, LAST_OF_LAYER)
        # The head on every position is the costliest part of a pass that keeps one of them.
        sites: list[Edit | Read] = [*engine.plan.edits, *engine.plan.reads]
        # Where layers pass on several streams, one of them does not make the logits.
        whole = adapter.family.altup or any(engine.plan.place(one) > last for one in sites)
        if stop is not None and engine.plan.branches:
            # A graph installed further out may decide later what earlier layers hold.
            stop = max(stop, min((engine.plan.decided[0], LAST_OF_LAYER), last))
        errand = Errand(last if stop is None and not whole else stop, doses)
        output = None
        try:
            engine.errand = errand
            with standing_down(adapter):
                output = module(**batch.inputs, use_cache=False)
        except _Stop:
            pass
        finally:
            engine.errand = None
            engine.remove(graph)
        assert graph.record is not None and errand.values is not None
        run = graph.record.run
        if stop is not None:
            return run, errand.values
        rows = torch.arange(len(batch))
        if output is not None:
            logits = output.logits[rows, batch.last]
        else:
            assert errand.states is not None
            logits = adapter.unembed(errand.states[rows, batch.last])
        return dataclasses.replace(run, logits=logits), errand.values


def _cache_in(places: Iterable[Any]) -> Any:
    """The cache that a pass was given or returned, among its outputs by name or in a tuple."""
    for found in places:
        parts = found if isinstance(found, tuple) else [getattr(found, "past_key_values", found)]
        for one in parts:
            if isinstance(one, Cache):
                return one
    return None


def _joined(earlier: str, now: str) -> str:
    """The modality of a row that held one and then the other."""
    kinds = {earlier, now} - {"text"}
    return "omni" if len(kinds) > 1 else (kinds or {"text"}).pop()


def _decodes(node: Node) -> bool:
    return any(read.phase == "decode" for read in reads_below(node))
