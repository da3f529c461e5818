"""nnsight's tracers with a lock, gradients off unless asked for, and errors in our words."""

import contextlib
import re
import threading
import weakref
from collections.abc import Iterator
from types import CodeType
from typing import Any, Literal, NamedTuple

import torch
from nnsight.intervention.interleaver import (
    Interleaver,
    Mediator,
    OutOfOrderError,
    dangling_unwind,
)
from nnsight.intervention.tracer import InterleavingTracer, Invoker
from torch import nn

from model_adapters.call_site import PARSING
from model_adapters.errors import SiteError

_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_HANDING_OUT = threading.Lock()
_SLIPPED = (
    "a block fell behind: before pass {} it asked for a value that the model had gone past, and "
    "got that of a later pass. Ask for values in the order in which the model computes them"
)
_MISPLACED = "`with tracer.invoke(batch):` stands by itself, directly in the block of the trace"
_REQUEST = re.compile(r"'(?P<path>.+)\.(?P<end>input|output)\.i(?P<visit>\d+)'")


def lock_of(module: nn.Module) -> Any:
    """The one lock of a model, however many adapters wrap it: it runs one trace at a time."""
    with _HANDING_OUT:
        return _LOCKS.setdefault(module, threading.RLock())


class StepInterleaver(Interleaver):
    """Knows in which step of `steps()` each block is, and where it may be left waiting.

    nnsight lets a request for what a decode step has passed slip to the next step, and ends every
    open loop with the same warning. Here only a block that waits for the next step may end so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[Any, int | None] = {}
        """Step of every block inside `steps()`; None while it waits for the next one."""

    def check_dangling_mediators(self) -> None:
        """End blocks that wait for a pass after the last; raise for what came too late."""
        for block, step in self.steps.items():
            if not block.alive:
                continue
            asked, expected = block.pending, step is None
            error, _ = dangling_unwind(block)
            if step is not None and isinstance(error, OutOfOrderError):
                error = OutOfOrderError(f"'{asked.provider}.i{step}' was missed in this step")
            elif expected and asked.iteration < block.occurrence(asked.provider):
                error, expected = SiteError(_SLIPPED.format(asked.iteration)), False
            try:
                block.worker.throw(error)
            except BaseException as thrown:
                if thrown is not error or not expected:
                    raise
        super().check_dangling_mediators()

    def cancel(self) -> None:
        """Forget the run."""
        super().cancel()
        self.steps.clear()


class _OneParser:
    def parse(self, source: str, lineno: int) -> Any:
        with PARSING:
            return super().parse(source, lineno)  # type: ignore[misc]


class AdapterInvoker(_OneParser, Invoker):
    """The requests and the block of one `invoke`."""

    def execute(self, code: CodeType) -> None:
        """Hand both to the trace."""
        if self.tracer.batcher is None:
            raise SiteError(_MISPLACED)
        super().execute(code)


class AdapterTracer(_OneParser, InterleavingTracer):
    """A trace of an adapter. Its `invoke` takes a `Batch` or encodings as keyword arguments."""

    def __init__(self, envoy: Any, fn: Any, *args: Any, grad: bool = False, **kwargs: Any) -> None:
        super().__init__(envoy, fn, *args, **kwargs)
        self.grad = grad

    def invoke(self, *args: Any, **kwargs: Any) -> AdapterInvoker:
        """Add requests to the one forward of this trace; the block sees its own rows only.

        Without arguments the block sees the whole batch.

        Raises:
            InputError: for inputs that the model cannot take.
            SiteError: in a trace that was opened with requests of its own, or outside its block.
        """
        if self.envoy._batch_size(**self.kwargs):
            raise SiteError(
                "this trace was opened with its requests; open one without any, "
                "`with adapter.trace() as tracer:`, and give each batch to `tracer.invoke(batch)`"
            )
        if self.envoy.interleaver.interleaving:
            raise SiteError(_MISPLACED)
        if not args and not kwargs:
            return AdapterInvoker(self)
        return AdapterInvoker(self, **self.envoy._inputs_of(args, kwargs))

    def execute(self, code: CodeType) -> None:
        """Run the block with the model, one thread at a time."""
        with self.envoy._running(grad=self.grad):
            super().execute(code)


class Step(NamedTuple):
    """One forward pass of a generation."""

    number: int
    """0 is the prefill; sites hold the whole prompt there and one position afterwards."""
    phase: Literal["prefill", "decode"]


class GenerationTracer(AdapterTracer):
    """The trace of a generate call. Without `steps()` a block sees the prefill only."""

    def __init__(self, envoy: Any, config: Any, finish: Any, **kwargs: Any) -> None:
        super().__init__(envoy, self._generate, **kwargs)
        self.config, self.finish = config, finish
        self.generation: Any = None
        """The `Generation`, once the block has ended."""

    def steps(self) -> Iterator[Step]:
        """The passes of the model in order, each named; sites in the loop are those of the pass.

        The number of passes is known only when rows have ended, so the loop is cut short there,
        and statements of the block after it do not run. Read results from `generation`.
        """
        root, path = self.envoy, self.envoy.family.entry
        entry = root.get(path) if path else root
        block, steps = Mediator.current("steps()"), root.interleaver.steps
        for number in self.iter[:]:
            steps[block] = None
            # Binds the step even where the block then reads nothing. Encoders in front of an entry
            # run before it, in the prefill.
            if number or entry is root:
                _ = entry.inputs
            steps[block] = number
            yield Step(number, "decode" if number else "prefill")

    def _generate(self, **inputs: Any) -> torch.Tensor:
        tokens: torch.Tensor = self.envoy._generate(self.config, **inputs)
        self.generation = self.finish(tokens, inputs["input_ids"].shape[1])
        return tokens


@contextlib.contextmanager
def translated(site_names: Any, absent_towers: dict[str, str]) -> Iterator[None]:
    """Turn nnsight's one message for every missed value into one that says what to do.

    Args:
        site_names: from (path, "input" or "output") to the site's name.
        absent_towers: paths of encoders, and what they encode.
    """
    try:
        yield
    except OutOfOrderError as error:
        found = _REQUEST.search(str(error))
        if found is None:
            raise
        path, end, visit = found["path"], found["end"], found["visit"]
        site = site_names.get((path, end), f"{path}.{end}")
        towers = [
            kind for tower, kind in absent_towers.items() if (path + ".").startswith(tower + ".")
        ]
        if towers:
            reason = (
                f"this encoder runs in the prefill only, for requests with {towers[0]}; or the "
                "block had already gone past it"
            )
        else:
            reason = (
                "the model had gone past it, or never ran it in this pass. Ask for sites in the "
                "order in which the model reaches them: embed; per layer resid_pre, z, result, "
                "attn_out, resid_mid, mlp_out, resid_post; final_norm; logits. Use a separate "
                "`tracer.invoke()` block for each independent order"
            )
        raise SiteError(f"{site} could not be had in pass {visit}: {reason}.") from error
